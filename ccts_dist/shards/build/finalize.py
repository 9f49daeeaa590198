"""Finishing a build: index, rejected utterances and manifest from the records of its shards; the manifest last."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from ccts_dist.errors import CorpusError, MissingShardsError, ShardError
from ccts_dist.files.atomic import file_sha256
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.shards.build.make_shard import MadeShard, holds_shard, read_record, read_rows
from ccts_dist.shards.build.output import BUILDING, Output
from ccts_dist.shards.build.plan import PlanEntry, PlanRecord
from ccts_dist.shards.build.recheck import note_sources
from ccts_dist.shards.build.validate_input import rejected_line
from ccts_dist.shards.format.dataset_card import CARD_NAME, dataset_card, is_dataset_card
from ccts_dist.shards.format.index import IndexPlace
from ccts_dist.shards.format.index_writer import IndexWriter
from ccts_dist.shards.format.schema import (
    INDEX_NAME,
    MANIFEST_NAME,
    REJECTED_NAME,
    Manifest,
    ShardEntry,
    SplitTotals,
    parse_manifest,
)
from ccts_dist.shards.format.sealed_json import document_bytes, parse_document

PLAN_NAME = f"{BUILDING}/plan.json"

_THREADS = 16
"""That fetch records at once: each is small, and a place far away takes its time for each."""

_MOST_NAMED = 5
"""Shards or reasons that a message or summary names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSummary:
    """Summary of a build."""

    splits: Mapping[str, SplitTotals]
    num_shards: int
    rejected: int
    reasons: Mapping[str, int]
    """How many were rejected for what, the most frequent first; numbers in a reason count as one."""

    resampled: int
    mixed_down: int
    digest: str
    """Digest of the shard set."""

    was_there: bool = False
    """True when the very same build had been finished before, and nothing was done."""

    made_s: float = field(default=0.0, compare=False)
    """Seconds of audio that were made this time, not kept from an interrupted build."""

    elapsed_s: float = field(default=0.0, compare=False)
    """Seconds that it took."""

    def in_words(self, out: object) -> str:
        """The summary for people, a line per split."""
        lines = [f"{out}: {'was complete already' if self.was_there else 'built'}, digest {self.digest[:12]}"]
        lines += [
            f"  {name}: {totals.num_utterances} utterances, {totals.hours:.2f} h"
            for name, totals in self.splits.items()
        ]
        lines.append(
            f"  {self.num_shards} shards; {self.rejected} rejected, {self.resampled} resampled, "
            f"{self.mixed_down} mixed down"
        )
        named = list(self.reasons.items())[:_MOST_NAMED]
        lines += [f"    {count} rejected: {reason}" for reason, count in named]
        if len(self.reasons) > _MOST_NAMED:
            lines.append(f"    and {len(self.reasons) - _MOST_NAMED} reasons more, in {REJECTED_NAME}")
        if self.made_s:
            lines.append(f"  {speed_in_words(self.made_s, self.elapsed_s)}")
        return "\n".join(lines)


def speed_in_words(made_s: float, elapsed_s: float) -> str:
    """How fast audio became shards."""
    return f"{made_s / 3600:.2f} h of audio in {elapsed_s:.1f} s: {made_s / max(elapsed_s, 1e-9):.0f} s of it a second"


