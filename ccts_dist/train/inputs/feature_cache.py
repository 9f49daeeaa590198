"""Cached features: frozen encoders run once, before training, over all that is trained and validated on."""

import hashlib
import json
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from ccts_dist.batches import Batch
from ccts_dist.config import RunConfig, SpeechConfig, TextConfig, cached_branches, speech_tables
from ccts_dist.device.arithmetic import exact_float32
from ccts_dist.distributed import Ranks, best_device, broadcast_object, gather_objects, run_on_all_ranks
from ccts_dist.errors import ConfigError
from ccts_dist.files.atomic import file_sha256
from ccts_dist.files.locking import lock
from ccts_dist.loader.collate import EncodeText
from ccts_dist.loader.loader import Loader
from ccts_dist.model import EmotionModel
from ccts_dist.model.branches import SpeechBranch, TextBranch
from ccts_dist.model.speech.feature_extractor_branch import ExtractedBranch
from ccts_dist.model.text.tokenizer import Tokenizer
from ccts_dist.progress import Progress, log
from ccts_dist.shards.feature_cache import FrameCache, FrameType, has_frames, write_frames
from ccts_dist.shards.format.schema import ShardEntry
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.teacher.forward import BATCH_SECONDS, shard_batches
from ccts_dist.train.resilience.storage_errors import writing

_FORMAT = 1
"""Goes into every encoder's digest: frames that were made in another way are not read."""


@dataclass(frozen=True, slots=True)
class CachedFeatures:
    """The features of every frozen encoder."""

    caches: Mapping[str, FrameCache]
    """By branch of the model."""

    needs_audio: bool
    """False where all speech encoders are cached: audio need not be decoded."""

    def use_in(self, *loaders: Loader) -> None:
        """Let the loaders read them in place of what those encoders take."""
        for loader in loaders:
            loader.use_features(self.caches, needs_audio=self.needs_audio)


