"""Checkpoints: folders that count only when their own manifest is there and true.

    <output>/checkpoints/step-00000123/
        weights.safetensors     every parameter and buffer, whole, in float32
        exp_avg.safetensors     and what else the optimizer keeps for each trained parameter: exp_avg_sq, step
        average.safetensors     moving average of each trained parameter, with train.ema_decay
        state.json              position, schedule, best model so far
        manifest.json           written last: size and SHA-256 of every file, step, ranks, plan digest, run file

Nothing in it depends on the ranks or on the ZeRO stage that wrote it, and nothing is unpickled. Written beside its
place, synced to disk, then renamed. Whoever is killed in between leaves a folder whose name reports so.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ccts_dist.config.renamed import with_present_metrics, with_present_names
from ccts_dist.distributed import Ranks, run_on_all_ranks
from ccts_dist.errors import CheckpointError, OutputError
from ccts_dist.files.atomic import sync_folder
from ccts_dist.files.digests import is_digest
from ccts_dist.files.strict_json import json_text
from ccts_dist.limits import MOST_TEXT_BYTES, parse_json, read_limited
from ccts_dist.train.resilience.storage_errors import writing

FORMAT_VERSION = 2
_PARTIAL = ".partial"
_REPLACED = ".replaced"
_ABANDONED = "abandoned-"


@dataclass(slots=True, kw_only=True)
class TrainState:
    """State of training; all that is needed to go on beside weights and optimizer state."""

    step: int = 0
    """Optimizer steps taken since the start of training."""

    epoch: int = 0
    step_in_epoch: int = 0
    best_loss: float | None = None
    """Lowest criterion of a validation (``scoring.predict_split.Scores``); None before any finite one."""

    best_epoch: int = -1
    since_best: int = 0
    """Validations since the best one, none of which was better."""

    validated_step: int = 0
    """Steps that were taken when the model was last validated."""

    num_skipped: int = 0
    """Steps skipped since the start: loss not finite, or overflow."""

    skipped_in_a_row: int = 0
    schedule: dict[str, Any] = field(default_factory=dict)
    epoch_sums: dict[str, float] = field(default_factory=dict)
    """Running sums of the epoch that is under way, for its mean figures."""

    distilled_fraction: float | None = None
    """Share of the utterances that were distilled, in the last whole epoch; None without a teacher."""

    graph_samples: int | None = None
    """``Rounds.graph_samples``, where it follows from the memory that happened to be free; None where it was not."""

    finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointManifest:
    """The manifest of a checkpoint."""

    step: int
    num_ranks: int
    """That wrote it; any number can go on from it."""

    plan_digest: str
    run: Mapping[str, Any]
    """The resolved run file as plain values."""

    files: Mapping[str, tuple[int, str]]
    """Path inside the checkpoint -> (size in bytes, SHA-256)."""


def checkpoints_folder(output: Path) -> Path:
    """Folder of a run's checkpoints."""
    return output / "checkpoints"


class CheckpointFiles:
    """The folder of one checkpoint, from its beginning to its place. For the one rank that writes.

    Until ``finish`` renames it the previous checkpoints are untouched, so a kill at any moment loses only the steps
    since. ``state`` is taken as it is now: training may go on while the checkpoint is written.
    """

    def __init__(
        self, output: Path, state: TrainState, *, run: Mapping[str, Any], plan_digest: str, ranks: Ranks, keep: int
    ) -> None:
        self._output, self._keep = output, keep
        self.final = checkpoints_folder(output) / f"step-{state.step:08d}"
        """Folder of the checkpoint once it is complete."""

        self.partial = self.final.with_name(self.final.name + _PARTIAL)
        """Folder of its files while they are written."""

        self._state = json_text(asdict(state), indent=1)
        self._manifest = {
            "format_version": FORMAT_VERSION,
            "step": state.step,
            "num_ranks": ranks.num_ranks,
            "plan_digest": plan_digest,
            "run": run,
        }

    def begin(self) -> None:
        """Make the folder.

        Raises:
            OutputError: it cannot be made.
        """
        with writing(self.partial):
            _remove(self.partial)
            self.partial.mkdir(parents=True)

    def finish(self, written: Mapping[str, tuple[int, str]]) -> None:
        """Complete the checkpoint, remove all but the newest ``keep``, and what kills have left half written.

        Args:
            written: size and SHA-256 of files that are synced to disk already, by name.

        Raises:
            OutputError: it cannot be written.
        """
        partial = self.partial
        with writing(partial):
            _write_synced(partial / "state.json", self._state)
            others = (path for path in _files(partial) if str(path.relative_to(partial)) not in written)
            files = {str(path.relative_to(partial)): _sync_and_digest(path) for path in others}
            manifest = {**self._manifest, "files": {**files, **written}}
            _write_synced(partial / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True))
            for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
                sync_folder(folder)
            _put_in_place(partial, self.final)
            _prune(self._output, self._keep)

    def discard(self) -> None:
        """Take away what was written, if that can be done: it makes room, where room was what it wanted."""
        shutil.rmtree(self.partial, ignore_errors=True)


