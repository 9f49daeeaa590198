"""Finding damage: a shard set, and a teacher cache made for it, against what their manifests and indexes say.

Every byte is read. Nothing is unpacked and no link followed: tars are walked header by header, members read by offset.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from ccts_dist.errors import CctsError, MissingShardsError, ShardError, TeacherError
from ccts_dist.records import SAMPLE_RATE_HZ, Utterance
from ccts_dist.shards.audio import flac_facts
from ccts_dist.shards.durable import file_sha256
from ccts_dist.shards.findings import (
    Finding,
    check_file,
    check_foreign,
    check_members,
    payload_rows,
    without_name,
)
from ccts_dist.shards.finish import split_totals
from ccts_dist.shards.index import RowGroups, ShardRows
from ccts_dist.shards.read import ShardSet, read_shard_set
from ccts_dist.shards.schema import (
    AUDIO_MEMBER,
    CONDITION_NAME,
    INDEX_NAME,
    JSON_MEMBER,
    MANIFEST_NAME,
    REJECTED_NAME,
    TEACHER_MEMBER,
    Manifest,
    ShardEntry,
    TeacherFacts,
    local_folder,
    utterance_from_json,
)
from ccts_dist.shards.teacher_cache import CacheRows, cache_row_groups
from ccts_dist.shards.teacher_format import (
    CacheManifest,
    CacheShard,
    decode_output,
    read_cache_manifest,
    read_condition,
)


def check_shard_set(
    root: str | Path, teacher: str | Path | None = None, *, progress: Callable[[int], object] | None = None
) -> list[Finding]:
    """Everything that is wrong with a shard set, and with a teacher cache made for it; empty when both are sound.

    Args:
        teacher: folder of the teacher cache; None checks the shards alone.
        progress: called with the number of shards dealt with since the last call, of both.

    Raises:
        MissingShardsError: there is no shard set to check.
        TeacherError: there is no teacher cache to check.
    """
    root, advance = local_folder(root, what="shard set"), progress or (lambda _: None)
    try:
        shard_set = read_shard_set(root)
    except MissingShardsError:
        raise
    except ShardError as error:
        return [Finding(shard=MANIFEST_NAME, what=without_name(error, str(root / MANIFEST_NAME)))]
    manifest = shard_set.manifest
    findings = [
        *_check_index_file(root, manifest.index_sha256),
        *_check_manifest(root, manifest),
        *_check_unlisted(root, {shard.name for shard in manifest.shards}),
    ]
    if manifest.teacher is not None:
        findings += _check_condition(root, manifest.teacher)
    for entry in manifest.shards:
        findings += _check_shard(shard_set, entry)
        advance(1)
    if teacher is not None:
        findings += _check_cache(local_folder(teacher, what="teacher cache"), shard_set, advance)
    return findings


def _check_index_file(root: Path, wanted: str) -> Iterator[Finding]:
    path = root / INDEX_NAME
    if not path.is_file():
        yield Finding(shard=INDEX_NAME, what="is missing")
    elif file_sha256(path) != wanted:
        yield Finding(shard=INDEX_NAME, what="is stale or damaged: its SHA-256 is not the manifest's")


def _check_manifest(root: Path, manifest: Manifest) -> Iterator[Finding]:
    """The manifest's totals against its own list of shards, and against ``rejected.jsonl``."""
    totals = split_totals(manifest.shards)
    if set(totals) != set(manifest.splits):
        what = f"lists splits {sorted(manifest.splits)}, and its shards are of {sorted(totals)}"
        yield Finding(shard=MANIFEST_NAME, what=what)
    for split in sorted(set(totals) & set(manifest.splits)):
        stated, counted = manifest.splits[split], totals[split]
        if stated.num_utterances != counted.num_utterances or not math.isclose(stated.hours, counted.hours):
            what = (
                f"says that split {split!r} has {stated.num_utterances} utterances and {stated.hours:.4f} hours, "
                f"and its shards add up to {counted.num_utterances} and {counted.hours:.4f}"
            )
            yield Finding(shard=MANIFEST_NAME, what=what)
    path, stated = root / REJECTED_NAME, manifest.counts.get("rejected")
    if manifest.teacher is None and stated is not None:
        if not path.is_file():
            yield Finding(shard=REJECTED_NAME, what="is missing")
        elif (counted := len(path.read_bytes().splitlines())) != stated:
            yield Finding(shard=REJECTED_NAME, what=f"has {counted} lines, and the manifest counts {stated}")


def _check_unlisted(root: Path, listed: set[str]) -> Iterator[Finding]:
    for path in sorted(root.glob("*.tar")):
        if path.name not in listed:
            yield Finding(shard=path.name, what="is not in the manifest")


def _check_condition(root: Path, facts: TeacherFacts) -> Iterator[Finding]:
    try:
        read_condition(root, facts)
    except TeacherError as error:
        yield Finding(shard=CONDITION_NAME, what=without_name(error, str(root / CONDITION_NAME)))


def _check_shard(shard_set: ShardSet, entry: ShardEntry) -> list[Finding]:
    path = shard_set.path(entry.name)
    outer = check_file(path, entry.size_bytes, entry.sha256)
    if not path.is_file():
        return outer
    try:
        rows = shard_set.rows(entry.name)
    except ShardError as error:
        stale = Finding(shard=entry.name, what=without_name(error, entry.name))
        return [*outer, stale, *check_foreign(path, shard_set.manifest.members)]
    if tuple(rows.members) != shard_set.manifest.members:
        what = f"has members {', '.join(rows.members)} in the index, and the manifest says otherwise"
        return [*outer, Finding(shard=entry.name, what=what)]
    keys = tuple(rows.keys)
    inner, payloads = check_members(path, keys, rows.members)
    inner += _check_rows(rows, entry, payloads)
    if shard_set.manifest.teacher is not None:
        inner += _check_outputs(entry.name, keys, payloads, shard_set.manifest.teacher)
    return inner or outer  # a damaged member says more than the digest of the whole tar


