"""Recorded and replayed initial values are those of an ordinary build, and only what is owned takes memory."""

import copy
import importlib
import math
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from samestep.errors import JobRefused
from samestep.numerics import random_streams
from samestep.parallel.lazy_init import lazy_replay
from samestep.parallel.lazy_init.lazy_replay import LazyModel, record_factory

Build = Callable[[], nn.Module]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 10))


def cnn() -> nn.Module:
    channels_last = nn.Conv2d(8, 64, 7).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), channels_last)


def lstm() -> nn.Module:
    return nn.LSTM(20, 130, 2, bidirectional=True)


def attention() -> nn.Module:
    return nn.MultiheadAttention(160, 4, kdim=32, vdim=32, add_bias_kv=True)


def embedding() -> nn.Module:
    return nn.Embedding(1000, 64, padding_idx=3)


def encoder() -> nn.Module:
    """Its layers are deep copies of one."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(96, 4, 300, batch_first=True), 2, norm=nn.LayerNorm(96))


def half() -> nn.Module:
    return mlp().half()


def double() -> nn.Module:
    return GPT().to(torch.float64)


def other_default_dtype() -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return GPT()
    finally:
        torch.set_default_dtype(before)


class GPT(nn.Module):
    """Tied head, a computed mask, and every weight drawn a second time at the end, as Hugging Face models do."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(300, 64)
        self.blocks = nn.ModuleList(nn.Linear(64, 300) for _ in range(3))
        self.head = nn.Linear(64, 300, bias=False)
        self.head.weight = self.wte.weight
        self.register_buffer("mask", torch.tril(torch.ones(300, 300)).bool())
        self.apply(self.init)
        for block in self.blocks:
            with torch.no_grad():
                block.weight.div_(math.sqrt(6.0))

    def init(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0, 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def orthogonal() -> nn.Module:
    model = mlp()
    for param in model.parameters():
        if param.ndim > 1:
            nn.init.orthogonal_(param)
    return model


def truncated() -> nn.Module:
    model = mlp()
    for param in model.parameters():
        nn.init.trunc_normal_(param, std=0.02)
    nn.init.trunc_normal_(model[0].weight, a=0.5, b=0.7)  # type: ignore[index]
    return model


def other_inits() -> nn.Module:
    model = nn.Sequential(cnn(), mlp(), mlp())
    nn.init.dirac_(model[0][0].weight)  # type: ignore[index]
    nn.init.eye_(model[1][0].weight)  # type: ignore[index]
    nn.init.sparse_(model[2][0].weight, 0.1)  # type: ignore[index]
    nn.init.kaiming_normal_(model[1][2].weight)  # type: ignore[index]
    nn.init.constant_(model[1][2].bias, 0.1)  # type: ignore[index]
    return model


def parametrized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = nn.utils.weight_norm(nn.Linear(200, 100))
    layers = [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
    return nn.Sequential(old, *(layer(nn.Linear(200, 100)) for layer in layers))


class Computed(nn.Module):
    """Parameters and buffers made from other tensors."""

    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Parameter(torch.linspace(0, 1, 30000))
        self.decay = nn.Parameter(torch.full((30000,), 0.999).cumprod(0), requires_grad=False)
        self.weight = nn.Parameter(torch.randn(200, 200) / math.sqrt(200))
        self.weight.data[:10] = 0
        self.weight.data[5].uniform_()
        self.other = nn.Parameter(self.weight.data.t().clone())
        self.both = nn.Parameter(torch.cat([self.weight.data, self.other.data]))
        self.view = nn.Parameter(self.weight.data[:5])
        self.small = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("inverse", 1 / (10000 ** (torch.arange(0, 64, 2).float() / 64)))
        self.register_buffer("random", torch.randn(200, 200), persistent=False)
        self.cache = torch.outer(torch.arange(2000).float(), self.inverse).cos()
        self.drops = [x.item() for x in torch.linspace(0, 0.1, 12)] + torch.arange(5).tolist()
        self.drop = nn.Dropout(random.random())
        self.numpy = nn.Parameter(torch.from_numpy(np.random.rand(100, 200)))


def computed() -> nn.Module:
    return Computed()


def copied() -> nn.Module:
    model = Computed()
    return nn.ModuleList([model, copy.deepcopy(model)])


def loaded() -> nn.Module:
    first, second = mlp(), mlp()
    state = {name: torch.from_numpy(np.random.rand(*t.shape).astype("f4")) for name, t in first.state_dict().items()}
    first.load_state_dict(state)
    second.load_state_dict(state, assign=True)
    return nn.ModuleList([first, second])


def seeded_inside() -> nn.Module:
    """The factory seeds, goes back to earlier states, and has a generator of its own."""
    layers = [nn.Linear(200, 100)]
    torch.manual_seed(3)
    layers.append(nn.Linear(200, 100))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        layers.append(nn.Linear(200, 100))
    layers.append(nn.Linear(200, 10))
    torch.manual_seed(3)
    layers.append(nn.Linear(200, 100))
    own = torch.Generator().manual_seed(4)
    for layer in layers[:3]:
        nn.init.normal_(layer.weight, generator=own)
    own.manual_seed(4)
    nn.init.normal_(layers[3].weight, generator=own)
    return nn.Sequential(*layers)


def reading() -> nn.Module:
    """Reads values that come from the generator, and decides by them."""
    model = GPT()
    layers: list[nn.Module] = [model, nn.Linear(200, 200), nn.Dropout(torch.rand(1).item())]
    sign = bool(model.wte.weight.sum() > 0)
    layers.append(nn.Linear(100, 300) if sign else nn.Linear(300, 100))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        forked = nn.Linear(300, 300)
        sign = bool(forked.weight[0, 0] > 0)
    layers += [forked, nn.Linear(300, 300) if sign else nn.Linear(200, 400)]
    host = nn.ParameterList([torch.from_numpy(forked.weight.detach().numpy() * 2)])
    host.append(torch.rand(100)[torch.randperm(100).tolist()])
    host.append(torch.randn(200, 200)[torch.rand(200) > 0.5])
    host.append(torch.full((3,), layers[2].p))  # type: ignore[arg-type]
    return nn.ModuleList([*layers, host])


ZOO: list[Build] = [
    mlp, cnn, lstm, attention, embedding, encoder, GPT, half, double, other_default_dtype, orthogonal, truncated,
    other_inits, parametrized, computed, copied, loaded, seeded_inside, reading,
]  # fmt: skip

HUGGING_FACE = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 500}),
    "bert": ("BertForMaskedLM", "BertConfig", {"vocab_size": 500}),
    "vit": ("ViTForImageClassification", "ViTConfig", {"image_size": 32, "patch_size": 8}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"vocab_size": 500}),
    "t5": ("T5ForConditionalGeneration", "T5Config", {"vocab_size": 500, "d_model": 128, "num_layers": 2, "d_ff": 256}),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", {"depths": [1, 1, 1, 1]}),
}


