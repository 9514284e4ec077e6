import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from samestep.audit.ledger import AT_ONCE, Balance, Ledger, balance, demanded, mistake, text_of

NOTHING = np.zeros(0, np.int64)


def total(ledgers: list[Ledger]) -> Balance:
    found = Balance()
    for ledger in ledgers:
        found += ledger.own
    return found


@given(rows=st.integers(1, 200), workers=st.integers(1, 4), dropped=st.integers(0, 20), data=st.data())
def test_every_row_once_is_right_whoever_takes_it_and_when(
    rows: int, workers: int, dropped: int, data: st.DataObject
) -> None:
    order = np.array(data.draw(st.permutations(range(rows))))
    left_out = order[: min(dropped, rows)]
    ledgers = [Ledger(7) for _ in range(workers)]
    for part in np.array_split(order[len(left_out) :], data.draw(st.integers(1, 9))):
        ledgers[data.draw(st.integers(0, workers - 1))].note(part)
    assert total(ledgers) == demanded(rows, left_out, 7)


@given(rows=st.integers(2, 200), data=st.data())
def test_one_row_for_another_is_seen_and_named(rows: int, data: st.DataObject) -> None:
    missing, again = data.draw(st.lists(st.integers(0, rows - 1), min_size=2, max_size=2, unique=True))
    order = np.arange(rows)
    order[missing] = again
    ledgers = [Ledger(7), Ledger(7)]
    ledgers[0].note(order[: rows // 2])
    ledgers[1].note(order[rows // 2 :])
    assert total(ledgers).count == rows, "counting is not enough"
    assert total(ledgers) != demanded(rows, NOTHING, 7)
    found = mistake([ledger.counts(rows) for ledger in ledgers], NOTHING)
    assert found.missing == (missing,)
    who = tuple(sorted((int(again >= rows // 2), int(missing >= rows // 2))))
    assert found.again == ((again, who),)
    assert not found.strange


def test_a_row_that_should_have_been_left_out() -> None:
    ledger = Ledger(1)
    ledger.note(np.array([0, 1, 2, 5]))
    found = mistake([ledger.counts(6)], np.array([4, 5]))
    assert found.strange == ((5, (0,)),)
    assert found.missing == (3,)
    text = text_of(found, 2, 6)
    assert "epoch 2" in text
    assert "1 rows were not used: 3" in text


def test_many_rows_are_summed_in_parts() -> None:
    rows = np.random.default_rng(1).permutation(AT_ONCE + 7)
    assert balance(rows, 3) == demanded(len(rows), NOTHING, 3)
    assert demanded(len(rows), NOTHING, 3) == balance(rows[:5], 3) + balance(rows[5:], 3)


def test_another_key_gives_other_sums() -> None:
    assert balance(np.arange(9), 1) != balance(np.arange(9), 2)
    assert balance(np.arange(9), 1) - balance(np.arange(4), 1) == balance(np.arange(4, 9), 1)
