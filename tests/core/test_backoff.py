from retinue.core.backoff import RestartBackoff


def backoff() -> RestartBackoff:
    return RestartBackoff(healthy_s=1.0, first_s=0.1, max_s=0.5)


def test_the_first_quick_death_costs_no_wait() -> None:
    policy = backoff()
    policy.started(0.0)
    assert policy.ended(0.1) == 0.0


def test_quick_deaths_in_a_row_wait_ever_longer_up_to_the_limit() -> None:
    policy = backoff()
    delays = []
    for start in range(6):
        policy.started(float(start))
        delays.append(policy.ended(start + 0.1))
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.5, 0.5]


def test_a_healthy_life_forgives_earlier_deaths() -> None:
    policy = backoff()
    for start in range(4):
        policy.started(float(start))
        policy.ended(start + 0.1)
    policy.started(10.0)
    assert policy.ended(11.0) == 0.0
    policy.started(12.0)
    assert policy.ended(12.1) == 0.0


def test_a_death_before_the_first_start_counts_as_quick() -> None:
    policy = backoff()
    assert [policy.ended(0.0), policy.ended(0.0)] == [0.0, 0.1]
