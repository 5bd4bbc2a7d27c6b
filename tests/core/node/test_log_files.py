from pathlib import Path

import pytest

from retinue.core.node.log_files import find_file, list_files, read_part


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "one.log").write_bytes(b"0123456789")
    (tmp_path / "b" / "two.log").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"token")
    return [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "missing")]


def test_files_of_all_folders_are_listed_by_name(folders: list[str]) -> None:
    assert list_files(folders) == [{"file": "one.log", "size": 10}, {"file": "two.log", "size": 0}]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", ".", "..", "three.log", "a/one.log"])
def test_a_name_that_leads_elsewhere_is_no_file(folders: list[str], name: str) -> None:
    with pytest.raises(FileNotFoundError):
        find_file(folders, name)


@pytest.mark.parametrize(
    ("offset", "data", "begin"),
    [(0, b"0123", 0), (8, b"89", 8), (-3, b"789", 7), (-99, b"0123", 0), (10, b"", 10)],
)
def test_parts_are_read_from_either_end(folders: list[str], offset: int, data: bytes, begin: int) -> None:
    part = read_part(find_file(folders, "one.log"), offset, 4)
    assert part == {"file": "one.log", "data": data, "offset": begin, "size": 10}
