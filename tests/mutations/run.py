"""Break the code on purpose, one place at a time: the tests that `make test` runs have to notice.

    make mutations                                        all of them
    .venv/bin/python tests/mutations/run.py tree clip     those whose name has one of these words

Each mutation is made in a copy of the tree, where the tests named with it then run. Exit code 1: one was missed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
COPIED = (
    "src",
    "tests",
    "pyproject.toml",
    "docs",
    "README.md",
    "CONTRIBUTING.md",
    "Makefile",
    "examples",
    "benchmarks",
)


def mutated(mutation: Mutation, folder: Path) -> Path:
    """A copy of the tree with one mutation. Raises LookupError when its text is not in the file exactly once."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)
    path = folder / "src" / "samestep" / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise LookupError(f"{mutation.name}: {mutation.file} has {text.count(mutation.old)} times {mutation.old!r}")
    path.write_text(text.replace(mutation.old, mutation.new))
    return folder


def failed_test(tree: Path, tests: tuple[str, ...]) -> str | None:
    """The first test that fails there; None when all pass. Raises RuntimeError when they cannot be run."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    env = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode not in (1, 2) or not failed:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[0].split(" - ")[0]


def main(words: list[str]) -> int:
    missed = 0
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    for mutation in chosen:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="samestep-mutation-") as folder:
            try:
                caught = failed_test(mutated(mutation, Path(folder)), mutation.tests) or "MISSED"
            except (LookupError, RuntimeError) as error:
                caught = f"MISSED, for it could not be tried: {error}"
        missed += caught.startswith("MISSED")
        print(f"{mutation.name}: {caught} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
