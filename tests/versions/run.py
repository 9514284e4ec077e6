"""The lowest and the highest torch that samestep accepts, each in an environment of its own: `make test-versions`.

Environments stay in `.venv-versions/` and are made again when what is pinned changes. Each runs a reduced suite and the
two examples of `make train`, whose digests must be equal on two workers and on one. Arguments choose other versions:
`python tests/versions/run.py 3.12:2.13.0`.
"""

import hashlib
import itertools
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv-versions"
PAIRS = ("3.11:2.12.1", "3.13:2.14.1")  # Python, torch
TRANSPARENCY = "tests/transparency/test_transparency.py"
REDUCED = (
    *("tests/numerics", "tests/state", "tests/system/test_onednn.py", "tests/system/test_private_names.py"),
    *("tests/parallel/gradients", "tests/launch/request/test_known_kernels.py", "tests/training/test_resume.py"),
    *("tests/transparency/test_plain_step.py", f"{TRANSPARENCY}::test_digest_is_the_same_for_any_assignment"),
    f"{TRANSPARENCY}::test_every_optimizer_is_resumed",
    f"{TRANSPARENCY}::test_the_numerics_line_and_the_plan_reproduce_a_run",
)
PATIENCE = 1800  # seconds for one command


def environment(python: str, torch: str) -> Path:
    """The folder of an environment, made where there is none or where what is pinned has changed."""
    folder = HOME / f"python{python}-torch{torch}"
    pinned = [
        line for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if not line.startswith("torch==")
    ]
    text = "\n".join([*pinned, (ROOT / "pyproject.toml").read_text()])
    stamp, wanted = folder / ".ready", hashlib.sha256(text.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    interpreter = shutil.which(f"python{python}")
    if interpreter is None:
        raise FileNotFoundError(f"there is no python{python} on this machine")
    say(f"making {folder.relative_to(ROOT)}")
    if not (folder / "bin" / "python").exists():
        call([interpreter, "-m", "venv", folder])
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    call([*pip, f"torch=={torch}"])
    (folder / "pins.txt").write_text("\n".join(pinned))
    call([*pip, "-r", folder / "pins.txt", f"torch=={torch}"])
    call([*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT])
    stamp.write_text(wanted)
    return folder


def call(command: list[object]) -> str:
    """Output of a command. Raises CalledProcessError."""
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        print(done.stdout[-8000:], done.stderr[-4000:], file=sys.stderr, flush=True)
        done.check_returncode()
    return done.stdout


def say(text: str) -> None:
    print(text, flush=True)


def tried(python: str, torch: str) -> bool:
    """Run the suite and the examples; returns whether all is well."""
    name = f"Python {python}, torch {torch}"
    try:
        folder = environment(python, torch)
    except FileNotFoundError as error:
        say(f"{name}: left out, {error}")
        return True
    run = folder / "bin" / "python"
    try:
        began = time.monotonic()
        suite = call([run, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", *REDUCED])
        say(f"{name}: {suite.strip().splitlines()[-1]} ({time.monotonic() - began:.0f} s)")
        for line in call([run, ROOT / "examples" / "compare.py"]).strip().splitlines():
            say(f"{name}: {line}")
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        say(f"{name}: FAILED, {error}")
        return False
    return True


def main() -> int:
    pairs = [pair.split(":") for pair in sys.argv[1:] or PAIRS]
    return 0 if all(list(itertools.starmap(tried, pairs))) else 1


if __name__ == "__main__":
    sys.exit(main())
