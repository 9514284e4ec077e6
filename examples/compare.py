"""Train two examples on two workers and then on one: accuracy, speed-up, and both digests.

The convolutional network is trained data-parallel, AlexNet's shape as a hybrid: convolutions
data-parallel, fully connected layers sliced. Exits with 1 when two digests that must be equal are
not. This is what `make train` runs.
"""

import sys
from pathlib import Path

import samestep
from samestep.launch.run.progress import Progress

FOLDER = Path(__file__).parent


def train(file: str, plan: str, epochs: int | None, workers: int) -> samestep.Report:
    progress = Progress()
    try:
        return samestep.train(str(FOLDER / file), plan=plan, epochs=epochs, workers=workers, watcher=progress)
    finally:
        progress.close()


def compare(file: str, plan: str, epochs: int | None) -> tuple[list[str], bool]:
    """The lines to print, and whether both runs ended with the same bits."""
    two, one = (train(file, plan, epochs, workers) for workers in (2, 1))
    lines = [
        f"{file}, {plan}, {report.workers} worker{'s' * (report.workers > 1)}: "
        f"accuracy {report.metrics['accuracy']:.2%}, "
        f"{report.seconds_per_step * 1e3:.1f} ms per step, digest {report.digest}"
        for report in (two, one)
    ]
    same = two.digest == one.digest
    faster = f"speed-up {one.seconds_per_step / two.seconds_per_step:.2f}x"
    return [*lines, f"{file}, {plan}: {faster}, digests {'equal' if same else 'DIFFER'}"], same


def main() -> int:
    cnn, cnn_same = compare("cnn.py", "data", None)
    alexnet, alexnet_same = compare("alexnet.py", "hybrid", 2)
    print("\n".join([*cnn, *alexnet]))
    return 0 if cnn_same and alexnet_same else 1


if __name__ == "__main__":
    sys.exit(main())
