"""What a job's network consists of, for the planner."""

import dataclasses
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import samestep
from jobs import grids
from samestep.numerics import random_streams
from samestep.planner.cost.chain import Chain
from samestep.setup.laid_out_model import LaidOutModel
from samestep.setup.network_measurements import survey
from samestep.setup.parallelize import prepare
from samestep.system.json_values import value_from

FAMILIES = ("mlp", "cnn", "gpt", "resnet", "embedding", "encoder")


def prepared(job: samestep.Job) -> LaidOutModel:
    random_streams.enter(job.seed, "model")
    return prepare(job, job.build_model())


def chain(job: samestep.Job, slices: int | None = 4) -> Chain:
    return survey(job, prepared(job), slices)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_some_units(family: str) -> None:
    job = getattr(grids, family)()
    found = chain(job)
    names = [unit.name for unit in found.units]
    assert len(set(names)) == len(names) > 3
    own = prepared(job).model.parameters()
    assert found.parameters == sum(p.numel() * p.element_size() for p in own)
    assert found.units[0].crossing == found.units[0].crossing_back == 0
    assert all(unit.crossing > 0 for unit in found.units[1:])
    assert found.why_uncut is None
    assert (found.shards, found.batch_size) == (grids.SHARDS, grids.BATCH)


@pytest.mark.parametrize("family", FAMILIES)
def test_regions_lie_behind_one_another_and_have_names_of_units(family: str) -> None:
    found = chain(getattr(grids, family)(), 3)
    for region in found.regions:
        assert tuple(found.units[i].name for i in region.units) == region.layers
        assert region.slices <= 3
        assert 0 < region.parameters <= sum(found.units[i].parameters for i in region.units)
    assert all(a.units[-1] < b.units[0] for a, b in pairwise(found.regions))
    assert found.regions
    assert not {layer for region in found.regions for layer in region.layers} & set(found.why_whole)


def test_tied_weights_stay_whole() -> None:
    found = chain(grids.gpt())
    assert "tied" in found.why_whole["tokens"]
    assert "tied" in found.why_whole["head"]


@pytest.mark.parametrize("family", ["cnn", "gpt"])
def test_surveying_leaves_model_and_generators_as_they_were(family: str) -> None:
    job = getattr(grids, family)()
    found = prepared(job)
    before = {name: value.clone() for name, value in found.model.state_dict().items()}
    once = survey(job, found, 4)
    assert all(torch.equal(value, before[name]) for name, value in found.model.state_dict().items())
    assert all(param.grad is None for param in found.model.parameters())
    assert survey(job, found, 4) == once, "and the same comes out again"


class Reader(nn.Module):
    """A unit that is no Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(40, 8), nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.words(x))[0][:, -1])


def test_an_lstm_is_a_unit_that_stays_whole() -> None:
    found = chain(grids.job(model=Reader, data=(grids.words(5, 40), grids.LABELS), optimizer=grids.sgd))
    assert [unit.name for unit in found.units] == ["words", "lstm", "head"]
    assert "LSTM" in found.why_whole["lstm"]


class Bag(nn.Module):
    """One long row of words, and where each row begins."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(40, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag(x.flatten(), torch.arange(0, x.numel(), x.shape[1])))


def test_a_bag_with_offsets_stays_whole_and_can_be_cut_off() -> None:
    found = chain(grids.job(model=Bag, data=(grids.words(5, 40), grids.LABELS), optimizer=grids.sgd))
    assert [unit.name for unit in found.units] == ["bag", "head"]
    assert [region.layers for region in found.regions] == [("head",)]


class Chancy(grids.MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + random.random() * 1e-3)


class Numpy(grids.MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(np.abs(x.numpy())))


@pytest.mark.parametrize("model", [Chancy, Numpy])
def test_a_network_that_cannot_be_recorded_is_one_unit(model: type[nn.Module]) -> None:
    job = grids.job(model=model, data=(grids.numbers(grids.ROWS, 18), grids.LABELS), optimizer=grids.sgd)
    found = chain(job)
    (unit,) = found.units
    assert found.why_uncut
    assert found.regions == ()
    assert unit.parameters == chain(grids.mlp()).parameters
    assert unit.signature != chain(dataclasses.replace(grids.cnn(), sync_batchnorm=True)).units[0].signature


def test_synchronised_batchnorm_is_not_cut() -> None:
    found = chain(dataclasses.replace(grids.cnn(), sync_batchnorm=True))
    assert (len(found.units), found.regions) == (1, ())
    assert "all shards" in str(found.why_uncut)


def test_an_optimizer_that_looks_at_whole_parameters_forbids_slices_and_not_stages() -> None:
    found = chain(dataclasses.replace(grids.mlp(), optimizer=lambda params: optim.Adafactor(params)))
    assert found.regions == ()
    assert len(found.units) == 4
    assert not found.is_elementwise


def test_what_an_optimizer_keeps_is_counted() -> None:
    adam = chain(dataclasses.replace(grids.mlp(), optimizer=lambda params: optim.Adam(params)))
    assert (chain(grids.mlp()).state, adam.state) == (1.0, 2.0)


def test_batches_are_what_the_job_says() -> None:
    """A dict, its own forward, bfloat16."""
    given = {"x": grids.numbers(grids.ROWS, 18), "y": grids.LABELS}
    job = grids.job(
        model=grids.MLP, loss=None, data=given, optimizer=grids.sgd, precision="bfloat16",
        forward=lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"]),
    )  # fmt: skip
    found = chain(job)
    assert [unit.name for unit in found.units] == [unit.name for unit in chain(grids.mlp()).units]
    assert found.units[1].crossing < chain(grids.mlp()).units[1].crossing, "two bytes a number"


def test_a_chain_travels_as_json() -> None:
    for family in FAMILIES:
        found = chain(getattr(grids, family)())
        assert value_from(Chain, dataclasses.asdict(found)) == found


def test_a_layer_has_no_more_slices_than_outputs() -> None:
    found = chain(grids.mlp(), 8)
    assert {region.layers[0]: region.slices for region in found.regions} == {"body.0": 8, "body.5": 8, "head": 5}
    assert chain(grids.cnn(), 64).regions[0].slices == 8
