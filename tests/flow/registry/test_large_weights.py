"""Weights of HuBERT-large's size go to a server and come back without being held in memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes.launching import ROOT, free_port
from tests.helpers.servers.mlflow_server import mlflow_server

NUM_PARAMETERS = 315_000_000
"""1.26 GB in float32."""

MOST_MB = 300
"""More than the process had before; one copy of the weights would be four times that. 170 MB were seen."""

CLIENT = """
import json, os, random, struct, sys
from pathlib import Path
from ccts_dist.registry.package import write_package
from ccts_dist.registry.publish import _new_run, _save_mlflow_model, _store
from ccts_dist.registry.pull import pull_model
from ccts_dist.files.atomic import file_sha256
from ccts_dist.tracking.mlflow_client import large_transfers, open_client
from ccts_dist.train.memory.peak import peak_resident_bytes

uri, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
(folder / "model").mkdir()
head = json.dumps({"w": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
chance = random.Random(0)
with open(folder / "model" / "model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(head)) + head)
    file.truncate(8 + len(head) + 4 * count)
    for _ in range(200):  # a sparse file, with some bytes everywhere
        file.seek(8 + len(head) + chance.randrange(4 * count - 4096))
        file.write(chance.randbytes(4096))
client = open_client(uri)
run_id = _new_run(client, uri, "large")
digests = write_package(folder / "model", folder / "package", card="large")
_save_mlflow_model(folder / "package", folder / "mlflow", ["valence"])
before = peak_resident_bytes()
with large_transfers():
    version = _store(client, folder / "mlflow", "large", "candidate", run_id, digests, {})
uploaded = peak_resident_bytes()
pulled = pull_model("models:/large@candidate", tracking_uri=uri, cache=folder / "cache").folder
after = peak_resident_bytes()
same = file_sha256(pulled / "model.safetensors") == digests["model.safetensors"]
print(json.dumps({"up": (uploaded - before) / 1e6, "down": (after - uploaded) / 1e6, "same": same}))
"""


@pytest.mark.long
def test_weights_of_large_size_pass_through_a_server_in_bounded_memory(tmp_path: Path) -> None:
    with mlflow_server(tmp_path, port=free_port()) as uri:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, uri, str(tmp_path), str(NUM_PARAMETERS)],
            cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    reported = json.loads(done.stdout.splitlines()[-1])
    assert reported["same"]
    assert reported["up"] < MOST_MB, reported
    assert reported["down"] < MOST_MB, reported
    (stored,) = (tmp_path / "files").rglob("model.safetensors")
    assert stored.stat().st_size > 4 * NUM_PARAMETERS
