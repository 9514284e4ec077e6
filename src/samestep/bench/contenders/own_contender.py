"""A contender of ours: an ordinary run of the user's job, with a callback that waits for its turn."""

import dataclasses
import os
import signal
from typing import Any

from samestep.bench.contenders.contender_turns import ContenderTurns, Pipes, WaitForTurn
from samestep.errors import Interrupted, SamestepError
from samestep.job.job import Job
from samestep.launch.request.importing import call, load_function
from samestep.launch.request.options import JobSource
from samestep.launch.request.request import Request
from samestep.launch.run.launcher import Launcher

EVER = 10**9  # steps


def run_ours(request: Request, pipes: Pipes) -> None:
    """Run until this process is asked to end. A failure is reported to the orchestrator."""
    outer = request.but(
        module=__name__,
        file=None,
        function=waiting_job.__name__,
        settings={"source": vars(request.source), "pipes": vars(pipes)},
        settings_are_text=False,
        steps=EVER,
        stall=0.0,  # waiting for its turn is no stall
        epochs=None,
    )
    try:
        with Launcher() as launcher:
            launcher.run(outer)
    except Interrupted:
        pass
    except SamestepError as error:
        ContenderTurns(pipes).say(failed=str(error).splitlines()[0])


def waiting_job(source: dict[str, Any], pipes: dict[str, str]) -> Job:
    """The job of a source, as it is compared; worker 0 waits for its turn after every step."""
    inner = JobSource(**source)
    job = as_compared(call(load_function(inner), inner))
    # the usual signal ends the run: the workers stop after their next step
    wait_for_turn = WaitForTurn(Pipes(**pipes), lambda: os.kill(os.getpid(), signal.SIGTERM))
    return dataclasses.replace(job, callbacks=[wait_for_turn])


def as_compared(job: Job) -> Job:
    """Steps only, all of the same length: nothing evaluated, no callbacks, no short last batch."""
    return dataclasses.replace(job, evaluate=None, callbacks=(), drop_last=True)
