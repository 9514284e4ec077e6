"""The tests that `make test` leaves out exist."""

from pathlib import Path

import pytest

from rest import LEFT_TO_TEST_ALL, is_left

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("file", LEFT_TO_TEST_ALL)
def test_a_row_names_a_test(file: str) -> None:
    text = (TESTS / file).read_text()
    assert not [name for name in LEFT_TO_TEST_ALL[file] if f"def {name.partition('[')[0]}" not in text]


def test_a_row_is_the_beginning_of_names_in_its_file_alone() -> None:
    file, names = next(iter(LEFT_TO_TEST_ALL.items()))
    assert is_left(f"{file}::{next(iter(names))}_and_more")
    assert not is_left(f"other/{file}::{next(iter(names))}")
    assert not is_left(f"{file}::test_another")
