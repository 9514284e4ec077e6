"""The outcome of a run, from its events alone: no processes, no sockets, no printing.

Events come in any order that races allow. The first error that is not the consequence of another one
is the cause; errors of workers that merely lost a peer are left out.
"""

import signal
from dataclasses import dataclass, field, fields

from samestep.errors import Interrupted, SamestepError, TrainingFailed
from samestep.job.report import Report, WorkerTime
from samestep.launch.failure import Event, error_from
from samestep.plan.prediction import Prediction
from samestep.system import wire
from samestep.trace.worker_trace import decoded


@dataclass
class Outcome:
    """Collects the events of one run; `conclude` turns them into a report or an exception."""

    plan: Event = field(default_factory=dict)
    up: dict[int, Event] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    step: int = 0  # optimizer steps known to be done
    times: dict[int, WorkerTime] = field(default_factory=dict)
    finished: Event | None = None
    failures: list[Event] = field(default_factory=list)
    gone: list[Event] = field(default_factory=list)
    stalls: list[Event] = field(default_factory=list)
    interrupted: bool = False
    deals: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    traces: dict[int, bytes] = field(default_factory=dict)
    weights_file: int | None = None
    answer_file: int | None = None

    def take(self, event: Event, files: list[int]) -> None:
        """Add one event."""
        match event["event"]:
            case "plan":
                self.plan, self.step = event, event["first_step"]
            case "up":
                self.up[event["rank"]] = event
            case "steps":
                self.losses += [loss for _, loss, _ in event["steps"]]
                self.step = event["steps"][-1][0] + 1
            case "dealt":
                self.deals.append((event["step"], tuple(event["assign"])))
            case "worker":
                self.times[event["rank"]] = WorkerTime(**{one.name: event[one.name] for one in fields(WorkerTime)})
            case "trace":
                self.traces[event["rank"]] = wire.content(files[0])
            case "finished":
                self.finished = event
                self.weights_file = files[0] if files else None
            case "answer":
                self.answer_file = files[0]
            case "failed":
                self.failures.append(event)
            case "gone":
                self.gone.append(event)
            case "stall":
                self.stalls.append(event)

    def conclude(self) -> Report:
        """The report. Raises the first error: Refused, TrainingFailed or Interrupted."""
        error = self._error()
        if error is not None:
            raise error
        assert self.finished is not None
        seconds, predicted = self.finished["seconds_per_step"], self.plan.get("prediction")
        return Report(
            digest=self.finished["digest"],
            losses=self.losses,
            seconds_per_step=seconds,
            workers=self.plan["workers"],
            assign=tuple(self.plan["assign"]),
            shards=self.plan["shards"],
            numerics=self.plan["numerics"],
            plan=self.plan["plan"],
            metrics=self.finished["metrics"],
            deals=self.deals,
            audits=self.finished.get("audits", 0),
            epochs_proven=self.finished.get("epochs_proven"),
            rows_dropped=self.finished.get("rows_dropped", 0),
            steps=self.finished["step"],
            rows_per_second=self.plan["batch_size"] / seconds if seconds else None,
            times=[self.times[rank] for rank in sorted(self.times)],
            weights_file=self.weights_file,
            sync=self.finished.get("sync", {}),
            prediction=None if predicted is None else Prediction(**predicted),
            traces=[decoded(self.traces[rank]) for rank in sorted(self.traces)],
        )

    def _error(self) -> SamestepError | None:
        causes = [failure for failure in self.failures if not failure.get("secondary")]
        if causes:
            return error_from(causes[0])
        if ends := [stall for stall in self.stalls if stall["ends"]]:
            return TrainingFailed(ends[0]["text"])
        if self.interrupted or (self.finished is not None and self.finished["stopped"]):
            return Interrupted(self._stopped())
        early = [end for end in self.gone if self._left_early(end)]
        if early:
            return TrainingFailed(self._end(early[0]))
        if self.failures:
            return error_from(self.failures[0])
        if self.finished is None:
            return TrainingFailed(
                f"the run's leader is gone at step {self.step} without a word: look for whoever killed it "
                "(the kernel does when memory runs out), or for code that calls os._exit while it is imported"
            )
        return None

    def _stopped(self) -> str:
        if self.finished is None:
            return f"stopped after step {self.step}" if self.up else "stopped before the first step"
        if self.finished["checkpoint"]:
            return f"stopped after step {self.finished['step']}; the last checkpoint holds it, --resume goes on"
        return f"stopped after step {self.finished['step']}, without a checkpoint (--checkpoint DIR writes one)"

    def _left_early(self, end: Event) -> bool:
        """Whether a process ended without a report that it was done, or why not."""
        if end["rank"] is None:  # all workers are threads of it
            return self.finished is None and not self.failures
        done = end["rank"] in self.times and (end["rank"] != 0 or self.finished is not None)
        return not done and all(failure["rank"] != end["rank"] for failure in self.failures)

    def _end(self, end: Event) -> str:
        who = "the process of all workers" if end["rank"] is None else f"worker {end['rank']}"
        if end["code"] >= 0:
            return (
                f"{who} ended with exit status {end['code']} at step {end['step']}: look for code that calls os._exit, "
                "or a library that ends the process"
            )
        names = {number.value: number.name for number in signal.Signals}
        name = names.get(-end["code"], f"signal {-end['code']}")
        if end.get("memory"):
            return (
                f"{who} was killed by {name} at step {end['step']}: the memory of its control group was exhausted; "
                "give it more, or train on more workers or with more shards"
            )
        return (
            f"{who} was killed by {name} at step {end['step']}: look for whoever sent it "
            "(the kernel sends SIGKILL when memory runs out; SIGSEGV and SIGABRT come from a fault in native code)"
        )
