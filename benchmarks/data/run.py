"""How much memory does a worker need for data larger than memory? `python benchmarks/data/run.py [GIGABYTES]`.

Two workers train one epoch, shuffled, over a file of 4 GB (2**30 bytes each), so that every row is read
once, in random order. Meanwhile /proc/PID/smaps_rollup of every worker and its loader workers is read,
every 20 ms. A worker's own memory is its anonymous memory plus its share (Pss) of memory shared without
a file: weights, gradients, batches of loader workers. Pages of the file belong to the page cache: the
system drops them when it needs the memory.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
from numpy.lib.format import open_memmap
from rounds import machine

from job import WIDTH

HERE = Path(__file__).resolve().parent
LIMIT = 1e9
CONTENDERS = [("np.load, mmap_mode", "mapped", 0), ("Files", "Files", 0), ("Files, 1 loader worker", "Files", 1)]


def write(path: Path, nbytes: int) -> None:
    """Uniform numbers, 64 MiB at a time."""
    rows = open_memmap(path, "w+", np.float32, (nbytes // (4 * WIDTH), WIDTH))
    generator = np.random.default_rng(0)
    step = 2**26 // (4 * WIDTH)
    for start in range(0, len(rows), step):
        rows[start : start + step] = generator.random((len(rows[start : start + step]), WIDTH), np.float32)
    rows.flush()


def rollup(process: psutil.Process) -> dict[str, int]:
    """Bytes by name."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def workers_of(command: psutil.Process) -> list[psutil.Process]:
    """The command starts a server, which forks a leader, which forks the workers."""
    found = [command]
    for _ in range(3):
        found = [child for process in found for child in process.children()]
    return found


def peaks(folder: str, form: str, loaders: int) -> list[dict[str, int]]:
    """The largest values of each kind, for every worker with its loader workers."""
    settings = ["--set", f"folder={folder}", "--set", f"form={form}", "--set", f"loaders={loaders}"]
    command = [sys.executable, "-m", "samestep", "train", str(HERE / "job.py"), "--workers", "2", "--quiet"]
    found: dict[int, dict[str, int]] = {}
    with subprocess.Popen([*command, *settings]) as training:
        while training.poll() is None:
            time.sleep(0.02)
            try:
                for worker in workers_of(psutil.Process(training.pid)):
                    values = [rollup(process) for process in (worker, *worker.children())]
                    sums = {name: sum(value[name] for value in values) for name in values[0]}
                    now = {
                        "own": sums["Anonymous"] + sums["Pss_Shmem"],
                        "anonymous": sums["Anonymous"],
                        "file": sums["Pss_File"],
                    }
                    kept = found.setdefault(worker.pid, now)
                    kept.update({name: max(value, kept[name]) for name, value in now.items()})
            except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
                continue  # it has just ended
    if training.returncode:
        sys.exit(training.returncode)
    return list(found.values())


def main(gigabytes: float) -> None:
    print(machine(), "\n")
    print("| data | worker | anonymous, MB | with shared memory, MB | mapped files, MB | under 1 GB |")
    print("|---|--:|--:|--:|--:|---|")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "rows.npy", int(gigabytes * 2**30))
        for name, form, loaders in CONTENDERS:
            for rank, peak in enumerate(peaks(folder, form, loaders)):
                shown = " | ".join(f"{peak[kind] / 1e6:.0f}" for kind in ("anonymous", "own", "file"))
                reached = "reached" if peak["own"] < LIMIT else "not reached"
                print(f"| {name} | {rank} | {shown} | {reached} |", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 4)
