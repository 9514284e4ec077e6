"""A launcher whose fork server has the models' libraries already: a run then begins in a tenth of a second."""

import sys
from collections.abc import Sequence
from pathlib import Path

from samestep.launch.run import launcher
from samestep.launch.run.launcher import Launcher

TESTS = Path(__file__).parents[1]


def warm_launcher(models: Sequence[str]) -> Launcher:
    """models: those that the server makes once, which imports what they need."""
    plainly = launcher.SERVER
    first = f"import sys; sys.path.insert(0, {str(TESTS)!r}); sys.path.append(sys.argv[1]); "
    first += f"from models.warm_launcher import make; make({list(models)!r}); "
    launcher.SERVER = first + plainly
    try:
        return Launcher()
    finally:
        launcher.SERVER = plainly


def make(models: Sequence[str]) -> None:
    import warnings

    from models.catalogue import specimen

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in models:
            try:
                specimen(name).made()
            except Exception as error:  # noqa: BLE001 - said where it is trained
                print(f"{name}: {error}", file=sys.stderr)