def hugging_face(name: str) -> nn.Module:
    transformers = importlib.import_module("transformers")
    model, config, settings = HUGGING_FACE[name]
    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    sized = settings if name in ("gpt2", "t5", "convnext") else settings | size
    built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**sized))
    return built


@cache
def plainly(build: Build) -> tuple[nn.Module, Tensor]:
    """An ordinary build, and where it left the generator."""
    random_streams.enter(0, "model")
    return build(), torch.get_rng_state()


def recorded(build: Build) -> LazyModel:
    random_streams.enter(0, "model")
    return record_factory(build)


def replayed(recording: LazyModel, names: set[str]) -> dict[str, Tensor]:
    """Each wanted parameter's memory, filled."""
    params = dict(recording.model.named_parameters())
    places = {
        name: torch.empty_strided(params[name].shape, params[name].stride(), dtype=params[name].dtype) for name in names
    }
    random_streams.enter(0, "model")
    recording.replay(places.get)
    return places


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors in plain attributes."""
    for prefix, module in model.named_modules():
        yield from ((f"{prefix}.{name}", value) for name, value in vars(module).items() if isinstance(value, Tensor))


def check_against_plain(build: Build, recording: LazyModel, places: dict[str, Tensor]) -> None:
    plain, state = plainly(build)
    assert torch.equal(torch.get_rng_state(), state), "the generator ends elsewhere"
    params = dict(plain.named_parameters())
    for name, place in places.items():
        assert torch.equal(place, params[name]), f"{name} differs"
    buffers = dict(recording.model.named_buffers())
    for name, buffer in plain.named_buffers():
        assert (buffers[name].dtype, buffers[name].stride()) == (buffer.dtype, buffer.stride()), name
        assert torch.equal(buffers[name], buffer), f"{name} differs"
    plains, mine = dict(tensors_of(plain)), dict(tensors_of(recording.model))
    parametrized_weights = {name for name, tensor in plains.items() if tensor.requires_grad}
    for name in plains.keys() - parametrized_weights:
        assert torch.equal(plains[name], mine[name]), f"{name} differs"


def check_whole(build: Build) -> None:
    recording = recorded(build)
    plain, _ = plainly(build)
    mine = dict(recording.model.named_parameters(remove_duplicate=False))
    theirs = dict(plain.named_parameters(remove_duplicate=False))
    assert list(mine) == list(theirs)
    for name, param in theirs.items():
        other = mine[name]
        assert type(other) is nn.Parameter
        assert other.device.type == "cpu"
        assert (other.shape, other.stride(), other.dtype) == (param.shape, param.stride(), param.dtype), name
        assert other.requires_grad == param.requires_grad
        ties = {also for also, p in theirs.items() if p is param}
        assert ties == {also for also, p in mine.items() if p is other}, f"{name} is tied otherwise"
    check_against_plain(build, recording, replayed(recording, {n for n, _ in recording.model.named_parameters()}))


@pytest.mark.parametrize("build", ZOO, ids=lambda build: build.__name__)
def test_replay_of_everything_is_an_ordinary_build(build: Build) -> None:
    check_whole(build)


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face_models_replay_as_they_are_built(name: str) -> None:
    pytest.importorskip("transformers", reason="Hugging Face's models are not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_whole(partial(hugging_face, name))


@given(st.sampled_from(ZOO), st.data())
def test_any_subset_gets_the_same_values(build: Build, data: st.DataObject) -> None:
    recording = recorded(build)
    names = sorted(name for name, _ in recording.model.named_parameters())
    wanted = data.draw(st.sets(st.sampled_from(names)))
    check_against_plain(build, recording, replayed(recording, wanted))


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    normal=st.booleans(),
    piece=st.sampled_from([16, 64, 256]),
)
def test_what_nobody_reads_is_drawn_in_pieces(
    rows: int, columns: int, dtype: torch.dtype, normal: bool, piece: int
) -> None:
    """A worker that owns the last layer only needs the memory of a piece for those before."""

    def build() -> nn.Module:
        first = nn.Linear(columns, rows, dtype=dtype)
        (nn.init.normal_ if normal else nn.init.uniform_)(first.weight)
        return nn.Sequential(first, nn.Linear(3, 3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy_replay, "PIECE", piece)
        recording = recorded(build)
        check_against_plain(build, recording, replayed(recording, {"1.weight", "1.bias"}))


def test_a_recording_can_be_replayed_again() -> None:
    recording = recorded(computed)
    names = {name for name, _ in recording.model.named_parameters()}
    for wanted in (names, {"both"}, names):
        check_against_plain(computed, recording, replayed(recording, wanted))


def test_a_destination_may_have_other_strides() -> None:
    recording = recorded(mlp)
    place = torch.empty(200, 300).t()
    random_streams.enter(0, "model")
    recording.replay({"0.weight": place}.get)
    assert torch.equal(place, plainly(mlp)[0].get_parameter("0.weight"))


def test_optimizers_take_the_recorded_parameters() -> None:
    model = recorded(GPT).model
    matrices = [param for param in model.parameters() if param.ndim >= 2]
    optimizer = torch.optim.AdamW([{"params": matrices}], fused=True)
    assert len(optimizer.param_groups[0]["params"]) == len(matrices)


def test_recording_8_gb_takes_no_memory() -> None:
    before = psutil.Process().memory_info().rss
    recording = record_factory(lambda: nn.Sequential(*(nn.Linear(16384, 16384) for _ in range(8))))
    assert sum(param.nbytes for param in recording.model.parameters()) > 8e9
    assert psutil.Process().memory_info().rss - before < 50e6


def test_a_changed_constant_that_is_read_is_refused_with_its_place() -> None:
    def build() -> nn.Module:
        weight = torch.from_numpy(np.ones((200, 200)))
        weight.add_(torch.randn(200, 200))
        weight.numpy()
        return nn.Linear(1, 1)

    with pytest.raises(JobRefused, match=r"reads its values at .*test_lazy_replay\.py:\d+: change a clone"):
        record_factory(build)


def test_a_sparse_tensor_is_refused_with_its_place() -> None:
    with pytest.raises(JobRefused, match=r"makes a sparse tensor at .*test_lazy_replay\.py:\d+"):
        record_factory(lambda: nn.ParameterList([torch.eye(3).to_sparse()]))


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
from samestep.parallel.lazy_init.lazy_replay import record_factory

torch.set_num_threads(1)

def plain():
    return nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(24)))

def drawn_twice():
    model = plain()
    for param in model.parameters():
        nn.init.normal_(param, 0, 0.02)
    return model

def functional():
    return nn.ParameterList([torch.randn(2048, 2048) for _ in range(24)])

def limit_to(nbytes):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now = 1024 * int(status["VmData"].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (now + nbytes, now + nbytes))

build, how = locals()[sys.argv[1]], sys.argv[2]
largest = 2048 * 2048 * 4
record_factory(lambda: nn.Linear(300, 300)).replay(lambda name: None)  # what torch itself allocates once
limit_to(6 * largest + 2 * largest + 8_000_000)
if how == "whole":
    build()
else:
    recording = record_factory(build)
    names = [name for name, _ in recording.model.named_parameters()]
    recording.replay({name: torch.empty(2048, 2048) for name in names[6:12]}.get)
print("done")
"""


def limited(build: str, how: str) -> subprocess.CompletedProcess[str]:
    # Freed memory goes back at once, so that the limit is on what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-c", LIMITED, build, how]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("build", ["plain", "drawn_twice", "functional"])
def test_a_quarter_fits_where_the_whole_does_not(build: str) -> None:
    """A model of 400 MB under a limit of a quarter and two parameters more."""
    done = limited(build, "quarter")
    assert done.stdout == "done\n", done.stderr


def test_the_whole_does_not_fit_under_that_limit() -> None:
    assert "can't allocate memory" in limited("plain", "whole").stderr
