import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from retinue.core import session as sessions
from retinue.core.session import ClusterFile, Session
from retinue.core.wire.messages import Address


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(sessions.TEMP_DIR_VARIABLE, str(tmp_path / "r"))
    monkeypatch.delenv(sessions.TOKEN_VARIABLE, raising=False)
    monkeypatch.delenv(sessions.TOKEN_FILE_VARIABLE, raising=False)
    return str(tmp_path / "r")


def publish(session: Session, *, is_private: bool = False, port: int = 0) -> ClusterFile:
    head = Address(b"h" * 16, b"n" * 16, session.path("head.sock"), "127.0.0.1" if port else "", port)
    cluster = ClusterFile(session.cluster_id, session.dir, session.token_file, head, is_private=is_private)
    session.publish(cluster)
    return cluster


def drop_lock(session: Session) -> None:
    """As the kernel does when the process dies."""
    os.close(session.lock_fd)
    session.lock_fd = -1


def test_folder_and_token_are_the_users_own(base: str) -> None:
    session = sessions.new_session()
    assert stat.S_IMODE(os.stat(base).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(session.dir).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(session.token_file).st_mode) == 0o600
    assert sessions.read_token(session.token_file) == session.token
    assert len(session.token) >= 32
    session.close()
    assert os.listdir(base) == []


def test_token_comes_from_the_environment_first(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    path.write_text("from-file\n")
    monkeypatch.setenv(sessions.TOKEN_FILE_VARIABLE, str(path))
    session = sessions.new_session()
    assert session.token == b"from-file"
    session.close()
    monkeypatch.setenv(sessions.TOKEN_VARIABLE, "from-variable")
    assert sessions.token_from_environment() == b"from-variable"


def test_an_empty_token_is_refused(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sessions.TOKEN_VARIABLE, "  ")
    with pytest.raises(ValueError, match="RETINUE_TOKEN"):
        sessions.new_session()


def test_the_newest_live_cluster_is_found(base: str) -> None:
    old, new = sessions.new_session(), sessions.new_session()
    os.rename(old.dir, os.path.join(base, "s-1-000000"))
    old.dir = os.path.join(base, "s-1-000000")
    publish(old)
    expected = publish(new)
    assert sessions.find_cluster() == expected
    assert sessions.cluster_token(expected) == new.token
    drop_lock(new)
    found = sessions.find_cluster()
    assert found is not None
    assert found.cluster_id == old.cluster_id
    old.close()
    assert sessions.find_cluster() is None


def test_a_drivers_own_cluster_is_found_only_if_asked_for(base: str) -> None:
    session = sessions.new_session()
    cluster = publish(session, is_private=True, port=4711)
    assert sessions.find_cluster() is None
    assert sessions.find_cluster(include_private=True) == cluster
    assert sessions.find_cluster_at("127.0.0.1:4711") == cluster
    assert sessions.find_cluster_at(session.path("head.sock")) == cluster
    assert sessions.find_cluster_at("127.0.0.1:4712") is None
    session.close()


def test_cleaning_removes_dead_sessions_and_leaves_live_ones(base: str) -> None:
    dead, live = sessions.new_session(), sessions.new_session()
    os.makedirs(os.path.join(dead.dir, "n-1", "spill"))
    Path(dead.dir, "n-1", "spill", "file").write_bytes(b"x")
    os.symlink("/", os.path.join(dead.dir, "n-1", "link"))
    drop_lock(dead)
    assert sessions.clean_stale() == 1
    assert os.listdir(base) == [os.path.basename(live.dir)]
    live.close()


def test_a_folder_that_is_being_made_is_left_alone(base: str) -> None:
    os.makedirs(os.path.join(base, "s-1-aaaaaa"))
    assert sessions.clean_stale() == 0
    os.utime(os.path.join(base, "s-1-aaaaaa"), (0, 0))
    assert sessions.clean_stale() == 1


def test_a_lock_whose_maker_died_before_the_folder_was_there_is_removed(base: str) -> None:
    sessions.temp_dir()
    path = Path(base, sessions.NEW_LOCK_PREFIX + "s-1-aaaaaa")
    path.touch()
    sessions.clean_stale()
    assert not path.exists()


def test_the_last_to_leave_removes_the_folder(base: str) -> None:
    session = sessions.new_session()
    other = session.hold()
    session.close()
    assert os.path.exists(session.dir)
    sessions.leave(session.dir, other)
    assert not os.path.exists(session.dir)


def test_a_session_lives_as_long_as_any_process_that_holds_it(base: str) -> None:
    session = sessions.new_session()
    lock = session.hold()
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock], start_new_session=True
    )
    os.close(lock)
    drop_lock(session)
    assert sessions.clean_stale() == 0
    child.kill()
    child.communicate()
    assert sessions.clean_stale() == 1


def test_a_strangers_folder_in_tmp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sessions.TEMP_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    path = "/tmp/retinue-4000000000"  # ours by owner, not by the user id that we claim
    os.mkdir(path, 0o700)
    try:
        with pytest.raises(PermissionError, match="mode 0700"):
            sessions.temp_dir()
    finally:
        os.rmdir(path)
