"""References as futures: concurrent ones, and those of asyncio.

Lives here: who fetches the value, on which thread or loop. Does not: waiting in a thread (`runtime`).
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retinue.core.ownership.table import PENDING, STORED
from retinue.core.references import ObjectRef

if TYPE_CHECKING:
    import asyncio

    from retinue.core.client.runtime import Runtime


class Futures:
    """Makes futures of one process's references. Their callbacks run on `callbacks`, helper threads."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._callbacks = concurrent.futures.ThreadPoolExecutor(4, thread_name_prefix="retinue-callbacks")

    def close(self) -> None:
        self._callbacks.shutdown(wait=False, cancel_futures=True)

    def run_on_helper(self, function: Callable[[], None]) -> None:
        """Run it soon, where it may take its time."""
        try:
            self._callbacks.submit(function)
        except RuntimeError:
            pass  # the end: whoever ends us does what is left

    def future_of(self, ref: ObjectRef[Any]) -> concurrent.futures.Future[Any]:
        """A concurrent future. Its value is fetched on a helper thread if it lies in the store."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()

        def fetch() -> None:
            try:
                value = self._runtime.get([ref], None)[0]
            except BaseException as error:  # noqa: BLE001 - the future raises it
                future.set_exception(error)
            else:
                future.set_result(value)

        def ready() -> None:
            # Never on the thread that reads: the user's callbacks may wait for other answers.
            self._callbacks.submit(fetch)

        self._runtime.read_eagerly(ref)
        self._runtime.when_ready(ref._id, ready)
        return future

    def await_ref(self, ref: ObjectRef[Any]) -> asyncio.Future[Any]:
        """An asyncio future on the running loop, which itself reads the answer's connection."""
        import asyncio  # see `_check_not_on_loop`

        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        entry = self._runtime.table.entries.get(ref._id) or self._runtime.missing(ref)

        def set_value() -> None:
            if future.done():
                return
            try:
                value = self._runtime.get([ref], None)[0]
            except StopIteration as error:
                future.set_exception(RuntimeError(f"the task raised {error!r}"))  # asyncio refuses that one
            except BaseException as error:  # noqa: BLE001 - the future raises it
                future.set_exception(error)
            else:
                future.set_result(value)

        def fetch_stored() -> None:
            # Pinning an object is a round trip (or a restore, or a transfer): never on the loop.
            fetching = loop.run_in_executor(None, lambda: self._runtime.get([ref], None)[0])

            def fetched(done: asyncio.Future[Any]) -> None:
                if future.done():
                    done.exception()
                elif done.exception() is not None:
                    future.set_exception(done.exception())  # type: ignore[arg-type]
                else:
                    future.set_result(done.result())

            fetching.add_done_callback(fetched)

        def ready_on_loop() -> None:
            if entry.state == STORED:
                fetch_stored()
            else:
                set_value()

        thread_id = threading.get_ident()

        def ready() -> None:
            if threading.get_ident() == thread_id:
                ready_on_loop()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(ready_on_loop)

        if entry.state != PENDING:
            ready_on_loop()
            return future
        task = entry.task
        connection = task.conn if task is not None else None
        if connection is None:
            self._runtime.watch_new_connections()
        else:
            connection.read_on(loop)
        self._runtime.when_ready(ref._id, ready)
        return future
