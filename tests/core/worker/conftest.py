from __future__ import annotations

from collections.abc import Iterator

import pytest

from retinue.core.wire.messages import WorkerEnv
from retinue.core.worker import context
from retinue.core.worker.running import CallRunner
from tests.core.worker.fakes import Caller, FakeRuntime


@pytest.fixture
def runtime() -> Iterator[FakeRuntime]:
    runtime = FakeRuntime()
    yield runtime
    runtime.io.close()


@pytest.fixture
def runner(runtime: FakeRuntime) -> CallRunner:
    return CallRunner(runtime)  # type: ignore[arg-type]


@pytest.fixture
def caller(runtime: FakeRuntime) -> Iterator[Caller]:
    caller = Caller(runtime.io)
    yield caller
    caller.sock.close()
    caller.connection.sock.close()


@pytest.fixture
def facts() -> Iterator[context.WorkerFacts]:
    facts = context.WorkerFacts(WorkerEnv(b"j" * 4))
    context.set_facts(facts)
    yield facts
    context.set_facts(None)
    context.running.set(None)
