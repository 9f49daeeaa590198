"""The folder of one run: whose it is, what lies in it.

run.toml          the resolved run file
ds_config.json    what ``train.deepspeed`` held when the run began
history.jsonl     one line per optimizer step, of the run as it counts: replayed steps stand once; epochs from 0
validations.jsonl one line per validation, likewise
tracking/         what is informed of the run, and how far the tracking server has it, see ``tracking.spooling``
STOP              made by whoever wants the run to stop; removed when it has
.ranks/           signs of life, see ``train.resilience.heartbeat``
tokenizer/        SentencePiece model of a text branch trained from scratch
checkpoints/      see ``checkpoint``
best/  last/      model folders: lowest validation loss, and the end of training
summary.json      written when training has ended: scores and seconds
curves.png        likewise, of a run that is tracked
"""

import math
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from ccts_dist.config import RunConfig, complete_run, with_present_keys
from ccts_dist.config.credentials import public_tree
from ccts_dist.config.schema import DEFAULT_THRESHOLD
from ccts_dist.distributed import Ranks, broadcast_object, run_on_all_ranks
from ccts_dist.errors import CheckpointError, ConfigError, OutputError
from ccts_dist.files.atomic import atomic_write, sync_folder
from ccts_dist.files.locking import lock
from ccts_dist.train.checkpoints.checkpoint import (
    CheckpointManifest,
    checkpoints_folder,
    find_checkpoint,
    read_manifest,
    set_aside_beyond,
)
from ccts_dist.train.checkpoints.history import History
from ccts_dist.train.resilience.storage_errors import writing
from ccts_dist.train.resolved import SAME_THRESHOLD, resolved

DS_CONFIG = "ds_config.json"

FROZEN_SECTIONS = ("seed", "model", "batch", "loss", "distill", "augment", "optim")
"""Sections that may not change on resuming: the numbers would be those of neither run."""

FROZEN_KEYS = ("train.precision", "train.ema_decay")
"""Nor these, in sections that may. How the work is spread, train.deepspeed and the ranks, may change."""

FREE_DATA_KEYS = (
    "num_workers",
    "shards",
    "teacher_cache",
    "test_splits",
    "on_corrupt",
    "max_corrupt",
    "shard_cache",
    "shard_cache_gb",
    "feature_cache",
    "pad_multiple_s",
)
"""Keys of [data] that may: shards and cache may have moved, and their digests are compared; padding is masked, and its
default depends on the machine."""

FREE_KEYS = ("augment.noises", "augment.impulse_responses", "batch.forward_rounds")
"""Keys that may in sections that may not: what is in the folders of [augment] goes into the plan's digest, and the
rounds of a step's forward passes leave its loss as it is."""


