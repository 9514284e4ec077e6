"""A process that has imported torch already and runs one script after another, for tests of `verify_script`."""

import os
import subprocess
import sys
from pathlib import Path


class WarmRuns:
    """Starts scripts in the place of `start_process`, each in a fork of one process."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, folder: Path, timeout: float) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer == "0", f"the runs' process ended with {answer}"

    def close(self) -> None:
        self._process.communicate()


def serve() -> None:
    """A line names a folder with a request, a line answers with the exit status of its fork."""
    from samestep.verification.script.forked_runs import main

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                main(Path(line.strip()))
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of the tests, whose modules the scripts shall not see
    serve()
