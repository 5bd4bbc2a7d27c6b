"""Local testing mode: applications in this process, with pickled arguments and real limits."""

import asyncio
import threading

import pytest

from retinue import serve
from retinue.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from retinue.serve.local_testing import LocalHandle


@pytest.fixture(autouse=True)
def _ended():
    yield
    serve.shutdown()
    assert "retinue-local-serve" not in {thread.name for thread in threading.enumerate()}


def run(app, **options):
    return serve.run(app, _local_testing_mode=True, **options)


@serve.deployment(user_config={"factor": 3})
class Inner:
    def __init__(self, n):
        self.n = n

    def reconfigure(self, config):
        self.factor = config["factor"]

    def __call__(self, x):
        return x + self.n

    async def items(self, count):
        for i in range(count):
            yield i * self.factor

    def fail(self):
        raise KeyError("no")

    def change(self, things):
        things.append(1)


@serve.deployment
class Outer:
    def __init__(self, handles):
        self.inner = handles["inner"]

    async def __call__(self, x):
        return await self.inner.remote(x) * 2


def test_composition():
    handle = run(Outer.bind({"inner": Inner.bind(10)}))
    assert handle.remote(1).result() == 22
    assert handle.remote(handle.remote(1)).result() == 64

    async def main():
        return await handle.remote(2)

    assert asyncio.run(main()) == 24


def test_methods_streams_and_errors():
    handle = run(Inner.bind(1))
    assert list(handle.options(stream=True).items.remote(3)) == [0, 3, 6]
    with pytest.raises(KeyError, match="no"):
        handle.fail.remote().result()
    with pytest.raises(AttributeError, match="no method 'nothing'"):
        handle.nothing.remote().result()
    assert handle.broadcast("__call__", 1).results() == [2]


def test_arguments_are_copies():
    things = []
    run(Inner.bind(1)).change.remote(things).result()
    assert things == []


def test_what_the_constructor_raises_is_raised():
    @serve.deployment
    class Bad:
        def __init__(self):
            raise ValueError("bad start")

    with pytest.raises(ValueError, match="bad start"):
        run(Bad.bind())


def test_functions_and_names():
    @serve.deployment
    def double(x):
        return 2 * x

    first, second = serve.run_many(
        [serve.RunTarget(double.bind(), name="a"), serve.RunTarget(Inner.bind(5), name="b")],
        _local_testing_mode=True,
    )
    assert (first.remote(2).result(), second.remote(2).result()) == (4, 7)
    with pytest.raises(DeploymentUnavailableError, match="does not run in this process"):
        LocalHandle("double", "c").remote(1).result()


def test_running_again_replaces():
    handle = run(Inner.bind(1))
    run(Inner.bind(2))
    assert handle.remote(0).result() == 2


def test_limits_hold_and_cancelling_frees():
    @serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
    class Slow:
        def __init__(self):
            self.started = 0

        async def __call__(self):
            self.started += 1
            await asyncio.Event().wait()

    handle = run(Slow.bind())
    replica = handle._routers().get("default", "Slow")
    first = handle.remote()
    second = handle.remote()
    third = handle.remote()  # the loop takes them in order: by now one runs and one waits
    with pytest.raises(BackPressureError):
        third.result(timeout_s=10)
    for response in (second, first):
        response.cancel()
        with pytest.raises(RequestCancelledError):
            response.result(timeout_s=10)
    assert not replica._room.locked()


def test_run_many_needs_targets():
    with pytest.raises(ValueError, match="at least one"):
        serve.run_many([])


def test_run_says_what_is_no_application():
    with pytest.raises(TypeError, match=r"use Inner\.bind\(\)"):
        run(Inner)
    with pytest.raises(TypeError, match="is no application"):
        run(3)
