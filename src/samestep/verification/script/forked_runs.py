"""The process that forks the runs of a script, so that torch is imported once.

First the workers, as torchrun would start them; then three runs on one process: the reference, the reference again,
and one whose parameters are moved by one unit in the last place. Reads request.json, writes result.json.
"""

import faulthandler
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
import torch._dynamo  # optimizers and wrappers import it late; here once, before the forks
import torch.distributed.fsdp
import torch.nn.parallel

from samestep.verification.script.hooks import ScriptHooks

GRACE = 3.0  # seconds for workers to end after one of them failed


@dataclass
class ScriptRun:
    """One process of a script, and how it ended."""

    folder: Path
    pid: int
    rank: int
    status: int | None = None
    killed: bool = False


def main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    signal.alarm(int(4 * request["timeout"]) + 60)  # in case whoever started this is gone
    workers = request["workers"]
    port = free_port()
    runs = [fork(folder / "workers", rank, workers, port, request) for rank in range(workers)]
    wait(runs, request["timeout"])
    sizes = batch_sizes(folder / "workers", workers)
    alone = [
        fork(folder / name, 0, 1, free_port(), request, sizes, name) for name in ("reference", "again", "perturbed")
    ]
    wait(alone, request["timeout"], together=False)
    result = [{"run": run.folder.name, "rank": run.rank, "status": run.status, "killed": run.killed}
              for run in runs + alone]  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


def batch_sizes(folder: Path, workers: int) -> list[int] | None:
    """Sum of the workers' batch sizes, per loader with a DistributedSampler; None where a worker did not finish."""
    facts = [folder / f"facts-{rank}.json" for rank in range(workers)]
    if not all(path.exists() for path in facts):
        return None
    loaders = [json.loads(path.read_text())["loaders"] for path in facts]
    return [sum(loader["batch"] for loader in nth) for nth in zip(*loaders, strict=False)]


def fork(
    folder: Path, rank: int, size: int, port: int, request: dict[str, Any], sizes: Any = None, name: str = ""
) -> ScriptRun:
    folder.mkdir(mode=0o700, exist_ok=True)
    pid = os.fork()
    if pid:
        return ScriptRun(folder, pid, rank)
    code = 1
    try:
        signal.alarm(int(2 * request["timeout"]) + 30)
        output = (folder / f"output-{rank}.txt").open("w", buffering=1)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        faulthandler.register(signal.SIGUSR1, file=(folder / f"stacks-{rank}.txt").open("w"), all_threads=True)
        os.environ.update(torchrun_variables(rank, size, port))
        script = Path(request["script"])
        sys.argv = [str(script), *request["arguments" if size > 1 else "reference_arguments"]]
        code = run_script(
            ScriptHooks(folder, rank, script, request["steps"], sizes, name == "perturbed"), script, output
        )
    finally:
        os._exit(code)


def torchrun_variables(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def run_script(hooks: ScriptHooks, script: Path, output: TextIO) -> int:
    torch.set_num_threads(1)
    hooks.install()
    sys.path.insert(0, str(script.parent))
    code = 0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  whatever a user's script raises is the result of its run
        traceback.print_exc(file=output)
        code = 1
    hooks.finish()
    sys.stdout.flush()
    return code


def wait(runs: list[ScriptRun], seconds: float, together: bool = True) -> None:
    """Wait until all have ended; those that are late are asked for their stacks and killed."""
    deadline = time.monotonic() + seconds
    while any(run.status is None for run in runs):
        for run in runs:
            if run.status is None:
                found, status = os.waitpid(run.pid, os.WNOHANG)
                run.status = os.waitstatus_to_exitcode(status) if found else None
        if together and any(run.status for run in runs):
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            end([run for run in runs if run.status is None])
            return
        time.sleep(0.01)


def end(runs: list[ScriptRun]) -> None:
    for run in runs:
        os.kill(run.pid, signal.SIGUSR1)
    time.sleep(0.3)  # for the stacks, which are worth having and not needed
    for run in runs:
        run.killed = True
        os.kill(run.pid, signal.SIGKILL)
        os.waitpid(run.pid, 0)
        run.status = -int(signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
