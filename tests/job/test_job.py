from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn, optim

from samestep.errors import JobRefused
from samestep.job.job import Job


def job(**fields: Any) -> Job:
    given_fields: dict[str, Any] = {
        "model": lambda: nn.Linear(4, 3),
        "loss": F.cross_entropy,
        "optimizer": lambda params: optim.SGD(params, lr=0.1),
        "data": (torch.zeros(20, 4), torch.zeros(20, dtype=torch.int64)),
        "batch_size": 8,
    }
    return Job(**{**given_fields, **fields})


def test_a_plain_job_passes() -> None:
    job().check()
    assert job().resolved_shards() == 1
    assert job(shards=3).resolved_shards() == 3
    assert job(batch_size=20).resolved_shards() == 2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no rows in a batch": ({"batch_size": 0}, "batch_size is 0"),
    "half a row": ({"batch_size": 2.5}, "batch_size is 2.5"),
    "True rows": ({"batch_size": True}, "batch_size is True"),
    "no epochs": ({"epochs": 0}, "epochs is 0"),
    "negative steps": ({"steps": -1}, "steps is -1"),
    "no shards": ({"shards": 0}, "shards is 0"),
    "a negative seed": ({"seed": -1}, "seed is -1"),
    "a batch larger than the data": ({"batch_size": 21}, "a batch of 21 rows is larger than the data set of 20"),
    "more shards than rows": ({"shards": 9}, "9 shards are more than the 8 rows"),
    "an unknown precision": ({"precision": "half"}, r"'half' \(known: float32, bfloat16\)"),
    "a norm of nothing": ({"clip_grad_norm": 0.0}, "clip_grad_norm is 0.0"),
    "a norm that is no number": ({"clip_grad_norm": float("nan")}, "clip_grad_norm is nan"),
    "an optimizer already made": ({"optimizer": optim.SGD([nn.Parameter(torch.zeros(1))])}, "Job.optimizer is a SGD"),
    "no model": ({"model": None}, "Job.model is a NoneType"),
    "loss and forward": ({"forward": lambda model, batch: 0}, "both given"),
    "neither": ({"loss": None}, "neither given"),
    "columns that differ": ({"data": (torch.zeros(20), torch.zeros(19))}, "columns of 20 and 19 rows"),
    "data without rows": ({"data": 3}, "Job.data is a int"),
    "held-out data without rows": ({"evaluate": 3}, "Job.evaluate is a int"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_be_seen_without_running_is_refused(what: str) -> None:
    fields, said = REFUSED[what]
    with pytest.raises(JobRefused, match=said):
        job(**fields).check()


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(3)


def frozen() -> nn.Module:
    return nn.Linear(2, 2).requires_grad_(False)


def on_meta() -> nn.Module:
    return nn.Linear(2, 2, device="meta")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (frozen, "no trainable parameter"),
        (nn.Sequential, "no trainable parameter"),
        (lambda: nn.Sequential(nn.Embedding(5, 2, sparse=True)), r"layer 0 \(Embedding\) has sparse gradients"),
        (lambda: nn.EmbeddingBag(5, 2, mode="sum", sparse=True), r"\(EmbeddingBag\) has sparse gradients"),
        (on_meta, "parameter weight is not on the CPU"),
        (lambda: torch.zeros(3), "made a Tensor, not a torch.nn.Module"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(model: Any, said: str) -> None:
    with pytest.raises(JobRefused, match=said):
        job(model=model).build_model()


def test_an_uninitialised_lazy_parameter_is_refused_by_name() -> None:
    with pytest.raises(JobRefused, match=r"parameter layer\.weight is lazy and not yet initialised \(2 such\)"):
        job(model=Lazy).build_model()


def test_a_sparse_buffer_is_refused_by_name() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("graph", torch.eye(3).to_sparse())
    with pytest.raises(JobRefused, match=r"graph is a sparse tensor \(torch.sparse_coo\)"):
        job(model=model).build_model()


def test_a_model_may_be_a_module_or_a_factory_and_is_put_into_training() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    assert job(model=module).build_model() is module
    assert all(part.training for part in module.modules())
    assert isinstance(job(model=lambda: nn.Linear(1, 1)).build_model(), nn.Linear)


@given(
    steps=st.none() | st.integers(1, 50),
    epochs=st.none() | st.integers(1, 9),
    rows=st.integers(8, 60),
    drop_last=st.booleans(),
)
def test_the_shorter_length_holds_and_one_epoch_without_any(
    steps: int | None, epochs: int | None, rows: int, drop_last: bool
) -> None:
    made = job(steps=steps, epochs=epochs, drop_last=drop_last)
    order = made.row_order(rows)
    per_epoch = rows // 8 if drop_last else -(-rows // 8)
    assert order.batches_per_epoch == per_epoch
    if steps is None and epochs is None:
        assert made.num_steps(order) == per_epoch
    else:
        assert made.num_steps(order) == min(steps or 10**9, (epochs or 10**9) * per_epoch)


def test_the_order_of_rows_follows_the_job() -> None:
    made = job(shuffle=False, seed=5).row_order(20)
    assert (made.num_rows, made.batch_size, made.seed, made.shuffle, made.drop_last) == (20, 8, 5, False, False)


def test_fields_are_named_only() -> None:
    with pytest.raises(TypeError):
        Job(nn.Linear(1, 1))  # type: ignore[call-arg, misc]


def test_data_of_any_kind_is_counted() -> None:
    class Squares:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, row: int) -> Tensor:
            return torch.tensor(row**2)

    for data in [{"a": torch.zeros(8)}, torch.zeros(8), Squares(), [torch.zeros(8), torch.zeros(8)]]:
        job(data=data).check()
        with pytest.raises(JobRefused, match="data set of 8 rows"):
            job(data=data, batch_size=9).check()
