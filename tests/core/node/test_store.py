"""The store room on a loop of its own, without an agent around it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from retinue.core.node.store import AGENT, OwnSpace, StoreRoom
from retinue.core.objects import decisions as d

MIB = 1 << 20


def _grants(room: StoreRoom) -> list[OwnSpace]:
    grants: list[OwnSpace] = []
    room.on_own_space = grants.append
    return grants


def test_pages_that_could_not_be_given_back_stay_in_the_books(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        room = StoreRoom(budget_bytes=8 * MIB, node_dir=str(tmp_path), spill_dir="")
        grants = _grants(room)
        answered = asyncio.Event()
        punched = room.books.punched

        def note(offset: int, *, is_cold: bool = True) -> list[d.Decision]:
            answered.set()
            return punched(offset, is_cold=is_cold)

        monkeypatch.setattr(room.arena, "punch", lambda offset, size: False)
        monkeypatch.setattr(room.books, "punched", note)
        room.run()
        for rid, size in ((1, 2 * MIB), (2, 2 * MIB)):
            room.carry_out(room.books.request_single(AGENT, rid, size, now=0.0))
        room.carry_out(room.books.abort(AGENT, 0))
        # Six of the eight MiB, in one piece: the two that were touched before are too many now.
        room.carry_out(room.books.request_single(AGENT, 3, 6 * MIB, now=0.0))
        assert len(grants) == 3
        await answered.wait()
        assert room.books.touched_bytes == 10 * MIB
        await room.close()

    asyncio.run(scenario())
