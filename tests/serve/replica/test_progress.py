"""Whether requests finish, judged with a clock of the test's own."""

from retinue.serve.replica.progress import Progress


def test_an_idle_replica_is_never_stuck() -> None:
    progress = Progress()
    progress.look(moved=0, ongoing=0, now=0.0)
    progress.look(moved=0, ongoing=0, now=1000.0)
    assert progress.stuck_for(1000.0) == 0


def test_time_counts_while_requests_run_and_nothing_moves() -> None:
    progress = Progress()
    progress.look(moved=0, ongoing=1, now=10.0)
    progress.look(moved=0, ongoing=3, now=40.0)
    assert progress.stuck_for(40.0) == 30.0


def test_one_request_that_finishes_begins_it_anew() -> None:
    progress = Progress()
    progress.look(moved=0, ongoing=2, now=10.0)
    progress.look(moved=1, ongoing=2, now=40.0)
    assert progress.stuck_for(50.0) == 10.0


def test_idleness_ends_it() -> None:
    progress = Progress()
    progress.look(moved=0, ongoing=2, now=10.0)
    progress.look(moved=2, ongoing=0, now=40.0)
    progress.look(moved=2, ongoing=1, now=60.0)
    assert progress.stuck_for(61.0) == 1.0
