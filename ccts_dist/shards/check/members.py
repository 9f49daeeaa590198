"""Damage in the payload of a member whose checksum is right: what it states against index and manifest."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ccts_dist.audio.flac import flac_samples
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.shards.format.index import ShardRows
from ccts_dist.shards.format.schema import TEACHER_MEMBER, Manifest, ShardEntry, TeacherFacts
from ccts_dist.shards.format.tars import short
from ccts_dist.shards.format.teacher_cache import decode_output

_TEXT, _NUMBER, _COUNT, _TABLE, _SCALE = "a string", "a number", "a whole number", "an object of numbers", "two numbers"
_FIELDS = {
    "key": _TEXT,
    "split": _TEXT,
    "transcript": _TEXT,
    "transcript_confidence": f"{_NUMBER} or null",
    "source": _TEXT,
    "speaker": f"{_TEXT} or null",
    "gender": f"{_TEXT} or null",
    "category": f"{_TEXT} or null",
    "labels": _TABLE,
    "label_variance": _TABLE,
    "num_raters": f"{_COUNT} or null",
    "scale": _SCALE,
    "duration_s": _NUMBER,
    "num_samples": _COUNT,
}
_MAX_JSON_BYTES = 1 << 24


def json_faults(data: bytes, rows: ShardRows, row: int, entry: ShardEntry, manifest: Manifest) -> Iterator[str]:
    """Faults of a ``json`` member, in words: its form, and what it states otherwise than index and
    manifest."""
    if len(data) > _MAX_JSON_BYTES:
        yield f"json has {len(data)} bytes, more than any utterance's"
        return
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        yield f"json is not an utterance's: {short(str(error))[1:-1]}"
        return
    fault = _form_fault(record)
    if fault:
        yield f"json is not an utterance's: {fault}"
        return
    for name in ("labels", "label_variance"):
        if set(record[name]) != set(manifest.targets):
            stands, wanted = _names(record[name]), _names(manifest.targets)
            yield f"json has {name} of {stands}, and the manifest's targets are {wanted}"
    if tuple(record["scale"]) != manifest.scale:
        yield f"json has the scale {short(str(record['scale']))[1:-1]}, and the manifest {list(manifest.scale)}"
    if record["duration_s"] != record["num_samples"] / SAMPLE_RATE_HZ:
        yield f"json has {_value(record['duration_s'])} s for {_value(record['num_samples'])} samples"
    for name, stated, found in _stated_twice(record, rows, row, entry):
        if stated != found:
            yield f"the index is stale: {name} is {_value(stated)} there and {_value(found)} in json"


def _form_fault(record: Any) -> str:
    if not isinstance(record, dict):
        return "it is no object"
    for name, wanted in _FIELDS.items():
        if name not in record:
            return f"{name} is missing"
        if not _fits(record[name], wanted):
            return f"{name} is {_value(record[name])}, and must be {wanted}"
    return ""


def _fits(value: Any, wanted: str) -> bool:
    if value is None:
        return wanted.endswith("or null")
    if wanted == _TABLE:
        return isinstance(value, dict) and all(one is None or _is_number(one) for one in value.values())
    if wanted == _SCALE:
        return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    if wanted.startswith(_NUMBER):
        return _is_number(value)
    if wanted.startswith(_COUNT):
        return isinstance(value, int) and _is_number(value)
    return isinstance(value, str) and _is_unicode(value)


def _is_unicode(text: str) -> bool:
    """Half a surrogate, which JSON can state, is no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 1 << 53
    return isinstance(value, float) and math.isfinite(value)


def _stated_twice(
    record: Mapping[str, Any], rows: ShardRows, row: int, entry: ShardEntry
) -> Iterator[tuple[str, object, object]]:
    """Name, value in index or manifest, and value in the JSON, of all that stands in both."""
    yield "key", rows.keys[row], record["key"]
    yield "split", entry.split, record["split"]
    yield "speaker", rows.speakers[row], record["speaker"]
    yield "gender", rows.genders[row], record["gender"]
    yield "category", rows.categories[row], record["category"]
    yield "num_samples", int(rows.num_samples[row]), record["num_samples"]
    for target, labels in rows.labels.items():
        label = float(labels[row])
        yield f"label {target!r}", None if math.isnan(label) else label, record["labels"].get(target)


def audio_faults(data: bytes, num_samples: int) -> Iterator[str]:
    """Faults of a ``flac`` member, in words: what it states, and its sound, every sample of which is decoded.

    Each frame has a checksum, and a file that was encoded whole has an MD5 of its samples, so that damage is found that
    was there before the member's own checksum was made.
    """
    if data[:4] != b"fLaC" or len(data) < 42:
        yield "flac is no FLAC file"
        return
    # STREAMINFO from byte 18: 20 bits rate, 3 channels - 1, 5 depth - 1, 36 number of samples; then the MD5, zeros
    # where the encoder made none (RFC 9639, section 8.2).
    packed = int.from_bytes(data[18:26], "big")
    rate, channels, depth = packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1
    stated = packed & (1 << 36) - 1
    faults = []
    if (rate, stated) != (SAMPLE_RATE_HZ, num_samples):
        faults.append(f"flac holds {stated} samples at {rate} Hz, and must hold {num_samples} at {SAMPLE_RATE_HZ} Hz")
    if (channels, depth) != (1, 16):
        faults.append(f"flac holds {channels} channels of {depth} bit, and must hold 1 of 16 bit")
    if faults:
        yield from faults
        return
    found, digest = flac_samples(data, stated)
    if found != stated:
        yield f"flac is damaged within: {found} of its {stated} samples can be decoded"
    elif data[26:42] not in (digest, bytes(16)):
        yield "flac holds other samples than were encoded: their MD5 differs"


def teacher_faults(data: bytes, facts: TeacherFacts) -> Iterator[str]:
    """Faults of a ``teacher.npy`` member, in words."""
    try:
        decode_output(data, facts.embedding_size, len(facts.targets))
    except ValueError as error:
        yield f"{TEACHER_MEMBER} {error}"


def _names(names: Any) -> str:
    return short(", ".join(sorted(names)))[1:-1] or "none"


def _value(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
