"""Hosts made of Linux namespaces on a switch of their own, with an sshd each; no address outside them is reachable.

A host has its own network, name, processes, mounts, ``/dev/shm``, ``/run`` and ``/etc/hosts``. The file system is one:
it stands for a cluster's shared storage. The namespaces have no names and hang on processes that the kernel ends with
this one, so that nothing is left behind however a test ends.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment

PATIENCE_S = 600.0
"""A training starts within 20 s on a quiet machine; one that others share has taken minutes."""

INTERFACE = "eth0"
PORT = 22
PROGRAMS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "pdsh": "pdsh",
    "pkill": "procps",
}
"""What is needed, and the Debian packages that have it."""

# Ends with this process: unshare by --pdeathsig, and with it, by --kill-child, the first process of the new namespace
# of processes, and with that all others in it.
_UNSHARE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "--mount", "--ipc", "--pid")
_FORK = ("--fork", "--kill-child", "--mount-proc")

# Becomes sshd, which takes up the processes whose parents have died, as the first process must.
_INIT = """
set -e
hostname "$1"
ip link set lo up
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind "$2" /etc/hosts
exec "$(command -v sshd)" -D -e -f "$3"
"""

_SSHD = f"""
Port {PORT}
HostKey {{folder}}/host_key
AuthorizedKeysFile {{folder}}/key.pub
AuthenticationMethods publickey
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
PidFile none
# The folder may lie below one that all may write to.
StrictModes no
"""

_SSH = f"""
Host *
  Port {PORT}
  User root
  IdentityFile {{folder}}/key
  IdentitiesOnly yes
  UserKnownHostsFile {{folder}}/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
  # A host that has gone: without these, ssh waits for it for ever.
  ServerAliveInterval 5
  ServerAliveCountMax 2
