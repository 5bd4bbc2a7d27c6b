from retinue.core.head.events import ERROR, INFO, EventLog


def test_the_latest_events_are_kept_in_order() -> None:
    log = EventLog(limit=2)
    for number in range(3):
        log.add(INFO, "NODE", f"event {number}", wall_time=float(number), node_id="n")
    assert [event["message"] for event in log.document()] == ["event 1", "event 2"]
    assert log.document()[0]["number"] == 2


def test_an_event_has_its_fields_apart() -> None:
    log = EventLog()
    log.add(ERROR, "ACTOR", "it died", wall_time=1.0, actor_id="a")
    (event,) = log.document()
    assert event["severity"] == ERROR
    assert event["fields"] == {"actor_id": "a"}
