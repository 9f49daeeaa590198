"""The demo's student on the demo's own corpus, with a teacher's cache, in minutes: what training is timed on.

The teacher is an untrained model of the student's shape: what it states is of no use, and costs what a good one's does.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tomli_w
import torch

from ccts_dist.config import parse_run, run_to_tree
from ccts_dist.corpus import SpokenConfig, make_spoken_corpus
from ccts_dist.distributed import Ranks
from ccts_dist.model import build_model, save_model
from ccts_dist.process.seeds import seed_everything
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from ccts_dist.teacher import cache_teacher
from tests.helpers.processes.launching import ROOT, environment, launcher

RUN_FILE = ROOT / "launch" / "runs" / "demo" / "cts.toml"


def work_folder() -> Path:
    """Where corpora are kept between benches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccts_dist" / "bench" / "demo"


def prepare(folder: Path, num_utterances: int, *, seconds: float | None = None) -> ShardSet:
    """The shards and the cache of a spoken corpus of so many utterances; made once.

    Args:
        seconds: cut each recording to this length, or repeat it until it has it.
    """
    corpus, shards = folder / "corpus", folder / "shards"
    build = ["demo", "--corpus", str(corpus), "--utterances", str(num_utterances)]
    if seconds is not None:
        make_spoken_corpus(corpus, SpokenConfig(num_utterances=num_utterances))
        build = ["msp-podcast", str(_of_one_length(corpus, folder / "of-one-length", seconds))]
    subprocess.run(
        [sys.executable, "shards/build.py", *build, "--out", str(shards)], cwd=ROOT, check=True, stdout=sys.stderr
    )
    shard_set = open_shard_set(shards)
    seed_everything(0)
    config = parse_run(tomllib.loads(RUN_FILE.read_text())).model
    teacher = build_model(config)
    if not (folder / "teacher").exists():
        save_model(
            folder / "teacher",
            teacher.state_dict(),
            config,
            encoders=teacher.encoder_configs,
            scale=shard_set.manifest.scale,
            extra={"train_splits": ["Train"]},
        )
    cache_teacher([folder / "teacher"], shard_set, folder / "cache", ranks=Ranks(), device=torch.device("cpu"))
    return shard_set


def _of_one_length(corpus: Path, even: Path, seconds: float) -> Path:
    """A copy of the corpus with recordings of one length."""
    if even.exists():
        return even
    unfinished = even.with_suffix(".partial")
    shutil.copytree(corpus, unfinished, dirs_exist_ok=True)
    for path in (unfinished / "Audios").iterdir():
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(path, np.resize(samples, int(seconds * rate)), rate)
    return unfinished.rename(even)


def write_run(path: Path, data: Path, output: Path, **sections: Mapping[str, Any]) -> Path:
    """The demo's run file for what ``prepare`` left in ``data``, without tracking; ``sections`` are merged in."""
    tree = tomllib.loads(RUN_FILE.read_text()) | {"output_dir": str(output)}
    own: dict[str, Mapping[str, Any]] = {
        "data": {"shards": str(data / "shards"), "teacher_cache": str(data / "cache"), "test_splits": []},
        "tracking": {"backend": "none", "registered_model_name": ""},
    }
    for name in dict.fromkeys([*own, *sections]):
        tree[name] = {**tree.get(name, {}), **own.get(name, {}), **sections.get(name, {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(run_to_tree(parse_run(tree))))
    return path


def start(num_ranks: int, cores: Sequence[int], script: str, *args: str, tree: Path = ROOT) -> subprocess.Popen[str]:
    """A script under the launcher, on these cores alone; as users start it, with no number of threads given.

    Args:
        tree: a checkout of some revision, whose library is used.
    """
    own = environment({"PYTHONPATH": str(tree)})
    del own["OMP_NUM_THREADS"]
    return subprocess.Popen(
        [*launcher(num_ranks), script, *args],
        cwd=tree,
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )


def finish(process: subprocess.Popen[str], *, timeout_s: float) -> None:
    """Wait for its end; all its words if it was not a good one."""
    printed, _ = process.communicate(timeout=timeout_s)
    if process.returncode != 0:
        sys.exit(f"exit code {process.returncode}\n{printed[-6000:]}")
