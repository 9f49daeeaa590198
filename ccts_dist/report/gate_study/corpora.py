"""A seed's corpus: spoken once, with labels of a few or of more utterances, and shards for each kind of errors."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from ccts_dist.corpus.demo.phrases import NEGATIVE, POSITIVE, read_lexicon
from ccts_dist.corpus.demo.spoken import (
    SpokenConfig,
    SpokenLine,
    make_spoken_corpus,
    plan_spoken_corpus,
    read_spoken_corpus,
)
from ccts_dist.files.atomic import atomic_write
from ccts_dist.process.seeds import derive_seed
from ccts_dist.records import Utterance
from ccts_dist.report.gate_study.plan import LABELS, facts_key
from ccts_dist.report.summary import read_stage_json
from ccts_dist.shards.build.builder import build_shard_set

WRONG: Mapping[str, tuple[str, float]] = {"random": ("shuffled", 0.30), "audible": ("misheard", 0.45)}
"""Kind of the demo corpus's errors and share of wrong transcripts. At these shares the valence of the words that are
read correlates alike with that of the words that were spoken, by .69 (tests/unit/report/test_gate_study.py)."""

OFF = 1.0
"""The oracle rejects a transcript whose words are off by at least this in valence, in points of the lexicon, -4..4."""

CONFIDENCE = {True: (6.0, 2.0), False: (4.0, 3.0)}
"""Parameters of the Beta distributions of a word's confidence, by whether it was recognized: means of .75 and .57. Over
a phrase the mean of a misheard transcript lies 1.3 standard deviations below that of a right one."""

NUM_VOICES = 2
"""Number of development voices, of the corpus's five; the others' utterances are tested on, so that more are."""


def spoken_config(errors: str, seed: int, num_utterances: int) -> SpokenConfig:
    """The demo corpus of a seed, with one kind of errors; audio and labels do not depend on the kind."""
    kind, share = WRONG[errors]
    return SpokenConfig(num_utterances=num_utterances, wrong_transcripts=share, transcript_errors=kind, seed=seed)  # type: ignore[arg-type]


def speak(argv: list[str]) -> int:
    """Speak the corpus: FOLDER SEED NUM_UTTERANCES."""
    folder, seed, num_utterances = Path(argv[0]), int(argv[1]), int(argv[2])
    config = spoken_config("random", seed, num_utterances)
    make_spoken_corpus(folder / "corpus", config, progress=False, num_processes=1)
    return 0


def build(argv: list[str]) -> int:
    """Build shards with one kind of errors, and what follows from it: FOLDER SEED NUM_UTTERANCES NUM_FEW ERRORS."""
    folder, seed, num_utterances, num_few, errors = Path(argv[0]), int(argv[1]), int(argv[2]), int(argv[3]), argv[4]
    lines = {line.key: line for line in plan_spoken_corpus(spoken_config(errors, seed, num_utterances))}
    splits = splits_of(list(lines.values()), num_few)
    corpus = read_spoken_corpus(folder / "corpus")
    utterances = [one for one in corpus.utterances if isinstance(one, Utterance)]
    changed = [with_errors(one, lines[one.key], splits[one.key], errors, seed) for one in utterances]
    build_shard_set(
        changed, folder / f"shards-{errors}", corpus=corpus.name, release=f"{corpus.release}-{errors}",
        scale=corpus.scale, targets=corpus.targets, root=folder / "corpus",
    )  # fmt: skip
    lexicon = read_lexicon()
    sound = {
        key for key, line in lines.items() if abs(valence(line.transcript, lexicon) - valence(line.text, lexicon)) < OFF
    }
    keys = folder / f"oracle-{errors}.txt"
    atomic_write(keys, "".join(f"{key}\n" for key in sorted(sound)).encode())
    facts = {
        facts_key(labels, errors): facts_of([one for one in changed if one.split in of], sound) | {"keys": str(keys)}
        for labels, of in LABELS.items()
    }
    atomic_write(folder / f"facts-{errors}.json", (json.dumps(facts, indent=1) + "\n").encode())
    return 0


def splits_of(lines: Sequence[SpokenLine], num_few: int) -> dict[str, str]:
    """Split by key: the first training utterances keep their labels in any case, two thirds of the others never do."""
    training = [line.key for line in lines if line.split == "Train"]
    rated = num_few + (len(training) - num_few) // 3
    voices = sorted({line.speaker.number for line in lines if line.split == "Development"})[:NUM_VOICES]
    splits = {key: "Few" if at < num_few else "More" if at < rated else "Unrated" for at, key in enumerate(training)}
    for line in lines:
        if line.split != "Train":
            splits[line.key] = "Development" if line.speaker.number in voices else "Test1"
    return splits


def with_errors(utterance: Utterance, line: SpokenLine, split: str, errors: str, seed: int) -> Utterance:
    """The utterance with that transcript and split; without ratings where nobody shall have rated it.

    Audible errors are a recognizer's, so they have its confidence.
    """
    unrated = {"labels": {}, "label_variance": {}, "num_raters": None, "category": None} if split == "Unrated" else {}
    source = random.Random(derive_seed("confidence", seed, utterance.key))
    sure = confidence(line.text, line.transcript, source) if errors == "audible" else None
    return replace(utterance, split=split, transcript=line.transcript, transcript_confidence=sure, **unrated)


def confidence(text: str, transcript: str, source: random.Random) -> float:
    """A recognizer's confidence in a transcript that has a word for each word of the text: the mean over its words."""
    words = zip(text.split(), transcript.split(), strict=True)
    return fmean(source.betavariate(*CONFIDENCE[spoken == read]) for spoken, read in words)


def valence(text: str, lexicon: Mapping[str, float]) -> float:
    """Mean of the emotion words in the lexicon, -4..4; 0 without such a word."""
    values = [lexicon[word] for word in text.split() if word in POSITIVE or word in NEGATIVE]
    return fmean(values) if values else 0.0


def facts_of(utterances: Sequence[Utterance], sound: set[str]) -> dict[str, str]:
    """Share of the utterances that the oracle rejects, and the confidence that as large a share lies below."""
    rejected = sum(one.key not in sound for one in utterances)
    facts = {"rejected": f"{rejected / len(utterances):.6f}"}
    scores = sorted(one.transcript_confidence for one in utterances if one.transcript_confidence is not None)
    return facts | ({"confidence": f"{scores[rejected]:.6f}"} if scores else {})


def read_facts(folder: Path) -> dict[str, dict[str, str]]:
    """Facts of a seed's corpora that are there, by ``facts_key``."""
    facts: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("facts-*.json")):
        facts |= read_stage_json(path, dict)
    return facts
