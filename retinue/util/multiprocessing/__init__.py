"""`multiprocessing.Pool` on actors: the same interface, on as many machines as the cluster has.

`pool` is the Pool and the one thread it owns, `dispatch` decides which worker process runs what (pure),
`results` is what callers wait on, `worker` is the actor. Unlike the standard library's, a worker process
that dies fails the calls it ran, and is replaced.
"""

from multiprocessing import JoinableQueue, TimeoutError  # noqa: A004  the name that its users import

from retinue.util.multiprocessing.pool import Pool
from retinue.util.multiprocessing.results import AsyncResult, PoolTerminatedError

__all__ = ["AsyncResult", "JoinableQueue", "Pool", "PoolTerminatedError", "TimeoutError"]
