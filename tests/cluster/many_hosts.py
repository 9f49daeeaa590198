"""The DeepSpeed launcher on the hosts of a cluster, as a user starts it: with pdsh from one host, or once per host."""

from collections.abc import Mapping

from tests.cluster.hosts import INTERFACE, PATIENCE_S, Cluster, Started
from tests.helpers.processes.launching import BIN, environment, free_port

FORWARDED = ("PATH", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")
"""What ranks need that a login over ssh does not have."""


def launch_with_pdsh(cluster: Cluster, script: str, *args: str) -> Started:
    """Start a script on all hosts, a rank each, from the first one."""
    here = environment()
    lines = [f"{name}={here[name]}" for name in FORWARDED if name in here]
    # gloo asks for the address of the host's own name, which is 127.0.1.1 here.
    lines.append(f"GLOO_SOCKET_IFNAME={INTERFACE}")
    forwarded = cluster.folder / "deepspeed_env"
    forwarded.write_text("\n".join(lines) + "\n")
    env = {"DS_ENV_FILE": str(forwarded), "PDSH_SSH_ARGS_APPEND": f"-F {cluster.ssh_config}"}
    # The launcher's own check would ask ssh without our file of settings.
    return cluster.hosts[0].start(*_deepspeed(cluster), "--no_ssh_check", script, *args, env=env)


def launch_without_ssh(
    cluster: Cluster, script: str, *args: str, env: Mapping[str, str] | None = None
) -> list[Started]:
    """Start a script by the launcher of each host, a rank each; forked, since pdsh's start from nothing."""
    command = _deepspeed(cluster)
    own = {"GLOO_SOCKET_IFNAME": INTERFACE, **(env or {})}
    return [
        host.fork(*command, "--no_ssh", "--node_rank", str(number), script, *args, env=own)
        for number, host in enumerate(cluster.hosts)
    ]


def wait_well(started: list[Started], timeout_s: float = PATIENCE_S) -> str:
    """Wait until all have ended; fails with all their words unless each exits with 0."""
    codes = [one.wait(timeout_s) for one in started]
    words = "\n".join(one.words for one in started)
    assert codes == [0] * len(started), f"exit codes {codes}\n{words[-12000:]}"
    return words


def _deepspeed(cluster: Cluster) -> list[str]:
    hostfile = cluster.folder / "hostfile"
    hostfile.write_text("".join(f"{host.name} slots=1\n" for host in cluster.hosts))
    first = cluster.hosts[0].address
    return [
        str(BIN / "deepspeed"), "--hostfile", str(hostfile), "--master_addr", first, "--master_port", str(free_port()),
    ]  # fmt: skip
