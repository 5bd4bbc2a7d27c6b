"""Rows that call actors: synchronous and asynchronous ones, from one caller and from several."""

from types import ModuleType

from corebench.catalogue import Setting, rate, row
from corebench.kit import kit, ready

ACTORS = 4
PIPELINED = 1000  # calls in flight from one caller
PER_CLIENT = 5000  # calls that each of several callers submits


def _one(ray: ModuleType, actor_class):
    return ready(ray, [actor_class.remote()])[0]


@row(rate("actor_sync", "1:1 actor calls sync", 7, 0.42))
def actor_sync(ray: ModuleType, setting: Setting) -> float:
    actor = _one(ray, kit(ray).actor)
    return setting.stopwatch.rate(lambda: ray.get(actor.small_value.remote()))


@row(rate("actor_async", "1:1 actor calls async", 15, 3.8))
def actor_async(ray: ModuleType, setting: Setting) -> float:
    actor = _one(ray, kit(ray).actor)
    n = PIPELINED
    return setting.stopwatch.rate(lambda: ray.get([actor.small_value.remote() for _ in range(n)]), per_call=n)


@row(rate("actor_concurrent", "1:1 actor calls concurrent (16 threads)"))
def actor_concurrent(ray: ModuleType, setting: Setting) -> float:
    actor = _one(ray, kit(ray).actor.options(max_concurrency=16))
    n = PIPELINED
    return setting.stopwatch.rate(lambda: ray.get([actor.small_value.remote() for _ in range(n)]), per_call=n)


@row(rate("actor_1_n_async", "1:n actor calls async, 4 actors", 12))
def actor_1_n_async(ray: ModuleType, setting: Setting) -> float:
    return _one_to_many(ray, setting, kit(ray).actor)


@row(rate("actor_n_n_async", "n:n actor calls async, 4 actors", 12))
def actor_n_n_async(ray: ModuleType, setting: Setting) -> float:
    return _many_to_many(ray, setting, kit(ray).actor)


@row(rate("actor_n_n_arg_async", "n:n actor calls with argument async, 4 actors", 10))
def actor_n_n_arg_async(ray: ModuleType, setting: Setting) -> float:
    actors = ready(ray, [kit(ray).actor.remote() for _ in range(ACTORS)])
    clients = [kit(ray).client.remote([actor]) for actor in actors]
    n = setting.batch(1000)
    return setting.stopwatch.rate(
        lambda: ray.get([client.small_value_batch_arg.remote(n) for client in clients]),
        per_call=n * len(clients),
    )


@row(rate("async_actor_sync", "1:1 async-actor calls sync", 7))
def async_actor_sync(ray: ModuleType, setting: Setting) -> float:
    actor = _one(ray, kit(ray).async_actor)
    return setting.stopwatch.rate(lambda: ray.get(actor.small_value.remote()))


@row(rate("async_actor_async", "1:1 async-actor calls async", 20))
def async_actor_async(ray: ModuleType, setting: Setting) -> float:
    actor = _one(ray, kit(ray).async_actor)
    n = PIPELINED
    return setting.stopwatch.rate(lambda: ray.get([actor.small_value.remote() for _ in range(n)]), per_call=n)


@row(rate("async_actor_arg_async", "1:1 async-actor calls with args async", 20))
def async_actor_arg_async(ray: ModuleType, setting: Setting) -> float:
    actor = _one(ray, kit(ray).async_actor)
    n = PIPELINED
    return setting.stopwatch.rate(
        lambda: ray.get([actor.small_value_with_arg.remote(i) for i in range(n)]), per_call=n
    )


@row(rate("async_actor_1_n_async", "1:n async-actor calls async, 4 actors"))
def async_actor_1_n_async(ray: ModuleType, setting: Setting) -> float:
    return _one_to_many(ray, setting, kit(ray).async_actor)


@row(rate("async_actor_n_n_async", "n:n async-actor calls async, 4 actors"))
def async_actor_n_n_async(ray: ModuleType, setting: Setting) -> float:
    return _many_to_many(ray, setting, kit(ray).async_actor)


def _one_to_many(ray: ModuleType, setting: Setting, actor_class) -> float:
    """One client, itself an actor, calls every actor `n` times and waits for all answers."""
    actors = ready(ray, [actor_class.remote() for _ in range(ACTORS)])
    client = kit(ray).client.remote(actors)
    n = setting.batch(PER_CLIENT)
    return setting.stopwatch.rate(
        lambda: ray.get(client.small_value_batch.remote(n)), per_call=n * len(actors)
    )


def _many_to_many(ray: ModuleType, setting: Setting, actor_class) -> float:
    """As many tasks as actors, each calling all of them in turn."""
    actors = ready(ray, [actor_class.remote() for _ in range(ACTORS)])
    n = setting.batch(PER_CLIENT)
    return setting.stopwatch.rate(
        lambda: ray.get([kit(ray).spread_calls.remote(actors, n) for _ in range(ACTORS)]),
        per_call=n * ACTORS,
    )
