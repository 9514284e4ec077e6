import pytest
import torch
from torch import nn

from samestep.job.metrics import accuracy, is_classification


def test_accuracy_counts_right_classes() -> None:
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    right, counted = accuracy(outputs, torch.tensor([1, 0, 0]))
    assert (int(right), int(counted)) == (2, 3)


def test_negative_targets_do_not_count_even_when_they_would_be_right() -> None:
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    right, counted = accuracy(outputs, torch.tensor([1, -100, -1]))
    assert (int(right), int(counted)) == (1, 1)


def test_accuracy_per_position() -> None:
    outputs = torch.zeros(2, 3, 4)  # rows, classes, positions
    outputs[:, 2] = 1.0
    targets = torch.full((2, 4), 2)
    targets[0, 0], targets[1, 3] = 0, -100
    right, counted = accuracy(outputs, targets)
    assert (int(right), int(counted)) == (6, 7)


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_sums_over_pieces_are_the_sum_over_all_rows(cut: int) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(20, 5, generator=generator)
    targets = torch.randint(-1, 5, (20,), generator=generator)
    pieces = [accuracy(o, t) for o, t in zip(outputs.split(cut), targets.split(cut), strict=True)]
    assert tuple(sum(int(part[i]) for part in pieces) for i in (0, 1)) == tuple(map(int, accuracy(outputs, targets)))


def test_classifiers_are_known_by_their_loss() -> None:
    assert is_classification(nn.CrossEntropyLoss())
    assert is_classification(nn.NLLLoss())
    assert not is_classification(nn.MSELoss())
    assert not is_classification(None)
