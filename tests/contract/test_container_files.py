"""Dockerfile and Kubernetes template: parsed, and what of them runs without a daemon is run."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccts_dist.commands import serve, train
from ccts_dist.config import TrainConfig

DOCKERFILE = Path("launch/docker/Dockerfile")
K8S = Path("launch/k8s/pytorchjob.yaml")


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage of the Dockerfile, with those of the stage that it is built on."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()))
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\w+)", rest).groups()  # type: ignore[union-attr]
            found[name] = list(found.get(base, []))
        elif name:
            found[name].append((word, rest))
    return found


@pytest.mark.parametrize("stage", ["serve", "train"])
def test_image_runs_as_a_user_without_rights(stage: str):
    words = dict(stages()[stage])
    user = words["USER"]
    assert user.isdecimal()
    assert int(user) > 0
    assert ("RUN", f"useradd --create-home --uid {user} ccts") in stages()[stage]
    last = [word for word, _ in stages()[stage]]
    assert last.index("USER") > max(at for at, word in enumerate(last) if word in ("RUN", "COPY"))
    assert words["ENTRYPOINT"] == '["ccts"]'


def test_shell_lines_are_sound_and_name_extras_that_there_are(tmp_path: Path):
    known = set(tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"])
    runs = {rest for instructions in stages().values() for word, rest in instructions if word == "RUN"}
    assert len(runs) == 7
    (tmp_path / "ccts_dist-1.2-py3-none-any.whl").touch()
    (tmp_path / "pip").write_text('#!/bin/sh\nshift\nprintf "%s\\n" "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    extras = set()
    for line in runs:
        subprocess.run(["sh", "-n", "-c", line], check=True)
        if "ccts_dist-" in line:
            path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
            done = subprocess.run(["sh", "-c", line.replace("/dist", str(tmp_path))], env=path, capture_output=True)
            (given,) = re.findall(rf"^{tmp_path}/ccts_dist-1\.2-py3-none-any\.whl\[([\w,]+)\]$", done.stdout.decode())
            extras |= set(given.split(","))
        if line.startswith("test "):
            for index, code in (("", 2), ("folder", 0)):
                assert subprocess.run(["sh", "-c", line], env={"TORCH_INDEX": index}, check=False).returncode == code
    assert "train" in extras
    assert extras <= known


def test_what_the_wheel_is_made_of_is_sent_to_the_daemon():
    sent = set(re.findall(r"(?m)^!(\S+)$", DOCKERFILE.with_name("Dockerfile.dockerignore").read_text()))
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    needed = {"ccts_dist", "pyproject.toml", project["readme"], *project["license-files"]}
    needed |= {link.resolve().relative_to(Path.cwd()).parts[0] for link in Path("ccts_dist/shipped").iterdir()
               if link.is_symlink()}  # fmt: skip
    assert needed <= sent
    assert all(Path(name).exists() for name in sent)


def test_health_check_asks_for_ping_and_fails_without_an_answer():
    assert dict(stages()["train"])["HEALTHCHECK"] == "NONE"
    command = dict(stages()["serve"])["HEALTHCHECK"].partition("CMD ")[2]
    program, option, code = yaml.safe_load(command)
    assert (program, option) == ("python", "-c")
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if len(asked) == 1 else 503)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = code.replace("5001", str(server.server_port))
        codes = [subprocess.run([sys.executable, "-c", own], capture_output=True).returncode for _ in range(2)]
        server.shutdown()
    assert asked == ["/ping", "/ping"]
    assert codes == [0, 1]
    assert f":{serve.parse_args(['m']).port}/" in code


def pod() -> dict[str, Any]:
    tree = yaml.safe_load(K8S.read_text())
    assert (tree["apiVersion"], tree["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = tree["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"]["replicas"] == 1
    assert {one["restartPolicy"] for one in replicas.values()} == {"ExitCode"}
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    return replicas["Master"]["template"]["spec"]


def test_pod_leaves_time_to_save_and_shares_what_ranks_share():
    spec = pod()
    (container,) = spec["containers"]
    assert spec["terminationGracePeriodSeconds"] > TrainConfig().stop_grace_s
    assert {one["mountPath"] for one in container["volumeMounts"]} == {container["workingDir"], "/dev/shm"}
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in spec["volumes"]}
    assert str(spec["securityContext"]["runAsUser"]) == dict(stages()["train"])["USER"]
    (line,) = re.findall(r"ccts train (.*) &", container["args"][0])
    assert train.parse_args(shlex.split(line)).resume == "auto"


def started(tmp_path: Path, rank: str) -> subprocess.Popen[str]:
    """The pod's command with a stand-in for the rank."""
    (tmp_path / "ccts").write_text(f"#!/bin/bash\necho $@ >{tmp_path}/asked\n{rank}\n")
    (tmp_path / "ccts").chmod(0o755)
    (container,) = pod()["containers"]
    command = [*container["command"], *container["args"]]
    return subprocess.Popen(command, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, text=True)


@pytest.mark.parametrize(("code", "told"), [(0, 0), (1, 1), (2, 2), (75, 143), (137, 137)])
def test_operator_is_told_to_start_a_stopped_rank_again_and_no_other(tmp_path: Path, code: int, told: int):
    assert started(tmp_path, f"exit {code}").wait(30) == told
    assert (tmp_path / "asked").read_text() == "train RUN.toml --resume auto\n"


def test_evicted_pod_hands_the_signal_on_and_waits_for_the_checkpoint(tmp_path: Path):
    saving = f"trap 'sleep 0.3; touch {tmp_path}/saved; exit 75' TERM; while :; do sleep 0.05; done"
    process = started(tmp_path, saving)
    while not (tmp_path / "asked").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert (tmp_path / "saved").exists()