def finish_build(
    output: Output,
    plan: PlanRecord,
    *,
    max_rejected: float,
    verify: bool,
    progress: Callable[[int], object] | None = None,
) -> BuildSummary:
    """Write index, ``rejected.jsonl`` and manifest of a build whose shards have all been made.

    Args:
        max_rejected: largest share of utterances that may be rejected.
        verify: look at the bytes of every shard, which others have made.
        progress: called with the number of shards looked at since the last call.

    Raises:
        MissingShardsError: a shard is missing, or is of other input.
        CorpusError: more than ``max_rejected`` were rejected.
        ShardError: another builder has been at work in the same place.
    """
    made = _gather(output, plan, verify=verify, progress=progress or (lambda _: None))
    rejected = [*plan.rejected, *(rejected_line(one) for shard in made for one in shard.rejected)]
    rejected_lines = "".join(line + "\n" for line in rejected).encode()
    output.write(REJECTED_NAME, rejected_lines)
    _check_rejected(plan, rejected, max_rejected, f"{output.where}/{REJECTED_NAME}")
    shards, size_bytes, sha256 = _write_index(output, [shard for shard in made if shard.num_utterances])
    clipped = sum(shard.clipped for shard in made)
    manifest = Manifest(
        corpus=plan.corpus,
        release=plan.release,
        scale=plan.scale,
        targets=plan.targets,
        splits=split_totals(shards),
        shards=shards,
        categories=tuple(sorted({category for shard in made for category in shard.categories})),
        index_size_bytes=size_bytes,
        index_sha256=sha256,
        counts={
            "rejected": len(rejected),
            "resampled": sum(shard.resampled for shard in made),
            "mixed_down": sum(shard.mixed_down for shard in made),
            **({"clipped": clipped} if clipped else {}),
        },
        rejected_sha256=hashlib.sha256(rejected_lines).hexdigest(),
        input_digest=plan.input_digest,
    )
    now = read_plan(output)
    if now is None or now.input_digest != plan.input_digest:
        raise ShardError(f"{output.where}: another builder has been at work here meanwhile. Build it again, alone.")
    note_sources(output, {shard.name: shard.source_digest for shard in made})
    there = output.read(CARD_NAME)
    if there is None or is_dataset_card(there):  # the user's own stays
        output.write(CARD_NAME, dataset_card(manifest))
    data = manifest.to_bytes()
    output.write(MANIFEST_NAME, data)
    return _summary(manifest, data, rejected)


def finished_build(output: Output) -> tuple[Manifest, BuildSummary] | None:
    """The manifest and summary of a shard set that is there already; None when there is none.

    Raises:
        ShardError: the manifest or the list of the rejected is not what was written.
    """
    data = output.read(MANIFEST_NAME)
    if data is None:
        return None
    manifest = parse_manifest(data, where=f"{output.where}/{MANIFEST_NAME}")
    has_list = manifest.teacher is None and bool(manifest.rejected_sha256)  # a merged set left it with its source
    rejected = (output.read(REJECTED_NAME) or b"") if has_list else b""
    if has_list and hashlib.sha256(rejected).hexdigest() != manifest.rejected_sha256:
        raise ShardError(
            f"{output.where}/{REJECTED_NAME}: is not what the manifest states was written, so more may be damaged. See "
            f"what python shards/check.py {output.where} finds; then restore it from a copy, or delete the shard set "
            "and build it again."
        )
    return manifest, _summary(manifest, data, rejected.decode().splitlines(), was_there=True)


def read_plan(output: Output) -> PlanRecord | None:
    """The plan of the build that is going on; None if there is none that can be read."""
    data = output.read(PLAN_NAME)
    try:
        return None if data is None else parse_document(PlanRecord, data, where=PLAN_NAME, error=ShardError)
    except ShardError:
        return None  # of another version: what it made cannot be kept


def write_plan(output: Output, plan: PlanRecord) -> None:
    """Keep the plan, if it is not the one that is there."""
    data = document_bytes(plan)
    if output.read(PLAN_NAME) != data:
        output.write(PLAN_NAME, data)


def split_totals(shards: Sequence[ShardEntry]) -> dict[str, SplitTotals]:
    """Utterances and hours by split, in the order of the shards."""
    utterances, samples = Counter[str](), Counter[str]()
    for shard in shards:
        utterances[shard.split] += shard.num_utterances
        samples[shard.split] += shard.num_samples
    return {
        split: SplitTotals(num_utterances=count, hours=samples[split] / SAMPLE_RATE_HZ / 3600)
        for split, count in utterances.items()
    }


def _gather(
    output: Output, plan: PlanRecord, *, verify: bool, progress: Callable[[int], object]
) -> tuple[MadeShard, ...]:
    """The records of all shards of a plan."""
    made: list[MadeShard | None] = []
    with ThreadPoolExecutor(_THREADS) as threads:
        for record in threads.map(partial(_sound_record, output=output, verify=verify), plan.shards):
            made.append(record)
            progress(1)
    missing = [number for number, record in enumerate(made) if record is None]
    if missing:
        raise MissingShardsError(_missing_words(output, plan, missing))
    return tuple(record for record in made if record is not None)


