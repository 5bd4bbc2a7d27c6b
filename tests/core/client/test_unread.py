from __future__ import annotations

from retinue.core.client.unread import BURST, PERIOD_S, Flood


def test_a_burst_passes_in_each_period_and_the_rest_is_counted() -> None:
    flood = Flood()
    assert [flood.passes(1.0) for _ in range(BURST + 3)] == [True] * BURST + [False] * 3
    assert flood.take_omitted() == 3
    assert flood.take_omitted() == 0
    assert not flood.passes(1.0 + PERIOD_S / 2)
    assert flood.passes(1.0 + PERIOD_S)