class RunFolder:
    """A run's folder, held by one job until ``close``: rank 0 locks it, and the lock ends with a process that dies."""

    def __init__(self, run: RunConfig, ranks: Ranks, *, resume: bool) -> None:
        """Claim the folder. Every rank must call it.

        Raises:
            ConfigError: another job is in it; it holds checkpoints and ``resume`` is False; ranks do not share it.
        """
        self.path = Path(run.output_dir).absolute()
        self._ranks = ranks
        self._lock: IO[str] | None = None
        token = uuid.uuid4().hex
        run_on_all_ranks(lambda: self._claim(run, token, resume) if ranks.is_first else None)
        self._token = broadcast_object(token)
        run_on_all_ranks(lambda: self._check_shared(self._token))

    def close(self) -> None:
        """Let the folder go."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim(self, run: RunConfig, token: str, resume: bool) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise ConfigError(
                f"output_dir = '{self.path}': cannot be written ({error.strerror}). Name a folder that can."
            ) from error
        if not lock(self._lock):
            self.close()
            raise ConfigError(
                f"output_dir = '{self.path}': another job is training in it. Wait for it, or name another folder."
            )
        if not resume and any(checkpoints_folder(self.path).glob("step-*")):
            self.close()
            raise ConfigError(
                f"output_dir = '{self.path}': holds checkpoints of an earlier run. Add --resume auto to go on with it, "
                "or name another folder."
            )
        with writing(self.path):
            (self.path / ".token").write_text(token)
            sync_folder(self.path)

    def _check_shared(self, token: str) -> None:
        try:
            found = (self.path / ".token").read_text()
        except OSError:
            found = ""
        if found != token:
            raise ConfigError(
                f"output_dir = '{self.path}': rank {self._ranks.rank} does not see there what rank 0 wrote. Name a "
                "folder on storage that all ranks share."
            )

    def check_there(self) -> None:
        """Raise unless the folder is still the one that was claimed. For one rank, within ``run_on_all_ranks``.

        Without this a folder that was removed would be made anew by the next checkpoint, without what lay next to it.

        Raises:
            OutputError: it has vanished, or another job has taken it.
        """
        with writing(self.path):
            found = (self.path / ".token").read_text()
        if found != self._token:
            raise OutputError(f"{self.path}: another job has taken this run folder. Stop one of the two.")

    def find_resume_point(
        self, resume: str, run: RunConfig, plan_digest: str, report: Callable[[str], None]
    ) -> Path | None:
        """The checkpoint to go on from, the same on every rank; None to start from the beginning.

        Args:
            resume: "auto" for the newest complete one, or a checkpoint's folder.
            run: must agree with the checkpoint's in all that ``FROZEN_SECTIONS`` names; other changes are reported.
            plan_digest: of the training plan; must be the checkpoint's.
            report: reads what was passed over and what has changed; on rank 0.

        Raises:
            CheckpointError: none is complete, or it is of other data.
            ConfigError: a frozen setting has changed.
        """
        found = run_on_all_ranks(lambda: self._find(resume, run, plan_digest, report) if self._ranks.is_first else None)
        return broadcast_object(found)

    def _find(self, resume: str, run: RunConfig, plan_digest: str, report: Callable[[str], None]) -> Path | None:
        if resume == "auto":
            found = find_checkpoint(self.path, report)
            if found is None:
                return None
            path, manifest = found
        else:
            path = Path(resume)
            if not path.is_dir():
                raise ConfigError(f"--resume {resume}: no such folder. Give a checkpoint's folder, or auto.")
            if path.absolute().parent != checkpoints_folder(self.path):
                raise ConfigError(
                    f"--resume {resume}: not a checkpoint of this run, whose best model and history would be missing. "
                    f"Give one of {checkpoints_folder(self.path)}, or auto."
                )
            manifest = read_manifest(path)
        self._check_same_run(path, manifest, run, plan_digest, report)
        with writing(path):
            set_aside_beyond(path, manifest.step, report)
        return path

    def _check_same_run(
        self,
        path: Path,
        manifest: CheckpointManifest,
        run: RunConfig,
        plan_digest: str,
        report: Callable[[str], None],
    ) -> None:
        run = resolved(run)
        before = resolved(
            complete_run(
                _as_it_was(with_present_keys(manifest.run, source=path.name, stored=True), run), source=path.name
            )
        )
        for key, (then, now) in changed_keys(public_tree(before), public_tree(run)).items():
            if key == "distill.threshold" and _is_same_threshold(then, now):
                continue
            section, _, rest = key.partition(".")
            frozen = section in FROZEN_SECTIONS or (section == "data" and rest not in FREE_DATA_KEYS)
            frozen = (frozen and key not in FREE_KEYS) or key in FROZEN_KEYS
            if frozen:
                raise ConfigError(
                    f"{key} = {now!r}: was {then!r} when {path.name} was written, and must not change within a run. "
                    "Set it back, or start another run in another folder."
                )
            report(f"changed since {path.name}: {key}: {then!r} -> {now!r}")
        if manifest.plan_digest != plan_digest:
            raise CheckpointError(
                f"{path}: was trained on plan {manifest.plan_digest[:12]}, the shards here, and the sounds of "
                f"[augment] and keys of distill.gate_keys if there are any, give {plan_digest[:12]}. Resume with those "
                "the run began with."
            )
        if manifest.num_ranks != self._ranks.num_ranks:
            report(f"changed since {path.name}: number of ranks: {manifest.num_ranks} -> {self._ranks.num_ranks}")

    def write_file(self, name: str, text: str) -> None:
        """Keep a small file with what the run made; rank 0 writes, every rank must call it.

        Raises:
            OutputError: on all ranks alike.
        """
        run_on_all_ranks(lambda: self._write_file(name, text) if self._ranks.is_first else None)

    def _write_file(self, name: str, text: str) -> None:
        with writing(self.path / name):
            atomic_write(self.path / name, text.encode())

    def open_history(self, steps_done: int, name: str = "history.jsonl") -> History | None:
        """A history on rank 0, cut back to the steps that the checkpoint has; None on other ranks.

        Raises:
            OutputError: on all ranks alike.
        """
        path = self.path / name
        return run_on_all_ranks(lambda: History(path, steps_done) if self._ranks.is_first else None)


def _as_it_was(run: Mapping[str, Any], now: RunConfig) -> dict[str, Any]:
    """A checkpoint's run tree, with what an earlier version did where today's default is another.

    Earlier versions recorded the default threshold beside ``distill.reject_fraction``, whatever they had found.
    """
    optim = run.get("optim", {})
    if isinstance(optim, Mapping) and "decay_norms_and_biases" not in optim:
        optim = {**optim, "decay_norms_and_biases": bool(optim.get("weight_decay"))}
    tree = {**run, "optim": optim}
    distill = run.get("distill")
    if isinstance(distill, Mapping) and "embedding_loss" not in distill:
        distill = tree["distill"] = {**distill, "embedding_loss": "mse"}
    if (
        isinstance(distill, Mapping)
        and distill.get("reject_fraction")
        and distill.get("threshold") == DEFAULT_THRESHOLD
    ):
        tree["distill"] = {key: value for key, value in distill.items() if key != "threshold"}
        if now.distill is not None and now.distill.threshold is not None:
            tree["distill"]["threshold"] = now.distill.threshold
    return tree


def _is_same_threshold(then: Any, now: Any) -> bool:
    known = isinstance(then, float | int) and isinstance(now, float | int)
    return known and math.isclose(then, now, rel_tol=SAME_THRESHOLD)


def changed_keys(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two run trees, with both values; None stands for absent."""
    flat_then, flat_now = _flat(then), _flat(now)
    keys = sorted(flat_then.keys() | flat_now.keys())
    pairs = {key: (flat_then.get(key), flat_now.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
