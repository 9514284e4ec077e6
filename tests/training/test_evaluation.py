import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.data.rows import TensorRows
from samestep.errors import JobRefused
from samestep.job.metrics import Metric, Predictions, accuracy
from samestep.job.objective import Objective
from samestep.training.evaluation import evaluate
from samestep.transport.threads import ThreadFabric
from samestep.transport.transport import Transport

ROWS = 45
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(ROWS, 6, generator=GENERATOR), torch.randint(0, 3, (ROWS,), generator=GENERATOR)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()


def on_workers(size: int, work: Callable[[Transport], Any]) -> list[Any]:
    """What `work` returns in each of `size` threads; raises what the first failing one raised."""
    fabric = ThreadFabric(size)
    results: list[Any] = [None] * size
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        transport = fabric.endpoint(rank)
        try:
            results[rank] = work(transport)
        except BaseException as failure:  # noqa: BLE001 - raised below
            failures.append(failure)
        finally:
            transport.close()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


def evaluated(size: int, metrics: dict[str, Metric], piece_rows: int = 8, loss: Any = None) -> dict[str, float]:
    objective = Objective(loss or nn.CrossEntropyLoss(), None)
    rows = TensorRows((X, Y))
    found = on_workers(
        size, lambda transport: evaluate(model(), objective, rows, piece_rows, metrics, transport, seed=1, step=2)
    )
    assert len({str(result) for result in found}) == 1, "workers disagree"
    return found[0]


def rank_sum(outputs: Tensor, targets: Tensor) -> float:
    """A metric that needs all rows at once, and their order."""
    assert outputs.shape == (ROWS, 3)
    assert torch.equal(targets, Y)
    return float((outputs[:, 0].argsort().argsort() * torch.arange(ROWS)).sum())


def wild(outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """Sums of such different sizes that every order of addition gives other bits."""
    return outputs.double().sum() * 10.0 ** (int(targets.sum()) % 17), 1


METRICS: dict[str, Metric] = {"accuracy": accuracy, "wild": wild, "ranks": Predictions(rank_sum)}


@pytest.mark.parametrize("piece_rows", [1, 7, 8, 45, 100])
@pytest.mark.parametrize("size", [2, 3])
def test_metrics_do_not_depend_on_the_workers(size: int, piece_rows: int) -> None:
    """Bit for bit, also with more workers than pieces and with a short last piece."""
    assert evaluated(size, METRICS, piece_rows) == evaluated(1, METRICS, piece_rows)


def test_metrics_are_those_of_the_whole_set() -> None:
    whole = model().eval()
    with torch.no_grad():
        outputs = whole(X)
    found = evaluated(2, METRICS)
    assert found["loss"] == pytest.approx(float(F.cross_entropy(outputs, Y)), rel=1e-6)
    assert found["accuracy"] == float((outputs.argmax(1) == Y).float().mean(dtype=torch.float64))
    assert found["ranks"] == rank_sum(outputs, Y)
    assert list(found) == ["loss", "accuracy", "wild", "ranks"]


@pytest.mark.parametrize("size", [1, 3])
def test_every_row_counts_exactly_once(size: int) -> None:
    seen: list[Tensor] = []

    def rows_seen(outputs: Tensor, targets: Tensor) -> tuple[float, float]:
        seen.append(outputs)
        return float(len(targets)), 1.0

    assert evaluated(size, {"rows": rows_seen}, 10)["rows"] == ROWS / 5
    assert sum(len(part) for part in seen) == ROWS
    assert len(torch.unique(torch.cat(seen), dim=0)) == ROWS


def test_a_mean_loss_is_weighted_by_rows_and_a_sum_divided_by_them() -> None:
    target = nn.functional.one_hot(Y, 3).float()

    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, F.one_hot(targets, 3).float())

    with torch.no_grad():
        outputs = model().eval()(X)
    assert evaluated(2, {}, 7, mean)["loss"] == pytest.approx(float(F.mse_loss(outputs, target)))


def test_a_job_with_a_forward_of_its_own() -> None:
    def forward(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    def right(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return (model(batch[0]).argmax(1) == batch[1]).sum(), len(batch[1])

    rows = TensorRows((X, Y))
    found = on_workers(
        2,
        lambda transport: evaluate(
            model(), Objective(None, forward), rows, 7, {"right": right}, transport, seed=0, step=0
        ),
    )
    expected = evaluated(1, {"right": accuracy}, 7)
    assert found == [pytest.approx(expected)] * 2


def test_evaluation_leaves_the_model_in_training_with_its_statistics_and_no_gradient() -> None:
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = []
    net.register_forward_hook(lambda *_: modes.append((net.training, torch.is_grad_enabled())))
    evaluate(net, Objective(nn.CrossEntropyLoss(), None), TensorRows((X, Y)), 9, {}, ThreadFabric(1).endpoint(0), 0, 0)
    assert modes == [(False, False)] * 5
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.is_grad_enabled()


def test_random_numbers_in_evaluation_are_keyed_by_piece() -> None:
    def noisy(outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        return torch.rand(()), 1

    assert evaluated(3, {"noise": noisy}) == evaluated(1, {"noise": noisy})


def test_nothing_that_counts_gives_no_number() -> None:
    found = evaluated(2, {"nothing": lambda outputs, targets: (0.0, 0)})
    assert found["nothing"] != found["nothing"]


def test_predictions_need_outputs_that_stand_apart() -> None:
    metric = {"ranks": Predictions(rank_sum)}
    objective = Objective(None, lambda model, batch: (torch.zeros(()), 1))
    with pytest.raises(JobRefused, match="needs the model's outputs as one tensor"):
        evaluate(model(), objective, TensorRows((X, Y)), 9, metric, ThreadFabric(1).endpoint(0), 0, 0)
