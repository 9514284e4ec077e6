"""Have this machine measured by a process of its own, so that the command needs no torch."""

import json
import os
import subprocess
import sys

from samestep.doctor.machine_speed import MachineSpeed
from samestep.errors import SamestepError
from samestep.launch.environment import ROOT, physical_cores, pinned_environment

PROGRAM = "import sys; sys.path.append(sys.argv[1]); from samestep.doctor.measure_speed import main; main()"
PATIENCE = 60.0  # seconds; it takes about four


def measured() -> MachineSpeed:
    """Raises SamestepError when the process that measures fails, and says what it said last."""
    ours, theirs = os.pipe()
    with os.fdopen(ours) as answer:
        arguments = [str(ROOT), str(theirs), str(physical_cores()), str(os.getpid())]
        try:
            ended = subprocess.run(
                [sys.executable, "-P", "-c", PROGRAM, *arguments],
                env=pinned_environment(),
                pass_fds=[theirs],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SamestepError(f"measuring took more than {PATIENCE:g} s: is the machine busy?") from None
        finally:
            os.close(theirs)
        if ended.returncode != 0:
            last = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
            raise SamestepError(f"the process that measures ended: {last}")
        return MachineSpeed.from_json(json.loads(answer.read()))
