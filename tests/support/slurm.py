"""A cluster of Slurm's own daemons on this machine: two nodes, in name."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support.launching import BIN, free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("first", "second")
# A job of `urgent` preempts one of `usual`, which has a minute to save.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
LaunchParameters=use_interactive_step
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=20
{nodes}
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000\n"


class Cluster:
    """Its daemons, from `start` to `stop`; they listen on this machine alone, and all their files are in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
        }
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        folder, host = self.folder, socket.gethostname()
        nodes = "".join(NODE.format(name=name, host=host, port=free_port()) for name in NODES)
        configuration = CONFIGURATION.format(folder=folder, host=host, port=free_port(), nodes=nodes)
        (folder / "slurm.conf").write_text(configuration)
        for place in ("state", *(f"spool-{name}" for name in NODES)):
            (folder / place).mkdir()
        # For the daemons and their jobs alone; the daemons listen where the name of their machine leads.
        (folder / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(NODES)}\n")
        in_network = ["unshare", "--mount", "sh", "-c", f'mount --bind {folder}/hosts /etc/hosts && exec "$@"', "-"]
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        self._start(
            "munge", "munged", "--foreground", "--force", *(f"--{a}={folder}/munge.{b}" for a, b in files.items())
        )
        self.wait(lambda: (folder / "munge.socket").exists())
        self._start("slurmctld", *in_network, "slurmctld", "-D", "-i")
        for name in NODES:
            self._start(name, *in_network, "slurmd", "-D", "-N", name)
        self.wait(lambda: self.says("sinfo", "--noheader", "--Format=statelong").split() == ["idle"])

    def stop(self) -> None:
        """Cancel what runs and end every daemon."""
        if self._daemons:
            self.run("scancel", "--user=root")
            with_jobs = time.monotonic() + 30
            while self.run("squeue", "--noheader").stdout and time.monotonic() < with_jobs:
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(timeout=60)
        # Steps that have not ended by then outlive the daemons.
        for process in psutil.process_iter(["environ"]):
            conf = (process.info["environ"] or {}).get("SLURM_CONF")
            if conf == self.environment["SLURM_CONF"] and process.pid != os.getpid():
                process.kill()

    def submit(self, *options: object) -> str:
        """Submit by `sbatch`; returns the job's number."""
        return self.says("sbatch", "--parsable", *options).strip()

    def start_again(self, job: str, *changes: str) -> None:
        """Wait until a job is queued again and have it start, with changes to it, where Slurm would wait two minutes.

        In the second in which it was ended, its nodes still refuse it.
        """
        self.wait(lambda: self.state(job)["JobState"] == "PENDING")
        self.says("scontrol", "update", f"JobId={job}", "StartTime=now+3", *changes)

    def state(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        return dict(part.split("=", 1) for part in self.says("scontrol", "show", "job", job).split() if "=" in part)

    def says(self, *command: object) -> str:
        ended = self.run(*command)
        assert ended.returncode == 0, ended.stderr + self.log()
        return ended.stdout

    def run(self, *command: object) -> subprocess.CompletedProcess:
        words = [str(word) for word in command]
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=120)

    def wait(self, is_so: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def log(self) -> str:
        """The end of what each daemon has said."""
        return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.out")))

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "w") as log:
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT))


def why_not_here() -> str | None:
    """What this machine lacks for a cluster."""
    if os.geteuid():
        return "needs root, to start Slurm's daemons"
    if missing := [daemon for daemon in DAEMONS if not shutil.which(daemon)]:
        return f"needs {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge)"
    return None
