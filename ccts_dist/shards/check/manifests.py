"""Damage in the documents of a shard set or cache: what a manifest states by itself, and the small files it names."""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence

from ccts_dist.errors import TeacherError
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.shards.build.finalize import split_totals
from ccts_dist.shards.check.files import read_small
from ccts_dist.shards.check.findings import Finding, without_name
from ccts_dist.shards.format.schema import (
    AUDIO_MEMBER,
    CONDITION_NAME,
    JSON_MEMBER,
    MANIFEST_NAME,
    REJECTED_NAME,
    TEACHER_MEMBER,
    Manifest,
    ShardEntry,
    TeacherFacts,
    escape_key,
)
from ccts_dist.shards.format.sealed_json import parse_document
from ccts_dist.shards.format.tars import short
from ccts_dist.shards.format.teacher_cache import (
    CacheManifest,
    CacheShard,
    ConditionFile,
    condition_faults,
    facts_faults,
)
from ccts_dist.shards.stores.store import FileStore

_COUNTS = ("rejected", "resampled", "mixed_down")
"""Counts of utterances, in every manifest."""


def manifest_findings(manifest: Manifest) -> Iterator[Finding]:
    """A shard set's manifest against itself."""
    for what in _manifest_faults(manifest):
        yield Finding(shard=MANIFEST_NAME, what=what)


def cache_manifest_findings(manifest: CacheManifest, source: Manifest, source_digest: str) -> Iterator[Finding]:
    """A cache's manifest against itself, and against the shard set that it was made for.

    Args:
        source_digest: content digest of the shard set.
    """
    if manifest.shard_set_digest != source_digest:
        what = f"was made for shard set {manifest.shard_set_digest[:12]}, and this one is {source_digest[:12]}"
        yield Finding(shard=MANIFEST_NAME, what=f"of the cache: {what}")
    for what in [*_entry_faults(manifest.shards), *facts_faults(manifest.teacher), *_covered(manifest, source)]:
        yield Finding(shard=MANIFEST_NAME, what=f"of the cache: {what}")


def rejected_findings(store: FileStore, manifest: Manifest) -> Iterator[Finding]:
    """``rejected.jsonl`` of a plain shard set, against the manifest's count and digest."""
    if manifest.teacher is not None:
        return
    stated = manifest.counts.get("rejected")
    data = read_small(store, REJECTED_NAME, manifest.rejected_sha256)
    if isinstance(data, Finding):
        yield data
    elif stated is not None and (counted := len(data.splitlines())) != stated:
        yield Finding(shard=REJECTED_NAME, what=f"has {counted} lines, and the manifest counts {stated}")
    elif manifest.rejected_sha256 and hashlib.sha256(data).hexdigest() != manifest.rejected_sha256:
        yield Finding(shard=REJECTED_NAME, what="is damaged, or another one: its SHA-256 is not the manifest's")


def condition_findings(store: FileStore, facts: TeacherFacts, splits: Sequence[str]) -> Iterator[Finding]:
    """``condition.json`` beside a manifest: its digest, and what it states by itself.

    Args:
        splits: those that it may have been fitted on.
    """
    data = read_small(store, CONDITION_NAME, facts.condition_sha256)
    if isinstance(data, Finding):
        yield data
        return
    if hashlib.sha256(data).hexdigest() != facts.condition_sha256:
        yield Finding(shard=CONDITION_NAME, what="is not the one that the manifest names: its SHA-256 differs")
        return
    try:
        document = parse_document(ConditionFile, data, where=CONDITION_NAME, error=TeacherError)
    except TeacherError as error:
        yield Finding(shard=CONDITION_NAME, what=without_name(error, CONDITION_NAME))
        return
    condition = document.condition
    for what in condition_faults(condition, facts):
        yield Finding(shard=CONDITION_NAME, what=what)
    if not condition.splits or set(condition.splits) - set(splits):
        what = f"was fitted on {_names(condition.splits)}, and the splits here are {_names(splits)}"
        yield Finding(shard=CONDITION_NAME, what=what)


