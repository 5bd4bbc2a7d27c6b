from __future__ import annotations

import os
from typing import Any

import pytest

import retinue
from retinue.util.joblib import register_retinue

joblib = pytest.importorskip("joblib")
np = pytest.importorskip("numpy")
stored = pytest.importorskip("retinue.util.joblib.stored")


class TestStored:
    def test_a_large_array_is_put_once_for_all_batches(self) -> None:
        puts: list[Any] = []

        def put(value: Any) -> int:
            puts.append(value)
            return len(puts)

        store = stored.ArrayStore(put=put)
        data, small = np.arange(100_000.0), np.arange(3)
        dumps = [store.dump(lambda i=i: (data.sum() + i, {"again": data is data}, small)) for i in range(3)]
        assert len(puts) == 1
        assert puts[0] is data
        assert all(refs == [1] for _, refs, _ in dumps)
        assert all(len(pickled) < 10_000 for pickled, *_ in dumps)
        total, _, _ = stored.load_stored(dumps[2][0], [data], [])()
        assert total == data.sum() + 2

    def test_the_number_of_remembered_arrays_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stored, "MAX_STORED_ARRAYS", 2)
        puts: list[Any] = []
        store = stored.ArrayStore(put=lambda value: puts.append(value) or len(puts))
        arrays = [np.zeros(100_000) for _ in range(3)]
        for array in (*arrays, arrays[2], arrays[0]):
            store.dump(lambda array=array: array)
        assert len(puts) == 4, "the first was forgotten, the last was not"

    def test_classes_and_small_things_travel_inside(self) -> None:
        store = stored.ArrayStore(put=pytest.fail)
        pickled, refs, kept = store.dump(lambda: (np.ndarray, memoryview, b"x" * 10))
        assert (refs, kept) == ([], [])
        assert stored.run_stored(pickled, refs, kept) == (np.ndarray, memoryview, b"x" * 10)


def pid_and_square(x: int) -> tuple[int, int]:
    return os.getpid(), x * x


@pytest.mark.e2e
@pytest.mark.usefixtures("cluster")
class TestBackend:
    @pytest.fixture(autouse=True)
    def _registered(self) -> None:
        register_retinue()

    def test_calls_run_in_actors(self) -> None:
        with joblib.parallel_config(backend="retinue"):
            results = joblib.Parallel(n_jobs=-1)(joblib.delayed(pid_and_square)(i) for i in range(50))
        assert [square for _, square in results] == [i * i for i in range(50)]
        assert os.getpid() not in {pid for pid, _ in results}

    def test_one_job_runs_here(self) -> None:
        with joblib.parallel_config(backend="retinue", n_jobs=1):
            assert joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(2)) == [os.getpid()] * 2

    def test_results_can_be_generated(self) -> None:
        parallel = joblib.Parallel(n_jobs=2, backend="retinue", return_as="generator")
        assert list(parallel(joblib.delayed(abs)(-i) for i in range(20))) == list(range(20))

    def test_an_error_is_raised_and_the_backend_goes_on(self) -> None:
        with joblib.parallel_config(backend="retinue", n_jobs=2):
            with pytest.raises(ZeroDivisionError):
                joblib.Parallel()(joblib.delayed(divmod)(1, i) for i in range(10))
            assert joblib.Parallel()(joblib.delayed(abs)(i) for i in range(3)) == [0, 1, 2]

    def test_large_data_is_shared(self) -> None:
        data = np.arange(1_000_000.0)

        def total(part: Any, i: int) -> tuple[float, bool]:
            return float(part.sum()) + i, bool(part.flags.writeable)

        results = joblib.Parallel(n_jobs=2, backend="retinue")(
            joblib.delayed(total)(data, i) for i in range(8)
        )
        assert results == [(float(data.sum()) + i, False) for i in range(8)]

    def test_references_stay_references(self) -> None:
        refs = [retinue.put(i) for i in range(4)]
        parallel = joblib.Parallel(n_jobs=2, backend="retinue")
        assert parallel(joblib.delayed(lambda ref: retinue.get(ref) + 1)(ref) for ref in refs) == [1, 2, 3, 4]

    def test_calls_may_nest(self) -> None:
        def outer(i: int) -> list[int]:
            return list(joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-i * j) for j in range(3)))

        with joblib.parallel_config(backend="retinue", n_jobs=2):
            assert joblib.Parallel()(joblib.delayed(outer)(i) for i in range(3)) == [
                [0, 0, 0],
                [0, 1, 2],
                [0, 2, 4],
            ]

    def test_jobs_are_counted_by_the_clusters_cpus(self) -> None:
        backend = joblib.parallel.BACKENDS["retinue"]()
        cpus = int(retinue.cluster_resources()["CPU"])
        assert [backend.effective_n_jobs(n) for n in (None, 1, -1, -2, 100)] == [1, 1, cpus, cpus - 1, cpus]
        with pytest.raises(ValueError, match="n_jobs == 0"):
            backend.effective_n_jobs(0)

    def test_a_grid_search(self) -> None:
        svm = pytest.importorskip("sklearn.svm")
        selection = pytest.importorskip("sklearn.model_selection")
        data = pytest.importorskip("sklearn.datasets").load_iris(return_X_y=True)
        search = selection.GridSearchCV(svm.SVC(), {"C": [0.1, 1, 10]}, cv=3)
        with joblib.parallel_config(backend="retinue", n_jobs=2):
            search.fit(*data)
        assert search.best_score_ > 0.9
