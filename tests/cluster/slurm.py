"""A real Slurm of two nodes on this machine, with accounting, for as long as a test needs it. Needs root and Debian's
slurmctld, slurmd, slurm-client, slurmdbd, munge and mariadb-server.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sinfo", "sbatch", "sacct")
NODES = ("n0", "n1")
HOSTS = Path("/etc/hosts")
KILL_WAIT_S = 5
"""Between SIGTERM and SIGKILL to a job that is cancelled."""


def missing() -> str:
    """What keeps a Slurm from running here, in words; empty if nothing does."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    return "" if os.geteuid() == 0 else "only root can start Slurm's daemons"


class SlurmCluster:
    """Daemons in `folder`; as a context manager it is up inside, and gone afterwards."""

    def __init__(self, folder: Path, *, cpus_per_node: int = 2) -> None:
        self.folder = folder
        self.cpus_per_node = cpus_per_node
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = _free_ports(5)
        self.ports = dict(zip(("ctld", "dbd", "mariadb", *NODES), ports, strict=True))
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
        }

    def __enter__(self) -> "SlurmCluster":
        try:
            self._start_all()
        except BaseException:
            self._stop_all()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_all()

    def run(self, *command: str, check: bool = True) -> str:
        """Output of a command of Slurm's."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def kill(self, name: str) -> None:
        """SIGKILL to a daemon: slurmctld, or a node by its name with all that runs on it."""
        if name in NODES:
            for job in children_of(self.processes[name].pid):
                kill(job)
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def start(self, name: str) -> None:
        """Start slurmctld or a node (again)."""
        command = ["slurmctld", "-D"] if name == "slurmctld" else ["slurmd", "-D", "-N", name]
        self._daemon(name, *command)

    def wait_idle(self, timeout_s: float = 60) -> None:
        """Return when all nodes take work."""

        def ready() -> bool:
            states = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).split("\n")
            up = [line for line in states if line.partition(" ")[2] in ("idle", "mixed", "allocated")]
            return len(up) == len(NODES)

        _wait(ready, timeout_s, "nodes to come up")

    def _start_all(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _name_nodes()
        self._start_munge()
        self._start_database()
        self._write_config()
        self._daemon("slurmdbd", "slurmdbd", "-D")
        _wait(lambda: _listens(self.ports["dbd"]), 60, "slurmdbd")
        self.start("slurmctld")
        for node in NODES:
            self.start(node)
        self.wait_idle()

    def _start_munge(self) -> None:
        if Path("/run/munge/munge.socket.2").exists() and not subprocess.call(
            ["munge", "-n"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ):
            return  # one daemon serves the machine
        for place in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
            Path(place).mkdir(parents=True, exist_ok=True)
            shutil.chown(place, "munge", "munge")
        subprocess.run(
            ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--force"],
            check=True,
            env=self.environment,
        )

    def _start_database(self) -> None:
        data = self.folder / "mariadb"
        subprocess.run(
            [
                "mariadb-install-db",
                "--skip-test-db",
                f"--datadir={data}",
                "--user=root",
                "--auth-root-authentication-method=normal",
            ],
            check=True,
            capture_output=True,
            env=self.environment,
        )
        self._daemon(
            "mariadb",
            "mariadbd",
            "--no-defaults",
            f"--datadir={data}",
            "--user=root",
            f"--port={self.ports['mariadb']}",
            "--bind-address=127.0.0.1",
            f"--socket={self.folder / 'mariadb.socket'}",
            f"--pid-file={self.folder / 'mariadb.pid'}",
            "--innodb-buffer-pool-size=64M",
            "--innodb-lock-wait-timeout=900",
        )
        client = ["mariadb", "--no-defaults", f"--socket={self.folder / 'mariadb.socket'}", "-u", "root", "-e"]
        account = (
            "CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm'; GRANT ALL ON *.* TO 'slurm'@'127.0.0.1'; "
            "CREATE USER 'slurm'@'localhost' IDENTIFIED BY 'slurm'; GRANT ALL ON *.* TO 'slurm'@'localhost';"
        )
        _wait(
            lambda: subprocess.call([*client, "SELECT 1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0,
            60,
            "mariadb",
        )
        subprocess.run([*client, account], check=True)

    def _write_config(self) -> None:
        host, folder = socket.gethostname().partition(".")[0], self.folder
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.ports[node]} CPUs={self.cpus_per_node} "
            "RealMemory=8000"
            for node in NODES
        )
        (folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={self.ports["ctld"]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={self.ports["dbd"]}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait={KILL_WAIT_S}
MinJobAge=600
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")
        (folder / "state").mkdir(exist_ok=True)
        database = folder / "slurmdbd.conf"
        database.write_text(f"""
DbdHost=localhost
DbdPort={self.ports["dbd"]}
AuthType=auth/munge
SlurmUser=root
LogFile={folder}/dbd.log
PidFile={folder}/dbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={self.ports["mariadb"]}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
""")
        database.chmod(0o600)

    def _daemon(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _stop_all(self) -> None:
        for name in ("slurmctld", *NODES, "slurmdbd", "mariadb"):
            process = self.processes.pop(name, None)
            if process is None:
                continue
            for job in children_of(process.pid):
                kill(job)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def children_of(pid: int) -> list[int]:
    """All processes below `pid`; slurmstepd puts jobs into sessions of their own, so the tree is walked."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def kill(pid: int) -> None:
    """SIGKILL, if the process is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _name_nodes() -> None:
    """Nodes must have addresses, or torch's rendezvous between them hangs."""
    text = HOSTS.read_text()
    lacking = [node for node in NODES if node not in text.split()]
    if lacking:
        HOSTS.write_text(text.rstrip("\n") + f"\n127.0.0.1 {' '.join(lacking)}\n")


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(done: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.1)
