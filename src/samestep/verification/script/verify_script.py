"""`samestep verify --script`: start a script's runs, wait, and judge their records."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import killpg
from pathlib import Path
from typing import Any

from samestep.errors import Refused
from samestep.verification.causes import Finding
from samestep.verification.record import Record
from samestep.verification.script.collective_order import ObservedWorker
from samestep.verification.script.judge_runs import ScriptRecords, judge, judge_stopped

LINES = 8  # last ones of a failed script's output


@dataclass(frozen=True)
class ScriptVerdict:
    """Findings of one script, and how much was compared."""

    findings: tuple[Finding, ...]
    steps: int
    compared: int  # tensors
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        found = [asdict(finding) for finding in self.findings]
        return {"findings": found, "steps": self.steps, "compared": self.compared, "notes": list(self.notes)}

    def __str__(self) -> str:
        lines = [f"compared {self.compared} tensors of {self.steps} steps with one process's"]
        lines += [f"note: {note}" for note in self.notes]
        lines += [str(finding) for finding in self.findings] or ["no difference beyond rounding"]
        return "\n".join(lines)


def verify_script(
    script: Path,
    arguments: Sequence[str] = (),
    workers: int = 2,
    steps: int = 3,
    timeout: float = 60.0,
    reference_arguments: Sequence[str] | None = None,
    start: Callable[[Path, float], None] | None = None,
) -> ScriptVerdict:
    """Run a plain PyTorch script with `workers` processes and with one, and find where and why they differ.

    Raises Refused for a script that is not there, fails on one process, or never steps an optimizer.
    """
    if not script.is_file():
        raise Refused(f"no script {script}: give the path of the file that torchrun starts")
    if workers < 2:
        raise Refused(f"{workers} workers: a script is held against itself on one process, so give at least 2")
    if steps < 1:
        raise Refused(f"{steps} steps: give at least 1")
    alone = arguments if reference_arguments is None else reference_arguments
    request = {"script": str(script.resolve()), "arguments": list(arguments), "reference_arguments": list(alone),
               "workers": workers, "steps": steps, "timeout": timeout}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="samestep-verify-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps(request))
        (start or start_process)(folder, timeout)
        return judge_results(folder, script, workers, timeout)


def start_process(folder: Path, timeout: float) -> None:
    command = [sys.executable, "-m", "samestep.verification.script.forked_runs", str(folder)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        output, _ = process.communicate(timeout=4 * timeout + 60)
    finally:
        if process.poll() is None:
            killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, output.decode(errors="replace")


def judge_results(folder: Path, script: Path, workers: int, timeout: float) -> ScriptVerdict:
    result = json.loads((folder / "result.json").read_text())
    observed = tuple(observe_worker(folder, one) for one in result if one["run"] == "workers")
    reference = next(one for one in result if one["run"] == "reference")
    if not any(one.failed for one in observed):
        check_reference(folder, script, reference, timeout)
    written = [folder / "workers" / f"facts-{rank}.json" for rank in range(workers)]
    facts = [json.loads(path.read_text()) if path.exists() else {} for path in written]
    if any(one.failed for one in observed):
        if reference["status"] and all(one.failed and not one.killed for one in observed):
            check_reference(folder, script, reference, timeout)
        return ScriptVerdict((judge_stopped(observed, timeout),), 0, 0, ())
    if not any(fact.get("steps") for fact in facts):
        raise Refused(f"{script} trains nothing: no optimizer took a step; verify compares training steps")
    mine, one, again, moved = (Record(folder / name) for name in ("workers", "reference", "again", "perturbed"))
    runs = ScriptRecords(mine, one, again, moved, tuple(facts), observed)
    findings, compared = judge(runs)
    notes = []
    if any(fact["dropout"] for fact in facts):
        notes.append("dropout was left out, in all runs: its masks depend on how the batch is divided")
    left_out = max(fact["left out"] for fact in facts)
    if left_out:
        notes.append(f"{left_out} steps that the GradScaler left out are not compared")
    return ScriptVerdict(tuple(findings), len(runs.reference.steps()), compared, tuple(notes))


def check_reference(folder: Path, script: Path, reference: dict[str, Any], timeout: float) -> None:
    if reference["killed"]:
        raise Refused(f"{script} did not end on one process within {timeout:g} s: allow it more with --timeout")
    if reference["status"]:
        output = (folder / "reference" / "output-0.txt").read_text().splitlines()[-LINES:]
        raise Refused(
            f"{script} fails on one process (exit {reference['status']}); give what it needs there with "
            "--reference-arguments; its last lines:\n" + "\n".join(output)
        )


def observe_worker(folder: Path, one: dict[str, Any]) -> ObservedWorker:
    rank = one["rank"]
    log = folder / "workers" / f"collectives-{rank}.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    entered = [line for line in lines if line != "done"]
    output = (folder / "workers" / f"output-{rank}.txt").read_text().splitlines()
    stacks = folder / "workers" / f"stacks-{rank}.txt"
    return ObservedWorker(
        rank=rank,
        status=one["status"],
        killed=one["killed"],
        collectives=tuple((line[0], line[1], line[2], tuple(line[3]), line[4]) for line in entered),
        in_collective=bool(lines) and lines[-1] != "done",
        last_lines=tuple(output[-LINES:]),
        stack=stacks.read_text() if stacks.exists() else "",
    )
