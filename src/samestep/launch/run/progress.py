"""Display of a run on stderr: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from samestep.job.report import Report
from samestep.launch.failure import Event
from samestep.launch.run.outcome import Outcome
from samestep.plan.prediction import Prediction

PLAIN_EVERY = 5.0  # seconds between plain lines
LIVE_PER_SECOND = 4  # drawing takes cycles from the workers
EQUAL = 1.15  # slowest worker's seconds per shard over the fastest's, below which no worker is named
FEW = 3  # reassignments that the end of a run shows


class Progress:
    """Header, progress, warnings and metrics of a run."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._began = time.monotonic()
        self._printed = self._began
        self._steps = 0
        self._bar: LiveBar | None = None

    def see(self, event: Event, outcome: Outcome) -> None:
        match event["event"]:
            case "plan":
                self._header(event)
            case "up":
                if len(outcome.up) == outcome.plan["workers"]:
                    self._all_up(outcome)
            case "steps":
                self._steps += len(event["steps"])
                self._progress(outcome)
            case "metrics":
                self._line(f"after step {event['step']}: " + metrics_text(event["metrics"]))
            case "dealt":
                was = outcome.deals[-2][1] if len(outcome.deals) > 1 else outcome.plan["assign"]
                self._line(f"step {event['step']}: {reassignment_text(was, event['assign'], event['pace'])}")
            case "warning":
                self._line(f"warning: {event['text']}")
            case "stall":
                self._line(event["text"])

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _header(self, plan: Event) -> None:
        workers, threads, hosts = plan["workers"], plan["threads"], plan["hosts"]
        where = f" on {len(hosts)} hosts ({'+'.join(map(str, hosts))})" if len(hosts) > 1 else ""
        self._line(
            f"{workers} worker{'s' * (workers > 1)}{where} ({plan['transport']}), "
            f"{threads} thread{'s' * (threads > 1)} each, shards {'+'.join(map(str, plan['assign']))}, "
            f"{plan['num_steps']} steps of {plan['batch_size']} rows"
        )
        self._line(f"numerics: {plan['numerics']}")
        if plan.get("prediction"):
            self._line(f"predicted: {Prediction(**plan['prediction']).text()}")

    def _all_up(self, outcome: Outcome) -> None:
        if outcome.plan["first_step"]:  # only now: each worker has read the checkpoint and compared the job
            self._line(f"going on after step {outcome.plan['first_step']}")
        threads = ", ".join(str(outcome.up[rank]["threads"]) for rank in sorted(outcome.up))
        self._line(f"{len(outcome.up)} of {outcome.plan['workers']} workers up, threads per worker: {threads}")
        self._began = self._printed = time.monotonic()
        if self._stream.isatty():
            self._bar = LiveBar(outcome.plan["num_steps"], outcome.plan["first_step"])

    def _progress(self, outcome: Outcome) -> None:
        now = time.monotonic()
        speed = self._steps / max(now - self._began, 1e-9)
        rows = f"{speed * outcome.plan['batch_size']:,.0f} rows/s"
        if self._bar is not None:
            self._bar.update(outcome.step, outcome.losses[-1], rows)
        elif now - self._printed > PLAIN_EVERY:
            self._printed = now
            done, total = outcome.step, outcome.plan["num_steps"]
            left = f"{(total - done) / speed:.0f} s left"
            self._line(f"step {done}/{total}  loss {outcome.losses[-1]:.4f}  {rows}  {left}")

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.print(text)
        else:
            print(text, file=self._stream, flush=True)


class OnlyStalls:
    """Shows stalls only."""

    def see(self, event: Event, outcome: Outcome) -> None:
        if event["event"] == "stall" and not event["ends"]:
            print(event["text"], file=sys.stderr, flush=True)


class LiveBar:
    """Step, loss, rows per second and time left, on a terminal."""

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rows]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=LIVE_PER_SECOND,
        )
        self._task = self._bar.add_task("", total=total, completed=done, loss=float("nan"), rows="")
        self._bar.start()

    def update(self, done: int, loss: float, rows: str) -> None:
        self._bar.update(self._task, completed=done, loss=loss, rows=rows)

    def print(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def metrics_text(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def reassignment_text(was: Sequence[int], assign: Sequence[int], pace: Sequence[float]) -> str:
    """Reason and result of a reassignment of shards. pace: seconds that a shard takes each worker."""
    moved = f"shards {'+'.join(map(str, was))} are now {'+'.join(map(str, assign))}; the numbers stay the same"
    tried = [w for w, (old, new) in enumerate(zip(was, assign, strict=True)) if (old, new) == (0, 1)]
    if tried and sum(max(0, new - old) for old, new in zip(was, assign, strict=True)) == 1:
        return f"worker {tried[0]} has had no shard for long and is tried again, {moved}"
    slow, fast = max(range(len(pace)), key=pace.__getitem__), min(range(len(pace)), key=pace.__getitem__)
    times = pace[slow] / pace[fast]
    if times < EQUAL:
        return f"all workers take about as long for a shard, {moved}"
    return f"a shard takes worker {slow} {times:.1f} times as long as worker {fast}, {moved}"


def summary(report: Report) -> str:
    """Lines after a run: quality, speed, times of the workers."""
    lines = []
    quality = metrics_text(dict(report.metrics)) or (
        f"loss {report.losses[-1]:.4f}" if report.losses else "no steps left to do"
    )
    speed = "" if report.rows_per_second is None else f", {report.rows_per_second:,.0f} rows/s"
    step = "" if report.seconds_per_step is None else f" ({report.seconds_per_step * 1e3:.2f} ms per step)"
    lines.append(f"done: {report.steps} steps, {quality}{speed}{step}")
    if report.prediction is not None and report.seconds_per_step is not None:
        lines.append(report.prediction.graded(report.seconds_per_step))
    proofs = [f"audits: {report.audits}"] if report.audits else []
    if report.epochs_proven:
        left = f" but for {report.rows_dropped} that collate_fn has left out" if report.rows_dropped else ""
        proofs.append(f"ledger: {report.epochs_proven} epoch{'s' * (report.epochs_proven > 1)}, every row once{left}")
    lines += [", ".join(proofs)] if proofs else []
    if len(report.deals) > FEW:
        lines.append(f"shards were reassigned {len(report.deals)} times; the last ones:")
    for first, assign in report.deals[-FEW:]:
        lines.append(f"from step {first} on shards {'+'.join(map(str, assign))}: workers' speeds had changed")
    for rank, spent in enumerate(report.times):
        lines.append(
            f"worker {rank}: computed {spent.compute:.1f} s, communicated {spent.communicate:.1f} s, "
            f"waited {spent.wait:.1f} s"
        )
    if "updates" in report.sync:
        bound, late, updates = (report.sync[name] for name in ("bound", "staleness", "updates"))
        lines.append(
            f"sync: gradients were applied at most {counted(late, 'update')} late (bound {bound:g}), to parameters "
            f"up to {report.sync['divergence']:.2%} from those that they were computed on; "
            f"{counted(updates, 'update')}, and the gradients of the last {counted(bound, 'step')} are in checkpoints "
            "only"
        )
    if "meetings" in report.sync:
        lines.append(
            f"sync: parameters were read at most {report.sync['staleness']:g} steps after a meeting (bound "
            f"{report.sync['bound'] - 1:g}), and were up to {report.sync['divergence']:.2%} from their mean before "
            f"{report.sync['meetings']:g} meetings"
        )
    lines.append(f"digest {report.digest}")
    return "\n".join(lines)


def counted(number: float, what: str) -> str:
    return f"{number:g} {what}" + ("" if number == 1 else "s")
