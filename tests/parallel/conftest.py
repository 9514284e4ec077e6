"""Bits depend on the number of intra-op threads, which is numerics: one, as the default is."""

import pytest


@pytest.fixture(autouse=True)
def of_one_thread(one_thread: None) -> None:
    """In every test of this room."""
