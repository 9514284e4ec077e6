"""samestep: an ordinary PyTorch training step on many workers, the same step bit for bit."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samestep.api import train, verify
    from samestep.data.npy_files import Files
    from samestep.data.ordered import Ordered
    from samestep.data.parquet import Parquet
    from samestep.errors import Disagreement, Interrupted, Refused, SamestepError, TrainingFailed
    from samestep.job.callbacks import JsonLines, TensorBoard
    from samestep.job.job import Job
    from samestep.job.metrics import Predictions, accuracy
    from samestep.job.report import Report
    from samestep.launch.hosts.own_loop import Trainer
    from samestep.plan.plan import Plan

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
    "Files": "samestep.data.npy_files",
    "Interrupted": "samestep.errors",
    "Job": "samestep.job.job",
    "JsonLines": "samestep.job.callbacks",
    "Ordered": "samestep.data.ordered",
    "Parquet": "samestep.data.parquet",
    "Plan": "samestep.plan.plan",
    "Predictions": "samestep.job.metrics",
    "Refused": "samestep.errors",
    "Report": "samestep.job.report",
    "SamestepError": "samestep.errors",
    "TensorBoard": "samestep.job.callbacks",
    "Trainer": "samestep.launch.hosts.own_loop",
    "TrainingFailed": "samestep.errors",
    "accuracy": "samestep.job.metrics",
    "train": "samestep.api",
    "verify": "samestep.api",
}


def __getattr__(name: str) -> Any:
    """Names are loaded when they are used, so that the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'samestep' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
