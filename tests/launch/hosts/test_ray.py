"""Ray Train calls `samestep.train` in workers of its own. Ray is large and no requirement: skipped without it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import samestep
from samestep.launch.run.launcher import Launcher

TESTS = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='no ray: pip install "ray[train]"')


@pytest.fixture
def session() -> Iterator[Path]:
    """Ray's folder; its sockets allow only a short name."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_the_script_of_the_documents_trains_to_one_workers_weights(
    tmp_path: Path, session: Path, launcher: Launcher
) -> None:
    """With two of Ray's workers on this machine instead of four anywhere."""
    text = (TESTS.parent / "docs" / "hosts.md").read_text()
    [script] = re.findall(r"<!-- ray -->\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    script = script.replace("/shared", str(tmp_path)).replace("num_workers=4", "num_workers=2")
    shutil.copy(TESTS / "jobs" / "grids.py", tmp_path)
    (tmp_path / "job.py").write_text("from grids import mlp as job\n")
    (tmp_path / "script.py").write_text(script)
    start = f"ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir={str(session)!r})"
    code = f"import ray, runpy; {start}; runpy.run_path('script.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "HOME": str(session)},  # results go to HOME
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    one = samestep.train(str(tmp_path / "job.py"), workers=1, launcher=launcher).state_dict()
    found = load_file(tmp_path / "weights.safetensors")
    assert found.keys() == one.keys()
    assert all(torch.equal(found[name], one[name]) for name in one)
