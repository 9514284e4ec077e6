"""A loop of one's own: `own_loop.py WHAT FOLDER`; worker 0 prints what it found as JSON."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

import samestep
from jobs import grids

WHAT, FOLDER = sys.argv[1], Path(sys.argv[2])


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(40, 6, generator=generator), torch.randint(0, 3, (40,), generator=generator)


def own_batches() -> samestep.Job:
    """No data: the loop brings them. An odd last batch."""
    return samestep.Job(
        model=lambda: nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.1), nn.Linear(9, 3)), loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, 0.1, momentum=0.9), batch_size=16, shards=4,
    )  # fmt: skip


def main() -> dict[str, object]:
    if WHAT == "own batches":
        trainer = samestep.Trainer(own_batches)
        x, y = rows()
        losses = [trainer.step((a, b)).loss for a, b in zip(x.split(16), y.split(16), strict=True)]
        return {"digest": trainer.digest(), "losses": losses, "rank": trainer.rank}
    if WHAT == "raises":
        with samestep.Trainer(grids.mlp, timeout=60) as trainer:
            for step in trainer.steps():
                if step.number == 1 and trainer.rank == trainer.size - 1:
                    raise ValueError("the disk is full")
    options = {"plan": "hybrid"} if WHAT == "hybrid" else {}
    if WHAT == "resumed":
        options = {"checkpoint": FOLDER, "resume": True}
    trainer = samestep.Trainer(grids.cnn, **options)
    losses = []
    for step in trainer.steps():
        losses.append(step.loss)
        if WHAT == "stops" and step.number == 1:
            trainer.checkpoint(FOLDER)
            break
    if WHAT == "saves":
        trainer.save(FOLDER / "weights.safetensors")
    return {
        "digest": trainer.digest(), "losses": losses, "rank": trainer.rank, "size": trainer.size,
        "metrics": trainer.evaluate(), "steps": trainer.step_number,
    }  # fmt: skip


if __name__ == "__main__":
    found = main()
    if found["rank"] == 0:
        print(json.dumps(found))
