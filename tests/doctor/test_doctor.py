"""The doctor: the real command, what it prints where."""

import json
from pathlib import Path

import pytest

from commands import Command, Ended
from samestep.doctor.facts import MachineSpeed
from samestep.doctor.facts_text import as_text
from samestep.doctor.inspect_machine import inspect_machine
from samestep.launch.environment import SHOWN, launchers_seen, physical_cores, shown_variables
from samestep.plan.cluster import Cluster
from samestep.system.control_groups import ControlGroup
from samestep.system.json_values import value_from

SECRET = "a-word-that-nobody-may-see"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doctor")


@pytest.fixture(scope="module")
def told(folder: Path) -> Ended:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        patch.setenv("OMP_NUM_THREADS", "1")
        return Command(folder).run("doctor", "--json", cold=True)


def test_the_json_has_every_fact_and_what_was_measured(told: Ended) -> None:
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert set(found) == set(inspect_machine(None).as_json())
    assert found["failure"] is None
    assert found["versions"]["torch"]
    assert found["environment"]["OMP_NUM_THREADS"] == "1"
    measured = value_from(MachineSpeed, found["measured"])
    assert measured.threads == physical_cores()
    assert min(measured.copy, measured.copy_all, measured.products, measured.products_all) > 0
    assert min(measured.links.exchange, measured.links.fence, measured.links.send.link.bandwidth) > 0


def test_no_secret_is_told(told: Ended) -> None:
    assert SECRET not in told.out + told.err
    assert not [name for name in SHOWN if any(word in name for word in ("TOKEN", "KEY", "SECRET", "PASS", "ADDR"))]
    assert shown_variables({"HF_TOKEN": SECRET, "RANK": "3"}) == {"RANK": "3"}


def test_the_text_says_what_the_facts_are(told: Ended) -> None:
    facts = inspect_machine(value_from(MachineSpeed, json.loads(told.out)["measured"]))
    text = as_text(facts)
    for room in ("versions", "machine", "limits", "environment", "launchers", "network", "measured"):
        assert f"{room}\n" in text
    assert f"{facts.processor.physical} physical, {facts.processor.logical} logical" in text
    assert str(facts.versions["torch"]) in text
    assert "between two workers" in text


def test_the_cluster_is_a_file_of_this_machine(folder: Path) -> None:
    ended = Command(folder).run("doctor", "--cluster", cold=True)
    assert ended.code == 0, ended.err
    cluster = Cluster.parse(ended.out)
    assert [host.workers for host in cluster.hosts] == [physical_cores()]
    assert cluster.within is not None
    assert "Links between hosts were not measured" in ended.out
    filled = ended.out.replace("# [between]", "[between]").replace("# latency", "latency")
    assert Cluster.parse(filled.replace("# bandwidth", "bandwidth")).between is not None


def test_what_cannot_be_measured_is_said_and_the_rest_is_told(folder: Path) -> None:
    (folder / "broken").mkdir()
    (folder / "broken" / "torch.py").write_text("raise ImportError('no libtorch here')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "broken"), prepend=":")
        text, cluster = (Command(folder).run("doctor", *options, cold=True) for options in ((), ("--cluster",)))
    assert text.code == 0
    assert "the process that measures ended: ImportError: no libtorch here" in text.out
    assert "versions\n" in text.out
    assert (cluster.code, cluster.out) == (1, "")
    assert "no libtorch here" in cluster.err


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    facts = inspect_machine(None, "not measured", root=tmp_path)
    assert facts.control_group == ControlGroup()
    assert (facts.memory.shared, facts.limits.ports) == (None, None)
    assert "control group  none; CPU: no quota; memory: no limit" in as_text(facts)
    assert "failed  not measured" in as_text(facts)


def test_launchers_are_known_by_their_variables() -> None:
    assert launchers_seen({}) == ()
    assert launchers_seen({"SLURM_JOB_ID": "1", "TORCHELASTIC_RUN_ID": "x"}) == ("torchrun", "SLURM")
