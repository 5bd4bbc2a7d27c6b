"""The joblib backend: batches of calls go to a `multiprocessing.Pool` of actors. Imports joblib.

Large arrays among the arguments are put into the object store once for all batches (`stored`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    register_parallel_backend,
)

import retinue
from retinue.util.joblib.stored import ArrayStore, run_stored
from retinue.util.multiprocessing.pool import Pool
from retinue.util.multiprocessing.results import AsyncResult

NAME = "retinue"


def register() -> None:
    """Make the backend known to joblib."""
    register_parallel_backend(NAME, RetinueBackend)


class RetinueBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs joblib's batches on actors, one for each of `n_jobs`, at most one for each CPU of the cluster.

    `ray_remote_args` (or `remote_args`) are options of these actors; given to `Parallel`, they replace
    those given to the backend.
    """

    supports_retrieve_callback = True
    supports_return_generator = True
    supports_timeout = True

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        remote_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **kwargs)
        self._remote_args = ray_remote_args or remote_args
        self._configured: dict[str, Any] = {}
        self._pool: Pool | None = None
        self._store = ArrayStore()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many actors `n_jobs` means here; negative numbers count down from the cluster's CPUs."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if not retinue.is_initialized():
            retinue.init()
        cpus = max(int(retinue.cluster_resources().get("CPU", 1)), 1)
        return min(n_jobs, cpus) if n_jobs > 0 else max(cpus + 1 + n_jobs, 1)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        remote_args: dict[str, Any] | None = None,
        **_memmapping_options: Any,
    ) -> int:
        """Start the actors for one call of `Parallel`. Options for joblib's memory maps have no use here."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = ray_remote_args or remote_args or self._remote_args
        self.parallel = parallel
        self._pool = Pool(n_jobs, remote_args=options)
        self._configured = {"n_jobs": n_jobs, "parallel": parallel, "remote_args": options}
        return n_jobs

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> AsyncResult:
        """Run a batch; `callback` gets its result or its exception."""
        assert self._pool is not None, "configure comes first"
        batch = self._store.dump(func)
        return self._pool.apply_async(run_stored, batch, callback=callback, error_callback=callback)

    apply_async = submit  # its name before joblib 1.5

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return what the callback of `submit` was given, or raise it."""
        if isinstance(out, BaseException):
            raise out
        return out

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Stop what runs, because one call failed."""
        configured = self._configured
        self.terminate()
        if ensure_ready:
            self.configure(**configured)

    def terminate(self) -> None:
        """End the actors."""
        pool, self._pool = self._pool, None
        self._store.clear()
        self.reset_batch_stats()
        if pool is not None:
            pool.terminate()
            pool.join()
