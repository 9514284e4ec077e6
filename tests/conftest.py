"""What tests share: one fork server for the whole session, so that a run costs no import of torch."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

import samestep
from rest import is_left
from samestep.job.report import Report
from samestep.launch.run.launcher import Launcher
from samestep.plan.plan import Plan

GRIDS = Path(__file__).parent / "jobs" / "grids.py"

settings.register_profile("quick", deadline=None, max_examples=25)  # no deadline: a busy machine is no failure
settings.register_profile("thorough", deadline=None, max_examples=200)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="run slow tests too, and 200 examples of each property")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if config.getoption("--thorough") else "quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what tests need as far as their fixtures say it, and leave slow tests to `--thorough`."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        fixtures = set(getattr(item, "fixturenames", ())) - set(params)
        starters = ("Command", "ByHand", "subprocess")
        if "launcher" in fixtures or any(hasattr(getattr(item, "module", None), name) for name in starters):
            item.add_marker(pytest.mark.processes)
        if "hosts" in fixtures:
            item.add_marker(pytest.mark.hosts)
        if fixtures & {"group", "memory_group"}:
            item.add_marker(pytest.mark.root)
        if is_left(item.nodeid.removeprefix("tests/")):
            item.add_marker(pytest.mark.slow)
    if not config.getoption("--thorough"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)


def pytest_collection_finish() -> None:
    """Exempt what was imported and collected from garbage collection, which would go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles are kept here while tests run, and not where the user has his own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One intra-op thread, as the default numerics say, where steps are computed in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """A fork server; pass it to `samestep.train(..., launcher=launcher)`."""
    with Launcher() as shared:
        yield shared


@pytest.fixture(scope="module")
def train(launcher: Launcher) -> Callable[..., Report]:
    """`train("gpt", plan="slices")`, a family of jobs/grids.py. Modules with other jobs have their own."""

    def run(family: str, **options: Any) -> Report:
        return samestep.train(f"{GRIDS}:{family}", launcher=launcher, **options)

    return run


@pytest.fixture(scope="module")
def alone(train: Callable[..., Report]) -> Callable[..., Report]:
    """The same on one worker, or with a Plan for one, trained once however many tests ask for it."""
    known: dict[str, Report] = {}

    def run(family: str, **options: Any) -> Report:
        name = f"{family} {sorted(options.items())}"
        if name not in known:
            says_workers = isinstance(options.get("plan"), Plan)
            known[name] = train(family, **options) if says_workers else train(family, workers=1, **options)
        return known[name]

    return run
