"""Watch the workers of one host from outside: their whereabouts, the kernel's account of them, their stacks.

    every look        whereabouts and the kernel's account of every worker (80 us each)
    when in doubt     a signal lets faulthandler write a worker's stack; it does so in C, also in a thread that
                      holds the interpreter's lock. A process that is stopped cannot.

diagnose/stall.py decides what follows from it.
"""

import contextlib
import faulthandler
import os
import signal
import sysconfig
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from samestep.diagnose.stacks import Frame, is_below, place_in, threads_of, waits_for_loader, waits_for_lock
from samestep.diagnose.stall import FEW, Kind, OwnWork, Process, Stall, WorkerView, find
from samestep.launch.environment import ROOT
from samestep.system.control_groups import OutOfMemory
from samestep.system.procfs import Vital, catches, children, vital
from samestep.trace.whereabouts import NOBODY, place_of, wait_of

DUMP = signal.SIGRTMAX - 5  # unused by others: SIGUSR1 and 2 are the user's
PATIENCE = 0.75  # of the limit; the rest is for looking closer
LOOKS = 12  # within the limit
MOST_LOADERS = 8
OURS = str(ROOT / "samestep")
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@dataclass(frozen=True)
class Member:
    """One worker process of this host. slot: its place in the memory. stacks: the file that its stacks go to."""

    rank: int
    slot: int
    pid: int
    stacks: int
    name: str
    host: int = 0
    host_name: str = ""


@dataclass(frozen=True)
class WorkerSample:
    """One look at one worker."""

    at: float
    vital: Vital
    done: int
    busy: float
    waited: float


@dataclass
class History:
    """Recent samples of a member, the one at which its usual pace begins, and the first of the step under way."""

    samples: deque[WorkerSample] = field(default_factory=deque)
    usual_from: WorkerSample | None = None
    step_from: WorkerSample | None = None

    def add(self, sample: WorkerSample, window: float) -> None:
        if self.usual_from is None and sample.done >= 2:  # the first steps are slow
            self.usual_from = sample
        if self.step_from is None or self.step_from.done != sample.done:
            self.step_from = sample
        self.samples.append(sample)
        while len(self.samples) > 2 and self.samples[1].at <= sample.at - window:
            self.samples.popleft()

    def before(self, at: float) -> WorkerSample:
        """The last sample before a moment, or the first one."""
        return next((sample for sample in reversed(self.samples) if sample.at <= at), self.samples[0])


def own_work(history: History, in_step: float, patience: float) -> OwnWork | None:
    """A member's recent and usual work per step; None while unknown. in_step: seconds since the current step began."""
    then, first, begun, now = history.samples[0], history.usual_from, history.step_from, history.samples[-1]
    assert begun is not None
    if first is None or then.done - first.done < FEW or now.at - then.at < patience:
        return None
    usual = (then.busy - first.busy) / (then.done - first.done)
    steps = now.done - then.done
    rate = (now.busy - then.busy) / steps if steps else 0.0
    under_way = in_step - (now.waited - begun.waited)
    waiting = min(1.0, (now.waited - then.waited) / (now.at - then.at))
    return OwnWork(max(rate, under_way if under_way >= patience else 0.0), usual, waiting)  # no alarm at a hiccup


def write_stacks_to(file: int) -> None:
    """Let this worker write the stacks of all its threads to `file` when it gets DUMP. Its loaders inherit that."""
    with contextlib.suppress(RuntimeError, ValueError, OSError):
        faulthandler.register(DUMP, file=file, all_threads=True)


