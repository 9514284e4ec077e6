"""Train examples/cnn.py on two workers and then on one: accuracy, speed-up, and both digests.

Exits with 1 when the digests differ. This is what `make train` runs.
"""

import sys
from pathlib import Path

import samestep
from samestep.launch.progress import Progress

JOB = str(Path(__file__).parent / "cnn.py")


def train(workers: int) -> samestep.Report:
    progress = Progress()
    try:
        return samestep.train(JOB, workers=workers, watcher=progress)
    finally:
        progress.close()


def main() -> int:
    reports = {workers: train(workers) for workers in (2, 1)}
    for workers, report in reports.items():
        print(
            f"{workers} worker{'s' * (workers > 1)}: accuracy {report.metrics['accuracy']:.2%}, "
            f"{report.seconds_per_step * 1e3:.1f} ms per step, digest {report.digest}"
        )
    two, one = reports[2], reports[1]
    same = two.digest == one.digest
    print(f"speed-up {one.seconds_per_step / two.seconds_per_step:.2f}x, digests {'equal' if same else 'DIFFER'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
