"""A script that a launcher starts as every worker, with the job and a folder for what each worker is told."""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

import samestep


class Watcher:
    """Whether anything was shown."""

    seen = False

    def see(self, event: object, outcome: object) -> None:
        self.seen = True


def main(job: str, folder: str) -> None:
    dist.init_process_group("gloo")
    watcher = Watcher()
    report = samestep.train(job, watcher=watcher)
    told = {
        "digest": report.digest,
        "workers": report.workers,
        "weights": report.weights_file is not None,
        "seen": watcher.seen,
    }
    (Path(folder) / f"{os.environ['RANK']}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