def write_checkpoint(
    output: Path,
    state: TrainState,
    *,
    run: Mapping[str, Any],
    plan_digest: str,
    ranks: Ranks,
    save_engine: Callable[[Path], Mapping[str, tuple[int, str]]],
    keep: int,
) -> Path:
    """Write a complete checkpoint before returning. Every rank must call it.

    Args:
        save_engine: writes into the folder it is given; every rank calls it, and a failure is raised on all alike.
            Gives, on rank 0, size and SHA-256 of the files that it has synced to disk.

    Raises:
        OutputError: on all ranks alike: rank 0 could not write. Nothing of it is left, if that can be helped.
    """
    files = CheckpointFiles(output, state, run=run, plan_digest=plan_digest, ranks=ranks, keep=keep)
    try:
        run_on_all_ranks(lambda: files.begin() if ranks.is_first else None)
        written = save_engine(files.partial)
        run_on_all_ranks(lambda: files.finish(written) if ranks.is_first else None)
    except OutputError:
        if ranks.is_first:
            files.discard()
        raise
    return files.final


def find_checkpoint(output: Path, warn: Callable[[str], None]) -> tuple[Path, CheckpointManifest] | None:
    """The newest complete checkpoint of a run; ``warn`` is given which were passed over and why. None when none was
    begun.

    Raises:
        CheckpointError: there are checkpoints, and none is complete.
    """
    folder = checkpoints_folder(output)
    candidates = sorted((path for path in folder.glob("step-*") if path.is_dir()), key=_age, reverse=True)
    passed_over: list[CheckpointError] = []
    for path in candidates:
        if path.name.endswith(_PARTIAL):
            warn(f"{path}: passed over: it was still being written when training stopped.")
            continue
        try:
            return path, read_manifest(path)
        except CheckpointError as error:
            passed_over.append(error)
            warn(f"passed over: {error}")
    if passed_over:
        raise CheckpointError(
            f"{folder}: none of {len(passed_over)} checkpoints can be used; the newest: {passed_over[0]} Start again "
            "in another folder."
        )
    return None


