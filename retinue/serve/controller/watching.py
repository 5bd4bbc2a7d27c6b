"""Notices the end of an actor at once: by a call that only its end answers.

A death closes the caller's connection, and with it the call, with the reason; nothing is polled. Lives here:
that call. Does not: what follows.
"""

from __future__ import annotations

import asyncio
from typing import Any

from retinue.exceptions import ActorDiedError, RetinueError

MAX_REASON = 4000


async def _never_ends(actor: object) -> None:
    await asyncio.Event().wait()


async def death_of(handle: Any) -> str:
    """Return when the actor's present process is gone, with how it ended."""
    try:
        await handle.__retinue_call__.remote(_never_ends)
    except RetinueError as error:
        return reason_of(error)
    return "it ended"


def is_dead(error: BaseException) -> bool:
    """Whether the error says that the actor is gone for good."""
    return isinstance(error, ActorDiedError)


def reason_of(error: BaseException) -> str:
    """What an error says, cut to a length that fits a status."""
    text = str(error) or type(error).__name__
    return (
        text if len(text) <= MAX_REASON else f"{text[: MAX_REASON // 4]}\n...\n{text[-MAX_REASON * 3 // 4 :]}"
    )