def _sound_record(entry: PlanEntry, *, output: Output, verify: bool) -> MadeShard | None:
    made = read_record(entry.name, output)
    if made is None or made.content_digest != entry.content_digest:
        return None
    return None if verify and made.num_utterances and not holds_shard(made, output) else made


def _missing_words(output: Output, plan: PlanRecord, missing: Sequence[int]) -> str:
    names = ", ".join(plan.shards[number].name for number in missing[:_MOST_NAMED])
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    counts = {found[1] for name in output.names(BUILDING) if (found := re.fullmatch(r"part-\d+-of-(\d+)\.json", name))}
    advice = "Run the parts that are missing, with the same corpus and options"
    if len(counts) == 1:
        of = int(counts.pop())
        parts = sorted({number % of + 1 for number in missing})
        advice = f"Run again: {', '.join(f'--part {part}/{of}' for part in parts[:_MOST_NAMED])}"
        advice += f" and {len(parts) - _MOST_NAMED} parts more" if len(parts) > _MOST_NAMED else ""
    return (
        f"{output.where}: {len(missing)} of {len(plan.shards)} shards are missing, damaged or of other audio: "
        f"{names}{more}. {advice}; then join."
    )


def _check_rejected(plan: PlanRecord, rejected: Sequence[str], max_rejected: float, where: str) -> None:
    share = len(rejected) / plan.num_given
    if share > max_rejected or len(rejected) == plan.num_given:
        raise CorpusError(
            f"{plan.corpus}: {len(rejected)} of {plan.num_given} utterances rejected ({share:.1%}), and at most "
            f"{int(max_rejected * plan.num_given)} may be ({max_rejected:.1%}). Reasons: {where}. "
            "Mend the corpus, or allow more (--max-rejected); what is built is kept."
        )


def _write_index(output: Output, made: Sequence[MadeShard]) -> tuple[tuple[ShardEntry, ...], int, str]:
    """The shards as the manifest lists them, and the index's size and digest."""
    entries = []
    with output.workplace(INDEX_NAME) as path:
        with IndexWriter(path) as index:
            for shard, table in _tables(output, made):
                entries.append(_entry(shard, index.add(table)))
        output.publish(path, INDEX_NAME, size_bytes=index.size_bytes, sha256=file_sha256(path))
    return tuple(entries), index.size_bytes, index.sha256


def _tables(output: Output, made: Sequence[MadeShard]) -> Iterator[tuple[MadeShard, pa.Table]]:
    """Each shard with its rows, a few fetched ahead."""
    with ThreadPoolExecutor(_THREADS) as threads:
        for first in range(0, len(made), _THREADS):
            some = made[first : first + _THREADS]
            for shard, table in zip(some, threads.map(partial(read_rows, output=output), some), strict=True):
                if table is None:
                    raise ShardError(
                        f"{shard.name}: its rows in {output.where}/{BUILDING} are damaged. Run the build again."
                    )
                yield shard, table


def _entry(made: MadeShard, place: IndexPlace) -> ShardEntry:
    return ShardEntry(
        name=made.name,
        split=made.split,
        num_utterances=made.num_utterances,
        num_samples=made.num_samples,
        size_bytes=made.size_bytes,
        sha256=made.sha256,
        index=place,
    )


def _summary(manifest: Manifest, data: bytes, rejected: Sequence[str], *, was_there: bool = False) -> BuildSummary:
    # "lasts 300 samples" and "lasts 301 samples" are one reason.
    reasons = Counter(re.sub(r"\d[\d.,]*(?<![.,])", "N", json.loads(line)["reason"]) for line in rejected)
    return BuildSummary(
        splits={split: manifest.splits[split] for split in manifest.split_names},
        num_shards=len(manifest.shards),
        rejected=manifest.counts["rejected"],
        reasons=dict(reasons.most_common()),
        resampled=manifest.counts["resampled"],
        mixed_down=manifest.counts["mixed_down"],
        digest=hashlib.sha256(data).hexdigest(),
        was_there=was_there,
    )