"""


def path_with_sbin() -> str:
    """Where daemons lie too."""
    return f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"


def missing(programs: Mapping[str, str]) -> str:
    """Why hosts cannot be made here, and what to do; "" when they can."""
    if os.geteuid() != 0:
        return "making hosts needs root"
    lacking = {package for name, package in programs.items() if shutil.which(name, path=path_with_sbin()) is None}
    if lacking:
        return f"missing Debian packages: apt-get install --no-install-recommends {' '.join(sorted(lacking))}"
    tried = subprocess.run(
        [*_UNSHARE, *_FORK, "ip", "link", "add", "type", "bridge"], capture_output=True, text=True, check=False
    )
    return "" if tried.returncode == 0 else f"no network namespaces or bridges here: {tried.stderr.strip()}"


class Started:
    """A command that runs in a host; what it states goes to a file, since its children may keep a pipe open for
    ever."""

    def __init__(self, process: subprocess.Popen[bytes] | Forked, words: Path) -> None:
        self._process, self._words = process, words

    @property
    def words(self) -> str:
        """What it has reported so far."""
        return self._words.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self, timeout_s: float) -> int:
        """Its exit code; fails with its words when it does not end in time."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"has not ended within {timeout_s:.0f} s\n{self.words[-8000:]}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host."""

    name: str
    address: str
    folder: Path
    """For what its commands state."""

    pid: int
    """Of its first process, as it is known out here."""

    def start(self, *argv: str, env: Mapping[str, str] | None = None) -> Started:
        """Start a command in this host, in the project's folder."""
        inside = ("--net", "--uts", "--mount", "--ipc", "--pid", "--", "env", f"--chdir={ROOT}")
        command = ["nsenter", "--target", str(self.pid), *inside, *argv]
        words = self._words()
        with words.open("w") as file:
            process = subprocess.Popen(
                command, env=self._environment(env), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        return Started(process, words)

    def fork(self, *argv: str, env: Mapping[str, str] | None = None) -> Started:
        """As ``start``, of a command that need not start from nothing: one of ``tests.helpers.processes.forked``."""
        words = self._words()
        return Started(Forked(argv, cwd=ROOT, env=self._environment(env), stdout=words, inside=self.pid), words)

    def _words(self) -> Path:
        return self.folder / f"{self.name}-{time.monotonic_ns()}.txt"

    def _environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        variables = environment(env)
        variables["PATH"] += path_with_sbin().removeprefix(os.environ["PATH"])
        return variables

    def run(self, *argv: str, env: Mapping[str, str] | None = None, timeout_s: float = 30.0) -> str:
        """Run a command in this host to its end, which must be a good one; what it reported."""
        started = self.start(*argv, env=env)
        code = started.wait(timeout_s)
        assert code == 0, f"{self.name}: {' '.join(argv)}: exit code {code}\n{started.words}"
        return started.words

    def path(self, inside: str) -> Path:
        """A path of this host as it is seen out here, also where the host has mounted something of its own."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def processes(self, words: str = "") -> dict[int, str]:
        """Process ids, as they are known out here, and command lines of what runs in it, with ``words`` in the latter.

        Leaves out its first process, and those that have ended and wait to be asked for their exit code.
        """
        own = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if int(folder.name) == self.pid or os.readlink(folder / "ns/pid") != own:
                    continue
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # has ended meanwhile
            if line and words in line:
                found[int(folder.name)] = line
        return found

    def hide(self, folder: Path) -> None:
        """Let this host alone see an empty folder in the place of ``folder``, as if shared storage had gone."""
        self.run("mount", "-t", "tmpfs", "tmpfs", str(folder))

    def show(self, folder: Path) -> None:
        """Undo ``hide``."""
        self.run("umount", str(folder))

    def end_all(self) -> None:
        """End everything that runs in it but its first process."""
        deadline = time.monotonic() + 20
        while pids := self.processes():
            assert time.monotonic() < deadline, f"{self.name}: still there: {pids}"
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Some hosts on one switch."""

    hosts: tuple[Host, ...]
    folder: Path
    switch: int
    """Id of the process that holds the switch."""

    @property
    def ssh_config(self) -> Path:
        """With it, ssh goes from each host to each by name."""
        return self.folder / "ssh_config"

    def first(self, count: int) -> "Cluster":
        """Its first hosts alone."""
        return replace(self, hosts=self.hosts[:count])

    def plug(self, host: Host, *, in_: bool) -> None:
        """Put a host's cable in, or pull it out."""
        state = "up" if in_ else "down"
        _run("nsenter", "--target", str(self.switch), "--net", "ip", "link", "set", f"to-{host.name}", state)

    def processes(self, words: str) -> dict[int, str]:
        """As ``Host.processes``, of all hosts."""
        return {pid: line for host in self.hosts for pid, line in host.processes(words).items()}


def _run(*argv: str) -> None:
    done = subprocess.run(
        argv, env={**os.environ, "PATH": path_with_sbin()}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"


@contextmanager
def cluster_of(num_hosts: int, folder: Path) -> Iterator[Cluster]:
    """So many hosts, ``host0`` to ``hostN``, for the duration of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in ("key", "host_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name))
    addresses = {f"host{number}": f"10.77.0.{number + 1}" for number in range(num_hosts)}
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    # The host itself is known by 127.0.1.1 when it logs in to itself, as below.
    (folder / "known_hosts").write_text(f"{','.join(addresses)} {host_key}\n")
    (folder / "ssh_config").write_text(_SSH.format(folder=folder))
    (folder / "sshd_config").write_text(_SSHD.format(folder=folder))
    started: list[subprocess.Popen[bytes]] = []
    try:
        switch = _first_process(started, folder / "switch.log", "sleep", "infinity")
        _in_network(switch, "link", "add", "switch", "type", "bridge")
        _in_network(switch, "link", "set", "switch", "up")
        hosts = []
        for name, address in addresses.items():
            hosts.append(_boot(started, name, addresses, folder))
            cable = f"to-{name}"
            _in_network(
                switch, "link", "add", cable, "type", "veth", "peer", "name", INTERFACE, "netns", str(hosts[-1].pid)
            )
            _in_network(switch, "link", "set", cable, "master", "switch", "up")
            _in_network(hosts[-1].pid, "address", "add", f"{address}/24", "dev", INTERFACE)
            _in_network(hosts[-1].pid, "link", "set", INTERFACE, "up")
        cluster = Cluster(hosts=tuple(hosts), folder=folder, switch=switch)
        for host in hosts:
            _wait_for_sshd(cluster, host)
        yield cluster
    finally:
        for process in started:
            for pid in _children(process.pid):
                os.kill(pid, signal.SIGKILL)  # with it the kernel ends all others of its host
        for process in started:
            process.wait(20)


def _boot(started: list[subprocess.Popen[bytes]], name: str, addresses: Mapping[str, str], folder: Path) -> Host:
    # Debian's way: a host knows itself by a loopback address, and a rank that asks for its own gets one that no other
    # host can reach.
    known = {other: "127.0.1.1" if other == name else address for other, address in addresses.items()}
    lines = ["127.0.0.1 localhost", *(f"{address} {other}" for other, address in known.items())]
    (folder / f"{name}.hosts").write_text("\n".join(lines) + "\n")
    files = (str(folder / f"{name}.hosts"), str(folder / "sshd_config"))
    pid = _first_process(started, folder / f"{name}.log", "bash", "-c", _INIT, "init", name, *files)
    return Host(name=name, address=addresses[name], folder=folder, pid=pid)


def _first_process(started: list[subprocess.Popen[bytes]], log: Path, *argv: str) -> int:
    """Start new namespaces whose first process becomes ``argv``; its id out here."""
    env = {**os.environ, "PATH": path_with_sbin()}
    with log.open("w") as file:
        started.append(
            subprocess.Popen([*_UNSHARE, *_FORK, *argv], env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        )
    deadline = time.monotonic() + 20
    while not (found := _children(started[-1].pid)):
        assert started[-1].poll() is None, f"the first process of a host has ended: {log.read_text()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[0]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _in_network(pid: int, *argv: str) -> None:
    _run("nsenter", "--target", str(pid), "--net", "ip", *argv)


def _wait_for_sshd(cluster: Cluster, host: Host) -> None:
    """Until its peers can log in, to a shell that runs where it should."""
    deadline = time.monotonic() + 30
    while True:
        asked = cluster.hosts[0].start("ssh", "-F", str(cluster.ssh_config), host.name, "hostname")
        if asked.wait(30) == 0:
            assert asked.words.split() == [host.name]
            return
        log = (cluster.folder / f"{host.name}.log").read_text()
        assert time.monotonic() < deadline, f"{host.name}: {asked.words}\n{log}"
        time.sleep(0.1)
