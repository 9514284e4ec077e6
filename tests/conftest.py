"""What tests share: one fork server for the whole session, so that a run costs no import of torch."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from samestep.launch.launcher import Launcher

settings.register_profile("samestep", deadline=None)  # a busy machine is no failure
settings.load_profile("samestep")


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """A fork server; pass it to `samestep.train(..., launcher=launcher)`."""
    with Launcher() as shared:
        yield shared
