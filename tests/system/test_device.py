"""Workers on GPUs. Where there is none, the same path with the CPU's memory in the place of the GPU's."""

import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import samestep
from commands import Command, Ended
from samestep.errors import Refused
from samestep.launch.run.launcher import Launcher
from samestep.system.device import move_rest, to_device

TESTS = Path(__file__).parents[1]
JOB = TESTS / "jobs" / "grids.py"
META = torch.device("meta")  # the one other device that every torch has
WITHOUT = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
WITH = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: torch.cuda.is_available() is False")


def torchrun(folder: Path, processes: int, *arguments: object) -> Ended:
    own = ("--standalone", "--log-dir", folder / "logs", "--nproc-per-node", processes)
    return Command(folder).run(*own, *arguments, module="torch.distributed.run")


def digest_of(ended: Ended) -> str:
    assert ended.code == 0, ended.err
    return str(json.loads(ended.out.splitlines()[-1])["digest"])


@pytest.mark.parametrize(
    ("family", "workers", "options"),
    [
        ("mlp", 3, ()),
        ("mlp", 2, ("--codec", "int8@2")),
        ("cnn", 2, ("--plan", "hybrid")),
        ("gpt", 3, ("--plan", "pipeline")),
    ],
)
def test_workers_with_memories_of_their_own_give_one_workers_digest(
    launcher: Launcher, tmp_path: Path, family: str, workers: int, options: tuple[str, ...]
) -> None:
    """CNN: buffers, which other workers do not see either."""
    asked = dict(zip(options[::2], options[1::2], strict=True))
    plan = asked.get("--plan", "data")
    alone = {"plan": plan} if plan == "hybrid" else {}
    expected = samestep.train(f"{JOB}:{family}", workers=1, codec=asked.get("--codec"), launcher=launcher, **alone)
    script = TESTS / "scripts" / "own_memory.py"
    found = torchrun(tmp_path, workers, script, f"{JOB}:{family}", "--json", *options)
    assert digest_of(found) == expected.digest


class Pair(NamedTuple):
    x: Any
    y: Any


def test_tensors_in_any_nest_go_to_the_device() -> None:
    x = torch.ones(2)
    found = to_device({"pair": Pair(x, [x, "text"]), "ordered": OrderedDict(a=x), "none": None}, META)
    assert type(found["pair"]) is Pair
    assert type(found["ordered"]) is OrderedDict
    assert [found["pair"].x.device, found["pair"].y[0].device, found["ordered"]["a"].device] == [META] * 3
    assert (found["pair"].y[1], found["none"]) == ("text", None)
    assert to_device(x, torch.device("cpu")) is x


def test_a_model_goes_with_its_buffers_and_a_tensor_with_two_names_stays_one() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3, affine=False)
    )  # parameters cannot go to meta
    model[1].running_mean = model[0].running_mean
    move_rest(model, META)
    assert {buffer.device for buffer in model.buffers()} == {META}
    assert model[1].running_mean is model[0].running_mean


@WITHOUT
@pytest.mark.parametrize("how", ["command", "torchrun", "train", "Trainer"])
def test_no_gpu_is_refused_with_the_cure(tmp_path: Path, how: str) -> None:
    words = r"--device cuda: torch \S+ (is built without CUDA|sees no GPU on this host).*leave --device out"
    train = ("train", f"{JOB}:mlp", "--device", "cuda")
    own = f"import sys; sys.path.append({str(JOB.parent)!r}); import grids, samestep; "
    calls = {
        "train": f"samestep.train({f'{JOB}:mlp'!r}, device='cuda')",
        "Trainer": "samestep.Trainer(grids.mlp, device='cuda')",
    }
    if how == "torchrun":
        ended = torchrun(tmp_path, 2, "-m", "samestep", *train)
    elif how == "command":
        ended = Command(tmp_path).run(*train)
    else:
        ended = Command(tmp_path).run("-c", own + calls[how], module=None)
    assert ended.code == (2 if how == "command" else 1), ended.err  # torchrun's own, Python's own
    assert re.search(words, ended.err)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "--device 'tpu' is not known: it is one of cpu, cuda"),
        ({"device": "cuda", "memory_limit": 10**9}, "--memory-limit is for the host's memory"),
    ],
)
def test_what_no_gpu_can_do_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        samestep.train(f"{JOB}:mlp", **options)


def test_the_outline_of_a_gpus_plan_is_refused(tmp_path: Path) -> None:
    ended = Command(tmp_path).run("plan", f"{JOB}:mlp", "--device", "cuda")
    assert ended.code == 2
    assert "`samestep plan` and hosted workers look at the CPU only" in ended.err


@WITH
@pytest.mark.parametrize("family", ["mlp", "cnn", "gpt"])
def test_workers_on_gpus_give_one_gpus_digest(tmp_path: Path, family: str) -> None:
    train = ("train", f"{JOB}:{family}", "--device", "cuda", "--json")
    expected = digest_of(Command(tmp_path).run(*train))
    assert digest_of(Command(tmp_path).run(*train)) == expected
    assert digest_of(torchrun(tmp_path, 2, "-m", "samestep", *train)) == expected
