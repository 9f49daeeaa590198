"""Corpora in the layouts of their releases become shards that name what the source states; every fault is reported."""

import io
import json
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.corpus import (
    Corpus,
    read_cmu_mosei,
    read_crema_d,
    read_emobox,
    read_emodb,
    read_esd,
    read_iemocap,
    read_manifest,
    read_meld,
    read_msp_podcast,
    read_ravdess,
    read_tess,
)
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.format.schema import unescape_key
from tests.helpers.examples import audformat_examples, open_examples
from tests.helpers.examples.corpus_examples import MAX_DURATION_S, NUM_SAMPLES, Example, iemocap, manifest
from tests.helpers.examples.msp_examples import msp_podcast_1_6, msp_podcast_1_11, msp_podcast_2_0, msp_podcast_text

Made = tuple[Example, Corpus, dict[str, dict], dict[str, bytes], dict[str, str]]
"""The example, what was read, and of the shards: JSON members and FLAC members by key, reasons by key."""

EXAMPLES: dict[str, tuple[Callable[[Path], Example], Callable[[Path], Corpus]]] = {
    "msp-podcast 1.6": (msp_podcast_1_6, partial(read_msp_podcast, release="1.6")),
    "msp-podcast 1.11": (msp_podcast_1_11, partial(read_msp_podcast, release="1.11")),
    "msp-podcast 2.0": (msp_podcast_2_0, partial(read_msp_podcast, release="2.0")),
    "msp-podcast text": (msp_podcast_text, partial(read_msp_podcast, release="1.0")),
    "iemocap": (iemocap, read_iemocap),
    "ravdess": (open_examples.ravdess, read_ravdess),
    "crema-d": (open_examples.crema_d, read_crema_d),
    "emodb": (open_examples.emodb, read_emodb),
    "esd": (open_examples.esd, read_esd),
    "tess": (open_examples.tess, read_tess),
    "meld": (open_examples.meld, read_meld),
    "emobox": (open_examples.emobox, lambda fold: read_emobox(fold, audio=fold.parents[2])),
    "audformat csv": (audformat_examples.raters, audformat_examples.read_raters),
    "audformat parquet": (audformat_examples.segments, audformat_examples.read_segments),
    "cmu-mosei": (open_examples.cmu_mosei, read_cmu_mosei),
    "manifest csv": (lambda root: manifest(root / "corpus.csv"), partial(read_manifest, scale=(0.0, 4.0))),
    "manifest jsonl": (lambda root: manifest(root / "corpus.jsonl"), partial(read_manifest, scale=(0.0, 4.0))),
}


@pytest.fixture(scope="module", params=EXAMPLES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An example corpus, built into shards of a few utterances."""
    make, read = EXAMPLES[request.param]
    example = make(tmp_path_factory.mktemp("corpus"))
    corpus, out = read(example.path), tmp_path_factory.mktemp("out") / "shards"
    summary = build_shard_set(
        corpus.utterances,
        out,
        root=example.root,
        corpus=corpus.name,
        release=corpus.release,
        scale=corpus.scale,
        targets=corpus.targets,
        shard_bytes=8000,
        max_rejected=0.9,
        max_duration_s=MAX_DURATION_S,
    )
    assert (summary.resampled, summary.mixed_down) == (example.resampled, example.mixed_down)
    records, audio = {}, {}
    for tar in sorted(out.glob("*.tar")):
        with tarfile.open(tar) as members:
            for member in members:
                escaped, _, extension = member.name.partition(".")
                payload = members.extractfile(member)
                assert payload is not None
                if extension == "json":
                    records[unescape_key(escaped)] = json.load(payload) | {"shard": tar.name}
                else:
                    audio[unescape_key(escaped)] = payload.read()
    lines = map(json.loads, (out / "rejected.jsonl").read_text().splitlines())
    return example, corpus, records, audio, {line["key"]: line["reason"] for line in lines}


def test_keys_in_shards_are_the_sources(made: Made):
    example, _, records, _, _ = made
    assert set(records) == set(example.utterances)
    assert all(record["key"] == key for key, record in records.items())


def test_labels_are_the_sources_ratings_on_zero_to_one(made: Made):
    example, corpus, records, _, _ = made
    low, high = example.scale
    for key, printed in example.utterances.items():
        labels = {target: label for target, label in records[key]["labels"].items() if label is not None}
        assert labels == pytest.approx(
            {name: (value - low) / (high - low) for name, value in printed.ratings.items()}
        ), key
        assert set(records[key]["labels"]) == set(corpus.targets)
        assert records[key]["scale"] == list(example.scale)


def test_variance_and_number_of_raters_are_those_of_the_single_ratings(made: Made):
    example, _, records, _, _ = made
    span = example.scale[1] - example.scale[0]
    for key, printed in example.utterances.items():
        reported = {target: value for target, value in records[key]["label_variance"].items() if value is not None}
        assert reported == pytest.approx({target: value / span**2 for target, value in printed.variance.items()}), key
        assert records[key]["num_raters"] == printed.raters, key


@pytest.mark.parametrize("fact", ["split", "transcript", "speaker", "gender", "category"])
def test_facts_are_the_sources(made: Made, fact: str):
    example, _, records, _, _ = made
    for key, printed in example.utterances.items():
        assert records[key][fact] == getattr(printed, fact), key


def test_utterances_lie_in_the_shards_of_their_split(made: Made):
    example, _, records, _, _ = made
    for key, printed in example.utterances.items():
        assert unescape_key(records[key]["shard"].rpartition("-")[0]) == printed.split


def test_audio_is_the_sources(made: Made):
    example, _, records, audio, _ = made
    for key, record in records.items():
        name, _, part = record["source"].partition("#t=")
        source = example.root / name
        samples, rate = soundfile.read(io.BytesIO(audio[key]), dtype="int16")
        assert (rate, len(samples), samples.ndim) == (16_000, NUM_SAMPLES, 1), key
        original, original_rate = soundfile.read(source, dtype="int16")
        if part:
            start, end = map(float, part.split(","))
            original = original[round(16_000 * start) : round(16_000 * end)]
        if original_rate == 16_000 and original.ndim == 1 and source.suffix != ".ogg":
            np.testing.assert_array_equal(samples, original)


def test_every_fault_is_rejected_with_its_reason_and_nothing_else_is(made: Made):
    example, _, _, _, reasons = made
    assert set(reasons) == set(example.rejected)
    for key, reason in example.rejected.items():
        assert reason in reasons[key], key
