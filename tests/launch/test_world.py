"""What the variables of launchers say, and what they leave out."""

import re

import pytest

from samestep.errors import PlanRefused
from samestep.launch.environment import SLURM_PORTS, World, first_node, world_of

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "run1",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
RAY = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
SRUN = {
    "SLURM_JOB_ID": "20007",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[03-04]",
}
POD = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "1",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "digits-node-0-0.digits",
    "PET_MASTER_PORT": "29400",
}


def test_every_launcher_tells_who_this_is_and_where_all_meet() -> None:
    assert world_of(TORCHRUN) == World("torchrun", 3, 4, "a", 29500, "run1", 2, joins_store=True)
    assert world_of(RAY) == World("the environment", 3, 4, "a", 29500, "none", 0, joins_store=False)
    port = SLURM_PORTS[20007 % len(SLURM_PORTS)]
    assert world_of(SRUN) == World("srun", 3, 4, "node03", port, "20007.1", 0, joins_store=False)
    assert world_of(POD) == World("Kubernetes", 1, 2, "digits-node-0-0.digits", 29400, "none", 0, joins_store=False)


def test_without_a_launcher_there_are_no_others() -> None:
    assert world_of({}) is None
    assert world_of({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}) is None, "inside a job, and no task of it"
    assert world_of(SRUN | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert world_of(POD | {"PET_NNODES": "1"}) is None


def test_torchruns_word_counts_inside_a_task_of_srun() -> None:
    found = world_of(SRUN | TORCHRUN)
    assert found is not None
    assert found.launcher == "torchrun"


def test_a_job_of_slurm_that_was_requeued_is_another_epoch_and_may_name_the_place() -> None:
    found = world_of(SRUN | {"SLURM_RESTART_COUNT": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert found is not None
    assert (found.epoch, found.address, found.port) == (1, "10.0.0.1", 29500)


@pytest.mark.parametrize(("variables", "missing"), [(RAY, "MASTER_ADDR"), (RAY, "RANK"), (POD, "PET_NODE_RANK")])
def test_what_is_missing_is_named(variables: dict[str, str], missing: str) -> None:
    with pytest.raises(PlanRefused, match=f"has set .* and not {missing}: set it too"):
        world_of({name: text for name, text in variables.items() if name != missing})


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(PlanRefused, match="have 'three' where a number belongs"):
        world_of(TORCHRUN | {"RANK": "three"})


@pytest.mark.parametrize("processes", ["4", "auto"])
def test_a_pod_for_several_processes_needs_torchrun(processes: str) -> None:
    with pytest.raises(PlanRefused, match=re.escape(f"{processes} processes (PET_NPROC_PER_NODE)")):
        world_of(POD | {"PET_NPROC_PER_NODE": processes})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("node[03-07,9],other", "node03"),
        ("gpu-1-[2,4]", "gpu-1-2"),
        ("n10,n[12-14]", "n10"),
    ],
)
def test_the_first_node_of_a_list_of_slurms(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