def set_aside_beyond(point: Path, step: int, report: Callable[[str], None]) -> None:
    """Rename the checkpoints of later steps than that from which a run now goes on; ``report`` is given of each.

    What was passed over, or left behind on purpose, is no longer of the run as it counts: the newest checkpoint is
    again the last that the run has written.

    Raises:
        OSError: the folder cannot be changed.
    """
    for path in sorted(point.parent.glob("step-*")):
        name = path.name.removesuffix(_REPLACED)
        if path.is_dir() and name.removeprefix("step-").isdecimal() and int(name.removeprefix("step-")) > step:
            aside = path.with_name(_ABANDONED + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            report(
                f"{path.name} is set aside as {aside.name}: the run goes on from step {step}. Remove it, or resume it."
            )
    sync_folder(point.parent)


def read_manifest(folder: Path) -> CheckpointManifest:
    """The manifest of a checkpoint, once every file is there with its size and digest.

    Raises:
        CheckpointError: names the first file that is missing or differs.
    """
    try:
        tree = parse_json(read_limited(folder / "manifest.json", "checkpoint manifest.json"))
        version = tree["format_version"]
        manifest = CheckpointManifest(
            step=tree["step"],
            num_ranks=tree["num_ranks"],
            plan_digest=tree["plan_digest"],
            run=tree["run"],
            files={name: (size, digest) for name, (size, digest) in tree["files"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: incomplete: no readable manifest.json ({_words(error)}).") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}: checkpoint format {version}, this program reads {FORMAT_VERSION}. Finish the run with the "
            "version of the program that began it."
        )
    if fault := _form_fault(manifest):
        raise CheckpointError(f"{folder}: manifest.json {fault}. It was altered: this checkpoint is not used.")
    for name, (size, digest) in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(f"{path}: missing, or not of the {size} bytes that the manifest states.")
        if _digest(path) != digest:
            raise CheckpointError(f"{path}: altered: its SHA-256 is not the manifest's {digest[:12]}.")
    return manifest


def _form_fault(manifest: CheckpointManifest) -> str:
    """Fault, in words, of a manifest by itself; empty if there is none. Anybody may have written it."""
    for name in ("step", "num_ranks"):
        number = getattr(manifest, name)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 62:
            return f"has {str(number)[:60]!r} for {name}: must be a whole number"
    if not isinstance(manifest.plan_digest, str) or not isinstance(manifest.run, dict):
        return "has a plan_digest that is no text, or a run that is no object"
    if "state.json" not in manifest.files:
        return "names no state.json"
    for name, (size, digest) in manifest.files.items():
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts or not name.isprintable() or len(name) > MOST_TEXT_BYTES:
            return f"names a file {name[:60]!a}: must be a path within the checkpoint"
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            return f"has {str(size)[:60]!r} for the bytes of {name}"
        if not isinstance(digest, str) or not is_digest(digest):
            return f"has {str(digest)[:60]!r} for the SHA-256 of {name}"
    return ""


def _words(error: Exception) -> str:
    return " ".join(repr(error).split())[:160]


def read_state(folder: Path) -> TrainState:
    """The training state of a checkpoint whose manifest was read.

    Raises:
        CheckpointError: it is not a state that this program writes, though its digest agrees.
    """
    try:
        tree = json.loads(read_limited(folder / "state.json", "checkpoint state.json"))  # a sum may be NaN
        tree = with_present_names(tree)
        tree["epoch_sums"] = with_present_metrics(tree.get("epoch_sums", {}))
        state = TrainState(**tree)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / 'state.json'}: no training state ({_words(error)}).") from error
    for name, default in asdict(TrainState()).items():
        value = getattr(state, name)
        kinds = (int, float, type(None)) if default is None else (type(default),)
        if not isinstance(value, kinds):
            raise CheckpointError(f"{folder / 'state.json'}: has {str(value)[:60]!r} for {name}: no training state.")
    return state


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_and_digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.stat().st_size, _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put_in_place(partial: Path, final: Path) -> None:
    """Rename, without a moment in which neither is there when the step has been checkpointed before."""
    replaced = final.with_name(final.name + _REPLACED)
    if final.exists():
        _remove(replaced)
        final.rename(replaced)
    partial.rename(final)
    sync_folder(final.parent)
    _remove(replaced)


def _age(path: Path) -> tuple[str, bool]:
    """Sorts checkpoints by their step; of one step, that which was replaced is the older."""
    return path.name.removesuffix(_REPLACED), not path.name.endswith(_REPLACED)


def _prune(output: Path, keep: int) -> None:
    found = list(checkpoints_folder(output).glob("step-*"))
    complete = sorted((path for path in found if not path.name.endswith(_PARTIAL)), key=_age)
    for path in (*complete[:-keep], *(path for path in found if path.name.endswith(_PARTIAL))):
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint if it is there. Renamed first: half-removed, it must not look like an altered one."""
    doomed = path if path.name.endswith(_PARTIAL) else path.with_name(path.name + _PARTIAL)
    if path != doomed and path.exists():
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
    if doomed.exists():
        shutil.rmtree(doomed)
