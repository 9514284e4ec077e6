"""What tests share: one fork server for the whole session, so that a run costs no import of torch."""

from collections.abc import Iterator

import pytest

from samestep.launch.launcher import Launcher


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """A fork server; pass it to `samestep.train(..., launcher=launcher)`."""
    with Launcher() as shared:
        yield shared
