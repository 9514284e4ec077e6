"""Workers that SLURM starts, on two nodes that are this machine."""

import json
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import samestep
import slurm
from samestep.launch.run.launcher import Launcher

TESTS = Path(__file__).parents[2]
JOB = f"{TESTS / 'jobs' / 'grids.py'}:mlp"
TRAIN = (sys.executable, "-m", "samestep", "train")

pytestmark = pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing()))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture(scope="module")
def digest(launcher: Launcher) -> str:
    """One worker's."""
    return samestep.train(JOB, workers=1, launcher=launcher).digest


def named() -> bool:
    """Whether this host's name, which the first node has too, leads somewhere."""
    try:
        return bool(socket.gethostbyname(slurm.HOST))
    except OSError:
        return False


def test_two_nodes_with_two_tasks_give_one_workers_digest(cluster: slurm.Cluster, digest: str) -> None:
    """They meet at the first node's name. One kernel and one network: one host, with shared memory."""
    place = {} if named() else {"MASTER_ADDR": "127.0.0.1"}
    ended = cluster.run("srun", "--nodes=2", "--ntasks-per-node=2", *TRAIN, JOB, "--json", **place)
    assert ended.code == 0, ended.err
    [line] = ended.out.splitlines()
    assert json.loads(line)["digest"] == digest
    assert "4 workers (processes), 1 thread each, shards 2+2+2+2" in ended.err


def test_a_node_whose_name_leads_nowhere_is_refused_at_once(cluster: slurm.Cluster) -> None:
    ended = cluster.run("srun", f"--nodelist={slurm.NODES[1]}", "--ntasks=2", *TRAIN, JOB)
    assert ended.code == 2
    assert f"does not know the host {slurm.NODES[1]} (MASTER_ADDR), where srun lets the workers meet" in ended.err
    assert "; set MASTER_ADDR to an address of worker 0's host" in ended.err


def test_a_task_that_fails_is_named_and_its_exit_code_is_sruns(cluster: slurm.Cluster) -> None:
    job = (TESTS / "jobs" / "mortal.py", "--set", "victim=1", "--set", "how=error", "--quiet")
    ended = cluster.run("srun", "--nodes=2", *TRAIN, *job, MASTER_ADDR="127.0.0.1")
    assert ended.code == 1
    assert len(re.findall(r"^worker 1 on host \S+ failed at step \d: ValueError: the reason$", ended.err, re.M)) == 1
    assert re.search(r"^worker 0 on host \S+ lost worker 1 .*: ValueError: the reason$", ended.err, re.M)


def test_the_batch_script_of_the_documents_trains(cluster: slurm.Cluster, digest: str, tmp_path: Path) -> None:
    """With one task per node instead of four. A command that srun does not start says that it is alone."""
    text = (TESTS.parent / "docs" / "hosts.md").read_text()
    [script] = re.findall(r"<!-- sbatch -->\n```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    shutil.copy(TESTS / "jobs" / "grids.py", tmp_path)
    (tmp_path / "job.py").write_text("from grids import mlp as job\n")
    (tmp_path / "script.sh").write_text(f"{script}\nsamestep train job.py --workers 1 --steps 1 --quiet\n")
    place = {} if named() else {"MASTER_ADDR": "127.0.0.1"}
    path = f"{Path(sys.executable).parent}:{slurm.PATH}"
    options = ("--wait", "--ntasks-per-node=1", "--output=out.txt")
    ended = cluster.run("sbatch", *options, "script.sh", folder=tmp_path, PATH=path, **place)
    out = (tmp_path / "out.txt").read_text()
    assert ended.code == 0, out
    assert f"digest {digest}" in out
    assert (tmp_path / "checkpoints" / "step-00000005").is_dir()
    assert "warning: this job of SLURM has 2 tasks, and this command is none of them" in out