def cache_features(
    run: RunConfig, model: EmotionModel, tokenizer: Tokenizer | None, shard_set: ShardSet, ranks: Ranks
) -> CachedFeatures:
    """The features of every frozen encoder for training and validation, made where missing. Every rank must call it.

    The ranks share the shards, one each at a time, so that an error ends all of them; killed, it goes on where it was.

    Raises:
        ShardError: a member is damaged.
        OutputError: the folder cannot be written.
        ConfigError: the ranks do not share the folder.
    """
    shards = list(shard_set.shards_of((*run.data.train_splits, *run.data.valid_splits)))
    caches: dict[str, FrameCache] = {}
    for name, config in cached_branches(run.model).items():
        branch = model.get_submodule(name)
        assert isinstance(branch, SpeechBranch | ExtractedBranch | TextBranch)
        digest = run_on_all_ranks(lambda branch=branch, config=config: _digest(branch, config, run, tokenizer))
        if len(set(gather_objects(digest))) > 1:
            raise ConfigError(f"model.{name}: ranks have different encoders there. Give all hosts the same files.")
        work = _Work(
            branch=branch,
            folder=Path(run.data.feature_cache).absolute() / digest[:16],
            shard_set=shard_set,
            encode_text=tokenizer.encode if tokenizer is not None and isinstance(branch, TextBranch) else None,
            frame_type=run.data.feature_cache_dtype,
            skip_damaged=run.data.on_corrupt == "skip",
            device=best_device(ranks),
        )
        with _alone(work.folder, ranks):
            _make(work, name, shards, ranks)
        caches[name] = run_on_all_ranks(lambda work=work: _open(work.folder, shards))
    return CachedFeatures(caches, needs_audio=len(caches.keys() - {"text"}) < len(speech_tables(run.model)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One encoder's frames to be made."""

    branch: SpeechBranch | ExtractedBranch | TextBranch
    folder: Path
    shard_set: ShardSet
    encode_text: EncodeText | None
    frame_type: FrameType
    skip_damaged: bool
    device: torch.device

    def make(self, shard: ShardEntry) -> None:
        """Those of one shard."""
        rows = self.shard_set.rows(shard.name)
        batches = shard_batches(self.shard_set, rows, [self.encode_text], BATCH_SECONDS, skip_damaged=self.skip_damaged)
        features = self.branch.encoder.config.hidden_size
        with writing(self.folder):
            write_frames(self.folder, shard, self._frames(batches), features=features, frame_type=self.frame_type)

    @torch.inference_mode()
    def _frames(self, batches: Iterable[tuple[list[int], list[Batch]]]) -> Iterator[tuple[int, np.ndarray]]:
        for numbers, (batch,) in batches:
            moved = batch.to(self.device)
            with exact_float32():
                hidden, num_frames = self._encode(moved)
            rows = zip(numbers, hidden.float().cpu().numpy(), num_frames.tolist(), batch.weight.tolist(), strict=True)
            for number, row, count, weight in rows:
                yield number, row[: max(1, count) if weight else 0]

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not isinstance(self.branch, TextBranch):
            return self.branch.encode(batch.audio, batch.num_samples)
        assert batch.tokens is not None
        assert batch.num_tokens is not None
        return self.branch.encode(batch.tokens, batch.num_tokens)


def _make(work: _Work, name: str, shards: Sequence[ShardEntry], ranks: Ranks) -> None:
    """Make the missing files, in rounds of one shard per rank, the largest first."""
    found = run_on_all_ranks(lambda: [not has_frames(work.folder, shard) for shard in shards] if ranks.is_first else [])
    is_missing = broadcast_object(found)
    missing = [shard for shard, lacks in zip(shards, is_missing, strict=True) if lacks]
    if not missing:
        return
    log(
        f"{work.folder}: making the frames of model.{name} for {len(missing)} of {len(shards)} shards",
        visible=ranks.is_first,
    )
    missing.sort(key=lambda shard: (-shard.num_samples, shard.name))
    work.branch.to(work.device).eval()
    total = sum(shard.num_utterances for shard in missing)
    with Progress(total, f"frames of {name}", unit="utterances", visible=ranks.is_first) as progress:
        for start in range(0, len(missing), ranks.num_ranks):
            round_of = missing[start : start + ranks.num_ranks]
            own = round_of[ranks.rank] if ranks.rank < len(round_of) else None
            run_on_all_ranks(lambda own=own: None if own is None else work.make(own))
            progress.advance(sum(shard.num_utterances for shard in round_of))
    work.branch.to("cpu").train()


@contextmanager
def _alone(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Let another run that makes frames in this folder finish first; it may make those that are wanted here."""

    def take() -> IO[bytes] | None:
        if not ranks.is_first:
            return None
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / ".lock").open("ab")
        lock(file, wait=True)
        return file

    file = run_on_all_ranks(take)
    try:
        yield
    finally:
        if file is not None:
            file.close()


def _open(folder: Path, shards: Sequence[ShardEntry]) -> FrameCache:
    if not all(has_frames(folder, shard) for shard in shards):
        raise ConfigError(
            f"data.feature_cache: {folder} has not on {platform.node()} what other ranks have written there. "
            "Name a folder on storage that all ranks share."
        )
    return FrameCache(folder, shards)


def _digest(
    branch: SpeechBranch | ExtractedBranch | TextBranch,
    config: SpeechConfig | TextConfig,
    run: RunConfig,
    tokenizer: Tokenizer | None,
) -> str:
    """Digest of everything that a frame depends on, beside the utterance."""
    settings: dict[str, Any] = {"format": _FORMAT, "layers": config.layers, "type": run.data.feature_cache_dtype}
    parts: dict[str, nn.Module] = {"encoder": branch.encoder}
    if isinstance(branch, SpeechBranch):
        settings["normalise"] = branch.do_normalize
        parts["front_end"] = branch.front_end
    elif isinstance(branch, ExtractedBranch):
        settings["extractor"] = branch.extractor.to_dict()
    elif tokenizer is not None and isinstance(config, TextConfig):
        settings["tokenizer"] = _files_of(tokenizer)
        settings["max_tokens"] = config.max_tokens
    settings["shape"] = _without_names(branch.encoder.config.to_dict())
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for part, module in parts.items():
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{part}.{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _without_names(shape: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what names where it came from and who wrote it."""
    return {key: value for key, value in shape.items() if key not in ("_name_or_path", "transformers_version")}


def _files_of(tokenizer: Tokenizer) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save(Path(scratch))
        return {path.name: file_sha256(path) for path in sorted(Path(scratch).rglob("*")) if path.is_file()}
