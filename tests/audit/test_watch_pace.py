from hypothesis import given
from hypothesis import strategies as st

from samestep.audit.watch_pace import SHARE, WatchPace


@given(
    step=st.floats(1e-4, 10),
    watch=st.floats(1e-6, 1),
    audit=st.floats(0, 1),
    every=st.integers(1, 100),
)
def test_what_is_wished_for_takes_its_share_of_the_time(step: float, watch: float, audit: float, every: int) -> None:
    pace = WatchPace(every)
    pace.steps.append(step)
    pace.watches.append(watch)
    pace.audits.append(audit)
    wish = pace.wish()
    assert 0 <= wish <= 1
    spent = (audit + wish * every * watch) / (every * step)
    assert spent <= SHARE * (1 + 1e-9) or wish == 0, "audits are held in any case"
    assert wish == 1 or spent >= SHARE * (1 - 1e-9), "and no less than that"


@given(fraction=st.floats(0, 1), first=st.integers(1, 10**6), count=st.integers(1, 500))
def test_watched_steps_are_as_many_as_agreed_and_spread(fraction: float, first: int, count: int) -> None:
    pace = WatchPace(32)
    pace.agree([1.0, fraction])
    found = sum(pace.watches_after(step) for step in range(first, first + count))
    assert abs(found - fraction * count) <= 1


def test_before_anything_is_measured_every_step_is_watched() -> None:
    pace = WatchPace(32)
    assert pace.wish() == 1
    assert all(pace.watches_after(step) for step in range(1, 100))
