"""samestep: an ordinary PyTorch training step on many workers, the same step bit for bit."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samestep.api import train, verify
    from samestep.callbacks import JsonLines, TensorBoard
    from samestep.errors import Disagreement, Interrupted, Refused, SamestepError, TrainingFailed
    from samestep.files import Files
    from samestep.job import Job
    from samestep.launch.own_loop import Trainer
    from samestep.metrics import Predictions, accuracy
    from samestep.ordered import Ordered
    from samestep.parquet import Parquet
    from samestep.plan import Plan
    from samestep.report import Report

__version__ = "0.1.0"
__all__ = [
    "Disagreement",
    "Files",
    "Interrupted",
    "Job",
    "JsonLines",
    "Ordered",
    "Parquet",
    "Plan",
    "Predictions",
    "Refused",
    "Report",
    "SamestepError",
    "TensorBoard",
    "Trainer",
    "TrainingFailed",
    "accuracy",
    "train",
    "verify",
]

_HOMES = {
    "Disagreement": "samestep.errors",
    "Files": "samestep.files",
    "Interrupted": "samestep.errors",
    "Job": "samestep.job",
    "JsonLines": "samestep.callbacks",
    "Ordered": "samestep.ordered",
    "Parquet": "samestep.parquet",
    "Plan": "samestep.plan",
    "Predictions": "samestep.metrics",
    "Refused": "samestep.errors",
    "Report": "samestep.report",
    "SamestepError": "samestep.errors",
    "TensorBoard": "samestep.callbacks",
    "Trainer": "samestep.launch.own_loop",
    "TrainingFailed": "samestep.errors",
    "accuracy": "samestep.metrics",
    "train": "samestep.api",
    "verify": "samestep.api",
}


def __getattr__(name: str) -> Any:
    """Names are loaded when they are used, so that the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'samestep' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
