"""A loop of one's own over its own batches, in which worker 1 flips one bit of a constant that each worker has."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))

import torch
from flipping import BATCH, job

import samestep

flip = {"kind": "buffer", "tensor": 0, "at": 1, "bit": 20, "watched": False}
with samestep.Trainer(job, settings=flip, audit=4) as trainer:
    for _ in range(4):
        trainer.step((torch.randn(BATCH, 3, 10, 10), torch.randint(0, 5, (BATCH,))))
