"""The README.md of a shard set: splits and columns, as Hugging Face's ``datasets`` and hub read them.

Not part of what the manifest seals: a set without it, or with another, is as sound.
"""

import re
from collections.abc import Sequence
from itertools import chain, count
from typing import Any

from ccts_dist.shards.format.schema import AUDIO_MEMBER, JSON_MEMBER, TEACHER_MEMBER, Manifest, escape_key

CARD_NAME = "README.md"

_MARK = b"This is a shard set of ccts-dist"

_BODY = """\
# {title}

{mark}: plain WebDataset tars of FLAC (16 kHz, mono) and JSON.

| split | utterances | hours |
|:--|--:|--:|
{rows}

```python
from datasets import load_dataset

utterances = load_dataset("FOLDER", split="{first}", streaming=True)
```

`json` has the key, the transcript, the speaker, the category and the labels. Labels are on 0..1; a rating of the corpus
is {low:g} + label * {range:g}. The licence of the corpus binds whoever uses or shares this set.
"""


def dataset_card(manifest: Manifest) -> bytes:
    """The file: YAML with ``configs`` and ``dataset_info``, then a table of the splits."""
    from huggingface_hub import DatasetCardData

    names = split_names(manifest.split_names)
    data = DatasetCardData(
        pretty_name=manifest.title,
        task_categories=["audio-classification"],
        tags=["speech-emotion-recognition", "webdataset"],
        configs=[{"config_name": "default", "data_files": _data_files(manifest, names)}],
        # Without a target "labels" is an object without a key, which no feature describes.
        dataset_info={"config_name": "default", "features": _features(manifest)} if manifest.targets else None,
    )
    low, high = manifest.scale
    totals = [(names[split], manifest.splits[split]) for split in manifest.split_names]
    body = _BODY.format(
        title=manifest.title,
        mark=_MARK.decode(),
        rows="\n".join(f"| {name} | {one.num_utterances:,} | {one.hours:.2f} |" for name, one in totals),
        first=totals[0][0],
        low=low,
        range=high - low,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}".encode()


def is_dataset_card(data: bytes) -> bool:
    """True for a README.md that was written here, which another may replace."""
    return _MARK in data


def split_names(splits: Sequence[str]) -> dict[str, str]:
    """Each split's name in ``datasets``, which takes letters, digits, "_" and single dots; all differ."""
    names: dict[str, str] = {}
    for split in splits:
        plain = split if re.fullmatch(r"\w+(\.\w+)*", split) else re.sub(r"\W+", "_", split)
        numbered = (f"{plain}_{number}" for number in count(2))
        names[split] = next(name for name in chain([plain], numbered) if name not in names.values())
    return names


def _data_files(manifest: Manifest, names: dict[str, str]) -> list[dict[str, Any]]:
    """Patterns of each split's tars, exact to the digit: ``Train-*`` would take those of a split Train-2 as well."""
    digits = {split: dict[int, None]() for split in names}
    for shard in manifest.shards:
        number = shard.name.removesuffix(".tar").removeprefix(f"{escape_key(shard.split)}-")
        digits[shard.split][len(number)] = None
    return [
        {"split": names[split], "path": [f"{escape_key(split)}-{'[0-9]' * width}.tar" for width in widths]}
        for split, widths in digits.items()
    ]


def _features(manifest: Manifest) -> list[dict[str, Any]]:
    """Columns in the terms of ``datasets``. Those that it would infer are null for ever where the first ones are."""
    targets = manifest.targets
    record = [
        *_columns("string", "key", "split", "transcript"),
        *_columns("float64", "transcript_confidence"),
        # Lists of their own: of one that came twice YAML makes a reference, which datasets misreads.
        *({"name": name, "struct": _columns("float64", *targets)} for name in ("labels", "label_variance")),
        *_columns("int64", "num_raters"),
        {"name": "scale", "list": "float64"},
        *_columns("string", "speaker", "gender", "category"),
        *_columns("float64", "duration_s"),
        *_columns("int64", "num_samples"),
        *_columns("string", "source"),
    ]
    kinds: dict[str, dict[str, Any]] = {
        AUDIO_MEMBER: {"dtype": {"audio": {"sampling_rate": manifest.sample_rate_hz}}},
        JSON_MEMBER: {"struct": record},
        TEACHER_MEMBER: {"list": "float32"},
    }
    members = [{"name": member, **kinds[member]} for member in manifest.members]
    return [*members, *_columns("string", "__key__", "__url__")]


def _columns(dtype: str, *names: str) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": dtype} for name in names]
