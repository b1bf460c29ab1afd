"""A Slurm with one node on this machine, during tests. Needs root.

All its files are in a temporary directory, it uses free ports, and it does not affect another Slurm on the machine.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")

# Works without systemd, cgroups and a host name.
CONFIGURATION = """
ClusterName=one
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=60
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes}
PartitionName=debug Nodes=localhost Default=YES MaxTime=INFINITE
"""


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def why_not() -> str | None:
    """The reason why Slurm cannot start here; None if it can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        return f"{missing[0]} is not installed: apt-get install --no-install-recommends slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


@contextmanager
def one_node_slurm() -> Iterator[dict[str, str]]:
    """A running Slurm; at the end its jobs are killed and its files are removed.

    Yields:
        the environment with which ``sbatch`` and the other commands use it.

    Raises:
        RuntimeError: a daemon did not start; the message is the end of its log.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=folder,
                ports=_free_ports(2),
                cpus=len(os.sched_getaffinity(0)),
                megabytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 // 2,
            )
        )
        (folder / "munge.key").write_bytes(os.urandom(64))
        (folder / "munge.key").chmod(0o400)
        environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder / 'bin'}{os.pathsep}{_path()}",
        }

        def start(ready: Callable[[], bool], *command: str) -> None:
            log = (folder / f"{command[0]}.log").open("ab")
            stack.callback(log.close)
            # In a new session, so that Ctrl-C on the terminal reaches only the tested command.
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            stack.callback(_end, process)
            deadline = time.monotonic() + 30
            while not ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    tail = (folder / f"{command[0]}.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{command[0]} did not start:\n{tail}")
                time.sleep(0.1)

        def ask(*command: str) -> str:
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid"}
        files |= {"seed-file": "munged.seed", "log-file": "munge.log"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        start((folder / "munge.socket").exists, "munged", "--foreground", *options)
        start(lambda: "is UP" in ask("scontrol", "ping"), "slurmctld", "-D", "-f", environment["SLURM_CONF"])
        node = ("scontrol", "show", "node", "localhost")
        start(lambda: "State=IDLE" in ask(*node), "slurmd", "-D", "-f", environment["SLURM_CONF"], "-N", "localhost")
        try:
            yield environment
        finally:
            ask("scancel", "--signal=KILL", "--full", "--user=root")
            ask("scancel", "--user=root")
            deadline = time.monotonic() + 30
            while ask("squeue", "--noheader") and time.monotonic() < deadline:
                time.sleep(0.1)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