def _manifest_faults(manifest: Manifest) -> Iterator[str]:
    if manifest.sample_rate_hz != SAMPLE_RATE_HZ:
        yield f"states {manifest.sample_rate_hz} Hz, and all shards have {SAMPLE_RATE_HZ}"
    scale = manifest.scale
    if len(scale) != 2 or not all(map(math.isfinite, scale)) or not scale[0] < scale[1]:
        yield f"states the scale {list(scale)}, which must be a lower and an upper end"
    if len(set(manifest.targets)) != len(manifest.targets):
        yield f"names a target twice: {_names(manifest.targets)}"
    wanted = (AUDIO_MEMBER, JSON_MEMBER) if manifest.teacher is None else (AUDIO_MEMBER, JSON_MEMBER, TEACHER_MEMBER)
    if manifest.members != wanted:
        yield f"states the members {_names(manifest.members)}, which must be {', '.join(wanted)}"
    if manifest.categories != tuple(sorted(set(manifest.categories))):
        yield f"lists categories out of order or twice: {_names(manifest.categories)}"
    yield from _entry_faults(manifest.shards)
    yield from _name_faults(manifest.shards)
    yield from _total_faults(manifest)
    yield from _count_faults(manifest)
    if manifest.teacher is None and not manifest.rejected_sha256:
        yield "has '' for rejected_sha256, which is no SHA-256"
    if bool(manifest.source_digest) != (manifest.teacher is not None):
        yield "names a source and no teacher, or a teacher and no source: merged sets have both, plain ones neither"
    if manifest.teacher is not None:
        yield from facts_faults(manifest.teacher)


def _count_faults(manifest: Manifest) -> Iterator[str]:
    for name in _COUNTS:
        if name not in manifest.counts:
            yield f"does not count the utterances that were {name.replace('_', ' ')}"
    for name, count in manifest.counts.items():
        if count < 0:
            yield f"counts {count} utterances as {short(name)}"


def _total_faults(manifest: Manifest) -> Iterator[str]:
    totals = split_totals(manifest.shards)
    if set(totals) != set(manifest.splits):
        yield f"lists splits {sorted(manifest.splits)}, and its shards are of {sorted(totals)}"
    for split in sorted(set(totals) & set(manifest.splits)):
        stated, counted = manifest.splits[split], totals[split]
        if stated.num_utterances != counted.num_utterances or not math.isclose(stated.hours, counted.hours):
            yield (
                f"states that split {split!r} has {stated.num_utterances} utterances and {stated.hours:.4f} hours, "
                f"and its shards add up to {counted.num_utterances} and {counted.hours:.4f}"
            )


def _entry_faults(shards: Sequence[ShardEntry] | Sequence[CacheShard]) -> Iterator[str]:
    for shard in shards:
        numbers = {"num_utterances": shard.num_utterances, "size_bytes": shard.size_bytes}
        if isinstance(shard, ShardEntry):
            numbers["num_samples"] = shard.num_samples
        for name, number in numbers.items():
            if not 0 < number < 1 << 62:
                yield f"has {number} for {name} of {shard.name}"
        if not shard.index.sha256:
            yield f"has no SHA-256 of the index rows of {shard.name}"


def _name_faults(shards: Sequence[ShardEntry]) -> Iterator[str]:
    last: dict[str, int] = {}
    for shard in shards:
        number = shard.name.removeprefix(f"{escape_key(shard.split)}-").removesuffix(".tar")
        if not re.fullmatch(r"[0-9]{6,18}", number):
            yield f"has a shard {short(shard.name)} of split {short(shard.split)}: no name of a shard of that split"
        elif int(number) <= last.get(shard.split, -1):
            yield f"lists {shard.name} after number {last[shard.split]} of its split: out of order"
        else:
            last[shard.split] = int(number)


def _covered(manifest: CacheManifest, source: Manifest) -> Iterator[str]:
    """A cache has all shards of a split or none, in the shard set's order."""
    splits = {shard.name: shard.split for shard in source.shards}
    cached = [shard.name for shard in manifest.shards]
    covered = {splits[name] for name in cached if name in splits}
    wanted = [name for name, split in splits.items() if split in covered]
    known = [name for name in cached if name in splits]
    missing = [name for name in wanted if name not in set(known)]
    if missing:
        more = f" and {len(missing) - 1} more of its splits" if len(missing) > 1 else ""
        yield f"lacks {missing[0]}{more}"
    elif known != wanted:
        yield "lists its shards in another order than the shard set's manifest, or one twice"


def _names(names: Sequence[str]) -> str:
    return short(", ".join(names))[1:-1] or "none"