class StallWatch:
    """Watch for stalls on one host. limit: seconds within which a stall is reported. Call `look` every `period`."""

    def __init__(self, memory: Any, members: Sequence[Member], limit: float, run: str) -> None:
        self.limit, self.patience = limit, limit * PATIENCE
        self.period = limit / LOOKS
        self._memory, self._run = memory, run
        self._members = {member.rank: member for member in members}
        self._born = {member.rank: vital(member.pid).born for member in members}
        self._histories = {member.rank: History() for member in members}
        self._memories = {member.rank: OutOfMemory(member.pid) for member in members}
        self._known: dict[int, WorkerView] = {}
        self._reported: Stall | None = None
        self._reported_at = 0.0
        self._reported_keys: set[tuple[object, ...]] = set()
        self._next = time.monotonic() + self.period
        self.path: Path | None = None  # of the file with the stacks

    def due_in(self) -> float:
        """Seconds until the next look."""
        return max(0.0, self._next - time.monotonic())

    def forget(self, rank: int) -> None:
        """Stop watching a worker that has ended."""
        self._members.pop(rank, None)

    def ran_out_of_memory(self, rank: int) -> bool:
        """Whether the kernel killed for memory in a worker's control group, since the run began."""
        return self._memories[rank].has_killed()

    def views(self) -> dict[int, WorkerView]:
        """Current views of this host's workers."""
        now = time.monotonic()
        found = {rank: self._look_at(member, now) for rank, member in self._members.items()}
        for rank, worker in found.items():
            known = self._known.get(rank)
            if known is not None and (known.number, known.call) == (worker.number, worker.call):
                process = replace(worker.process, frame=known.process.frame, in_lock=known.process.in_lock)
                found[rank] = replace(worker, process=process, in_loader=known.in_loader, loaders=known.loaders)
        return found

    def look(self, others: Mapping[int, WorkerView] | None = None) -> list[tuple[str, Stall | None]]:
        """Texts to report, each with its stall, or None where one is over. others: workers of other hosts."""
        self._next = time.monotonic() + self.period
        found = find(own := self.views() | (dict(others) if others else {}), self.patience)
        texts: list[tuple[str, Stall | None]] = []
        if self._reported is not None and (found is None or found.key != self._reported.key):
            if (over := self._over(own)) is not None:
                texts.append((over, None))
            self._reported = None
        if found is None or found.key in self._reported_keys or self._may_hear_more(found, own):
            return texts
        closer = own | self._closer(own, found)
        found = find(closer, self.patience)
        if found is None:
            return texts
        where = self._write(found, closer)
        self._reported, self._reported_at = found, time.monotonic()
        self._reported_keys.add(found.key)
        self._known = closer
        return [*texts, (found.text + where, found)]

    def _may_hear_more(self, stall: Stall, workers: Mapping[int, WorkerView]) -> bool:
        """Whether another host is just reading the stack of its worker."""
        one = workers[stall.culprits[0]]
        can = stall.kind in (Kind.IDLE, Kind.RUNNING, Kind.LOCK, Kind.LOADER, Kind.APART)
        return can and one.rank not in self._members and one.process.frame is None and one.still < 0.93 * self.limit

    def _over(self, workers: Mapping[int, WorkerView]) -> str | None:
        assert self._reported is not None
        rank = self._reported.culprits[0]
        before, now = self._known.get(rank), workers.get(rank)
        if self._reported.kind == Kind.SLOW or before is None or now is None or now.number == before.number:
            return None
        return f"{now.name} goes on, {time.monotonic() - self._reported_at:.0f} s later"

    def _look_at(self, member: Member, now: float) -> WorkerView:
        place, wait = place_of(self._memory, member.slot), wait_of(self._memory, member.slot)
        account = vital(member.pid)
        if account.born != self._born[member.rank]:
            account = Vital("gone")
        history = self._histories[member.rank]
        waited = wait.waited + (now - wait.changed if wait.peer != NOBODY else 0.0)
        sample = WorkerSample(now, account, place.done, place.busy, waited)
        history.add(sample, self.patience)
        then = history.before(now - self.patience / 2)
        busy = (account.seconds - then.vital.seconds) / max(now - then.at, 1e-3) if then is not sample else 1.0
        has_run = any(one.vital.state == "R" for one in history.samples if one.at >= then.at)
        return WorkerView(
            rank=member.rank,
            name=member.name,
            host=member.host,
            host_name=member.host_name,
            call=place.call,
            calls=place.calls,
            step=place.step,
            number=place.number,
            done=place.done,
            action=place.action,
            still=max(0.0, now - max(place.entered, wait.changed)),
            peer=wait.peer,
            waits=max(0.0, now - wait.changed) if wait.peer != NOBODY else 0.0,
            process=Process(member.pid, account.state, busy, has_run, account.asleep_in),
            out_of_memory=account.state in ("gone", "Z", "X") and self.ran_out_of_memory(member.rank),
            pace=own_work(history, now - place.call_entered if place.call == "step" else 0.0, self.patience),
        )

    def _closer(self, workers: Mapping[int, WorkerView], stall: Stall) -> dict[int, WorkerView]:
        """This host's workers with their stacks, and the culprits' loader processes."""
        able = [m for m in self._members.values() if not workers[m.rank].process.is_stopped]
        self.stacks = stacks_of([(member.rank, member.pid, member.stacks) for member in able])
        found: dict[int, WorkerView] = {}
        for rank, text in self.stacks.items():
            worker, threads = workers[rank], threads_of(text)
            main = next(
                (one for one in threads if any(is_below(frame, [OURS]) for frame in one)), next(iter(threads), [])
            )
            process = replace(worker.process, frame=user_frame(main), in_lock=waits_for_lock(main))
            found[rank] = replace(worker, process=process, in_loader=waits_for_loader(main, LIBRARIES, OURS))
            if rank in stall.culprits and found[rank].in_loader:
                found[rank] = replace(found[rank], loaders=self._loaders(self._members[rank]))
        return found

    def _loaders(self, member: Member) -> tuple[Process, ...]:
        found = []
        for pid in [pid for pid in children(member.pid) if catches(pid, DUMP)][:MOST_LOADERS]:
            account, frame = vital(pid), None
            if account.state != "T":
                text = stacks_of([(pid, pid, member.stacks)]).get(pid, "")
                threads = threads_of(text)
                frame = user_frame(threads[0]) if threads else None
                self.stacks[member.rank] += f"\nloader process {pid}:\n{text}"
            found.append(Process(pid, account.state, 0.0, account.state == "R", account.asleep_in, frame))
        return tuple(found)

    def _write(self, stall: Stall, workers: Mapping[int, WorkerView]) -> str:
        """Write the stacks into a file of the user's own. Returns the words that name it."""
        text = f"{stall.text}\n"
        for rank in sorted(self.stacks):
            text += f"\n{workers[rank].name}, process {workers[rank].process.pid}, in {workers[rank].where}:\n"
            text += self.stacks[rank].strip() + "\n"
        new = self.path is None
        path = self.path or Path(tempfile.gettempdir()) / f"samestep-stacks-{self._run}-{os.getpid()}.txt"
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if new else 0)
        try:
            with os.fdopen(os.open(path, flags, 0o600), "a") as file:
                file.write(text + "\n")
        except OSError as error:
            return f"; stacks could not be written ({error.strerror})"
        self.path = path
        return f"; stacks in {path}"


def user_frame(frames: Sequence[Frame]) -> Frame | None:
    """The innermost frame of the user's code; of ours where there is none inside."""
    return place_in(frames, LIBRARIES)


DEADLINE = 0.5  # seconds for stacks to come
STEP = 0.005


def stacks_of(processes: Sequence[tuple[int, int, int]]) -> dict[int, str]:
    """Stacks by key, as far as they come in time. processes: (key, process id, file that its stacks go to)."""
    asked = {}
    for key, pid, file in processes:
        if not catches(pid, DUMP):
            continue
        before = os.fstat(file).st_size
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, DUMP)
            asked[key] = (file, before)
    sizes: dict[int, int] = {}
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        time.sleep(STEP)
        now = {key: os.fstat(file).st_size for key, (file, _) in asked.items()}
        if now == sizes and all(now[key] > before for key, (_, before) in asked.items()):
            break
        sizes = now
    return {
        key: os.pread(file, max(0, os.fstat(file).st_size - before), before).decode(errors="replace")
        for key, (file, before) in asked.items()
    }
