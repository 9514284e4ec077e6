"""Attendants: they watch a training from beside it, or act between its steps.

The steps know none of them by name. Of each event of a step, `Attendants` lists those that override it, so an attendant
costs nothing where it has nothing to do.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from samestep.parallel.execution.executor import StepState
from samestep.parallel.execution.step import StepResult
from samestep.schedule.actions import Action


class Attendant:
    """One attendant of one worker's training. Every method may be left out.

    Those of a step: before_step, before_action, after_action, after_step. All workers have the same attendants in the
    same order, so one may communicate with its counterparts; an attendant that some workers lack must not.
    """

    among: "Attendants"

    def before_step(self, step: int) -> None:
        """Called between two steps, when `step` optimizer steps are done."""

    def before_action(self, action: Action) -> None:
        """Called before every action of a step."""

    def after_action(self, action: Action, state: StepState) -> None:
        """Called after every action of a step."""

    def after_step(self, result: StepResult, rows: int) -> None:
        """Called after a step over `rows` rows."""

    def expect_other_rows(self) -> None:
        """Called before a step whose batch is not the job's own."""

    def on_not_finite(self) -> None:
        """Called when a step ends with a loss that is not finite, before that is raised."""

    def before_state_is_read(self) -> None:
        """Called before the state is hashed or saved."""

    def after_save(self, root: Path) -> None:
        """Called when a checkpoint was written to a folder below `root`."""

    def after_restore(self, step: int, root: Path) -> None:
        """Called when all state was replaced by that of a checkpoint below `root`, after `step` optimizer steps."""

    def report(self) -> dict[str, Any]:
        """Facts for the report of the run."""
        return {}


class Attendants:
    """All attendants of one worker's training, in their order."""

    def __init__(self, attendants: Iterable[Attendant] = ()) -> None:
        self._all: list[Attendant] = []
        self.before_step: list[Callable[[int], None]] = []
        self.before_action: list[Callable[[Action], None]] = []
        self.after_action: list[Callable[[Action, StepState], None]] = []
        self.after_step: list[Callable[[StepResult, int], None]] = []
        for attendant in attendants:
            self.add(attendant)

    def __iter__(self) -> Iterator[Attendant]:
        return iter(self._all)

    def add(self, attendant: Attendant) -> None:
        kind = type(attendant)
        self._all.append(attendant)
        attendant.among = self
        if kind.before_step is not Attendant.before_step:
            self.before_step.append(attendant.before_step)
        if kind.before_action is not Attendant.before_action:
            self.before_action.append(attendant.before_action)
        if kind.after_action is not Attendant.after_action:
            self.after_action.append(attendant.after_action)
        if kind.after_step is not Attendant.after_step:
            self.after_step.append(attendant.after_step)

    def remove(self, attendant: Attendant) -> None:
        """Let one go that has done what it was there for."""
        self._all.remove(attendant)
        for event in ("before_step", "before_action", "after_action", "after_step"):
            setattr(self, event, [call for call in getattr(self, event) if call.__self__ is not attendant])

    def report(self) -> dict[str, Any]:
        """Facts of all attendants."""
        return {name: fact for attendant in self._all for name, fact in attendant.report().items()}
