import time

import pytest

from samestep.trace.timesheet import Timesheet


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