def _check_rows(rows: ShardRows, entry: ShardEntry, payloads: Mapping[tuple[int, str], bytes]) -> Iterator[Finding]:
    """The index rows against the JSON and the FLAC headers they were made of."""
    if int(rows.num_samples.sum()) != entry.num_samples:
        what = f"has {int(rows.num_samples.sum())} samples in the index, and the manifest says {entry.num_samples}"
        yield Finding(shard=rows.shard, what=what)
    for row, data in payload_rows(payloads, JSON_MEMBER):
        try:
            utterance = utterance_from_json(data)
        except (ValueError, KeyError, TypeError, IndexError):
            yield Finding(shard=rows.shard, key=rows.keys[row], what="json is not an utterance's")
            continue
        for name, stated, found in _facts(rows, row, entry, utterance):
            if stated != found and not (stated != stated and found is None):
                what = f"the index is stale: {name} is {stated!r} there and {found!r} in json"
                yield Finding(shard=rows.shard, key=rows.keys[row], what=what)
    for row, data in payload_rows(payloads, AUDIO_MEMBER):
        wanted = (SAMPLE_RATE_HZ, int(rows.num_samples[row]))
        if (found := flac_facts(data)) != wanted:
            what = f"flac holds {found[1]} samples at {found[0]} Hz, and must hold {wanted[1]} at {wanted[0]} Hz"
            yield Finding(shard=rows.shard, key=rows.keys[row], what=what)


def _facts(rows: ShardRows, row: int, entry: ShardEntry, utterance: Utterance) -> Iterator[tuple[str, object, object]]:
    """Name, value in index or manifest, and value in the JSON, of all that stands in both."""
    yield "key", rows.keys[row], utterance.key
    yield "split", entry.split, utterance.split
    yield "speaker", rows.speakers[row], utterance.speaker
    yield "gender", rows.genders[row], utterance.gender
    yield "category", rows.categories[row], utterance.category
    for target, label in rows.labels.items():
        yield f"label {target!r}", float(label[row]), utterance.labels.get(target)


def _check_cache(root: Path, shard_set: ShardSet, advance: Callable[[int], object]) -> list[Finding]:
    if not (root / MANIFEST_NAME).is_file():
        read_cache_manifest(root)  # raises: there is nothing to check
    try:
        manifest, _ = read_cache_manifest(root)
    except TeacherError as error:
        return [Finding(shard=MANIFEST_NAME, what=f"of the cache: {without_name(error, str(root / MANIFEST_NAME))}")]
    findings = []
    if manifest.shard_set_digest != shard_set.content_digest:
        made_for, is_now = manifest.shard_set_digest[:12], shard_set.content_digest[:12]
        what = f"of the cache: was made for shard set {made_for}, and this one is {is_now}"
        findings.append(Finding(shard=MANIFEST_NAME, what=what))
    findings += _check_index_file(root, manifest.index_sha256)
    findings += _check_unlisted(root, {shard.name for shard in manifest.shards})
    findings += _check_condition(root, manifest.teacher)
    rows = cache_row_groups(root, manifest.shards)
    for shard in manifest.shards:
        findings += _check_cache_shard(root, shard, rows, manifest, shard_set)
        advance(1)
    return findings


def _check_cache_shard(
    root: Path, shard: CacheShard, groups: RowGroups[CacheRows], manifest: CacheManifest, shard_set: ShardSet
) -> list[Finding]:
    path = root / shard.name
    outer = check_file(path, shard.size_bytes, shard.sha256)
    if not path.is_file():
        return outer
    inner = []
    source = next((entry for entry in shard_set.manifest.shards if entry.name == shard.name), None)
    if source is None or (source.sha256 != shard.source_sha256 and not shard_set.manifest.source_digest):
        inner.append(Finding(shard=shard.name, what="of the cache: was made from another shard"))
    try:
        rows = groups.get(shard.name)
        keys = tuple(rows.keys)
        if source is not None and keys != shard_set.rows(shard.name).keys:
            inner.append(Finding(shard=shard.name, what="of the cache: its keys are not those of the shard"))
    except CctsError as error:
        stale = Finding(shard=shard.name, what=without_name(error, shard.name))
        return [*outer, *inner, stale, *check_foreign(path, (TEACHER_MEMBER,))]
    found, payloads = check_members(path, keys, {TEACHER_MEMBER: rows.places})
    inner += found
    inner += _check_outputs(shard.name, keys, payloads, manifest.teacher)
    return inner or outer


def _check_outputs(
    shard: str, keys: tuple[str, ...], payloads: Mapping[tuple[int, str], bytes], facts: TeacherFacts
) -> Iterator[Finding]:
    for row, data in payload_rows(payloads, TEACHER_MEMBER):
        try:
            output = decode_output(data, facts.embedding_size, len(facts.targets))
        except ValueError as error:
            yield Finding(shard=shard, key=keys[row], what=f"{TEACHER_MEMBER} {error}")
            continue
        if not (np.isfinite(output.embedding).all() and np.isfinite(output.prediction).all()):
            yield Finding(shard=shard, key=keys[row], what=f"{TEACHER_MEMBER} holds numbers that are not finite")
