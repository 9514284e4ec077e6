import itertools

from samestep.trace.ring import Ring
from samestep.trace.timesheet import Timesheet


def test_the_oldest_is_forgotten() -> None:
    ring = Ring(capacity=3)
    for step in range(5):
        ring.add(step, "work", float(step), step + 1.0, 0.25)
    assert [event.step for event in ring] == [2, 3, 4]
    assert all(event.busy == 0.75 for event in ring)


def test_every_lap_is_an_event_and_events_do_not_overlap() -> None:
    sheet = Timesheet()
    sheet.start()
    for number in range(10):
        sheet.computed(number, "compute")
        sheet.waited(0.0)
        sheet.communicated(number, "send")
    events = list(sheet.ring)
    assert len(events) == 20
    assert all(a.stop == b.start for a, b in itertools.pairwise(events))
    assert sum(event.busy for event in events) <= events[-1].stop - events[0].start + 1e-9
