import itertools
import time

import pytest

from samestep.trace.timesheet import Ring, Timesheet


def test_all_time_is_booked_exactly_once() -> None:
    """Nothing is lost between two marks, whatever it is booked as."""
    began = time.perf_counter()
    sheet = Timesheet()
    sheet.start()
    for _ in range(50):
        sum(range(1000))
        sheet.computed(0, None)
        sum(range(1000))
        sheet.communicated(0, None)
    total = time.perf_counter() - began
    assert 0.0 < sheet.compute < total
    assert 0.0 < sheet.communicate < total
    assert sheet.compute + sheet.communicate <= total
    assert sheet.wait == 0.0


def test_waiting_is_taken_out_of_what_it_happened_in() -> None:
    sheet = Timesheet()
    sheet.start()
    sheet.waited(100.0)
    sheet.waited(50.0)
    sheet.communicated(0, None)
    assert sheet.wait == 150.0
    assert sheet.communicate == pytest.approx(-150.0, abs=1.0)
    sheet.computed(0, None)
    assert sheet.wait == 150.0
    assert sheet.compute >= 0.0


def test_what_was_before_a_start_does_not_count() -> None:
    sheet = Timesheet()
    sheet.waited(100.0)
    sheet.start()
    sheet.computed(0, None)
    assert sheet.wait == 0.0
    assert 0.0 <= sheet.compute < 1.0


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
