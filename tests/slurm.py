"""A SLURM of two nodes on this machine, in a folder, for the user who runs the tests.

Both nodes are this kernel and this network, so samestep counts them as one host.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from commands import Ended, free_port, wait_until

PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "sinfo")
PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"
HOST = socket.gethostname().partition(".")[0]
NODES = (HOST, f"{HOST}z")  # the first one, in SLURM's order too, is a name that leads somewhere

CONFIGURATION = """
ClusterName=samestep
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing() -> str | None:
    """Why there can be no SLURM here."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    return f"no {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client" if absent else None


@dataclass(frozen=True)
class Cluster:
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        own = {name: text for name, text in os.environ.items() if not name.startswith(("SLURM", "MASTER"))}
        return {**own, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: object, folder: Path | None = None, **variables: str) -> Ended:
        """A command of SLURM's, to its end."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=folder or self.folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        return Ended(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    found = Cluster(folder)
    (folder / "state").mkdir()
    for node in NODES:
        (folder / node).mkdir()
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    ports = [free_port() for _ in range(3)]
    text = CONFIGURATION.format(host=HOST, user=user, folder=folder, ports=ports, nodes=NODES)
    (folder / "slurm.conf").write_text(text)
    with contextlib.ExitStack() as daemons:
        for command in (["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)):
            log = daemons.enter_context((folder / f"{command[-1]}.out").open("w"))
            program = shutil.which(command[0], path=PATH)
            assert program is not None
            daemon = subprocess.Popen(
                [program, *command[1:]], env=found.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
            daemons.callback(daemon.wait)
            daemons.callback(daemon.terminate)
        idle = ("sinfo", "--noheader", "--Node", "--format=%T")
        wait_until("two idle nodes", lambda: found.run(*idle).out.split() == ["idle", "idle"])
        yield found
