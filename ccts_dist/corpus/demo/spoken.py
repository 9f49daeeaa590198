"""The spoken demo corpus: MSP-Podcast's layout on disk, made on the spot by speech synthesis.

The words alone carry valence; the voice alone carries activation (rate, pitch, pitch range) and dominance (loudness).
Speakers differ between splits. Simulated raters perceive all three with a bias and noise of their own, and a share of
the transcripts belongs to another utterance, so that a teacher's condition has something to leave out. It shows the
effect of a teacher; it shows nothing about people.
"""

import json
import math
import multiprocessing
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from jaxtyping import Float32
from tqdm import tqdm

from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.demo.espeak import Voice, phonemes_of, synthesise
from ccts_dist.corpus.demo.phrases import LEXICON_LIMIT, Phrase, all_words, choose_words, draw_phrase, read_lexicon
from ccts_dist.corpus.demo.speakers import SPEAKERS, Speaker
from ccts_dist.corpus.msp_podcast.reader import read_msp_podcast
from ccts_dist.corpus.transcript_corruption import USUAL_SHARE, confused_transcripts, wrong_transcripts
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.process.seeds import derive_seed
from ccts_dist.records import SAMPLE_RATE_HZ

SPLIT_SHARES = {"Train": 0.76, "Development": 0.12, "Test1": 0.12}
"""Share of the utterances per split."""

MARKER = "spoken.json"
"""File in the corpus folder that states it is complete and how it was made."""

GENERATOR, GENERATOR_OF_OTHER_SHARES = 1, 2
"""Count up whenever an equal configuration would give another corpus: one with the usual share of wrong transcripts,
or one with another."""

MEAN_LOUDNESS_DBFS = -32.0
LOUDNESS_SPAN_DB = 14.0
"""Root mean square of the quietest and of the loudest utterances lie this far apart, speakers and jitter aside."""

HIGHEST_PEAK = 0.9
"""On -1..1; eSpeak's peaks lie up to 20 dB above the root mean square, so few utterances come near it."""

VALENCE_POINTS = 0.85
"""Points on the 1..7 scale per point of the lexicon."""

ACTIVATION_POINTS = 5.0
"""Points on the 1..7 scale between the calmest and the most active voice; dominance likewise."""

NUM_RATERS_AT_HAND = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenConfig:
    """How large and how hard the spoken demo corpus is."""

    num_utterances: int = 3000
    """Over all splits, at least 12."""

    num_words: int = 24
    """Emotion words, an even number up to 128: the more, the harder valence is to learn from sound."""

    two_words: float = 0.4
    """Share of phrases with two emotion words, 0..1."""

    wrong_transcripts: float = USUAL_SHARE
    """Share of each split's transcripts that are another utterance's, 0..1. Nothing else of the corpus depends on it,
    and what is wrong at one share is wrong in the same way at every greater one."""

    transcript_errors: Literal["shuffled", "misheard"] = "shuffled"
    """Errors of wrong transcripts: "shuffled", the text of another utterance; "misheard", words that sound alike."""

    rate_wpm: int = 165
    """Mean speech rate in words per minute, 120..300; 165 gives phrases of about 1.4 s."""

    num_raters: int = 5
    """Raters per utterance, 1..40."""

    rater_noise: float = 0.7
    """Standard deviation of a single rating before it is rounded, in points of the 1..7 scale."""

    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values off their range."""
        ranges = {
            "num_utterances": (12, math.inf),
            "two_words": (0, 1),
            "wrong_transcripts": (0, 1),
            "rate_wpm": (120, 300),
            "num_raters": (1, NUM_RATERS_AT_HAND),
            "rater_noise": (0, math.inf),
            "seed": (0, math.inf),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                rule = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                raise ConfigError(f"spoken demo corpus: {name}={value} must be {rule}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """One simulated rater's answer, on 1..7."""

    rater: int
    activation: int
    valence: int
    dominance: int

    @property
    def category(self) -> str:
        """The primary emotion that goes with the numbers, as MSP-Podcast's raters spell it."""
        if self.valence >= 5:
            return "Happy"
        if self.valence <= 3:
            return "Angry" if self.activation >= 4 else "Sad"
        return "Neutral"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenLine:
    """One utterance before it is spoken."""

    key: str
    split: str
    speaker: Speaker
    text: str
    """The spoken words; the labels follow them."""

    transcript: str
    """The words that the corpus states."""

    voice: Voice
    loudness_dbfs: float
    """Root mean square of the wave, in decibels below full scale."""

    ratings: tuple[Rating, ...]


def plan_spoken_corpus(config: SpokenConfig) -> tuple[SpokenLine, ...]:
    """Every utterance of the corpus: what is spoken, by whom, how, and how it is rated. Makes no sound.

    Raises:
        ConfigError: ``num_words`` off its range, or the lexicon is not installed.
    """
    words = choose_words(config.num_words, read_lexicon())
    bounds = [round(share * config.num_utterances) for share in accumulate((0.0, *SPLIT_SHARES.values()))]
    lines: list[SpokenLine] = []
    for split, (first, last) in zip(SPLIT_SHARES, pairwise(bounds), strict=True):
        drawn = [_draw_line(index, split, words, config) for index in range(first, last)]
        lines.extend(_mix_up_transcripts(drawn, split, config))
    return tuple(lines)


def make_spoken_corpus(
    root: str | Path, config: SpokenConfig, *, progress: bool = True, num_processes: int | None = None
) -> Corpus:
    """Speak the whole corpus into ``root`` and read it back with the reader of MSP-Podcast.

    Written beside ``root`` and renamed, so ``root`` is complete or absent; does nothing where the same corpus
    already is. Equal configurations give byte-equal files, whatever the number of processes. With more than one
    process, the calling script needs the ``if __name__ == "__main__"`` guard: they are spawned.

    Args:
        root: folder that is made.
        config: what to make.
        progress: show a bar.
        num_processes: that speak at once; all cores by default.

    Raises:
        ConfigError: a setting off its range, a missing package, or ``root`` holds something else.
        CorpusError: the speech synthesis fails.
    """
    root = Path(root).absolute()
    usual = config.wrong_transcripts == USUAL_SHARE
    marker = {"generator": GENERATOR if usual else GENERATOR_OF_OTHER_SHARES, **asdict(config)}
    if config.transcript_errors == "shuffled":
        del marker["transcript_errors"]  # as corpora were marked before there was another kind
    if not _is_made(root, marker):
        unfinished = root.with_name(f".{root.name}.unfinished-spoken-corpus")
        shutil.rmtree(unfinished, ignore_errors=True)
        lines = plan_spoken_corpus(config)
        try:
            for folder in ("Audios", "Transcripts", "Labels"):
                (unfinished / folder).mkdir(parents=True)
        except OSError as error:
            raise ConfigError(f"{root}: cannot be made ({error.strerror}). Choose another folder.") from error
        _speak_all(lines, unfinished / "Audios", progress, num_processes or _num_cores())
        _write_texts(lines, unfinished)
        (unfinished / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
        unfinished.replace(root)
    return read_spoken_corpus(root)


def read_spoken_corpus(root: str | Path) -> Corpus:
    """The corpus that ``make_spoken_corpus`` left in ``root``, through the reader of MSP-Podcast.

    Raises:
        CorpusError: no complete spoken corpus there.
    """
    made = _read_marker(Path(root))
    return read_msp_podcast(root, name="spoken-demo", release=f"{made['generator']}-seed{made['seed']}")


def wrong_keys(root: str | Path) -> frozenset[str]:
    """Keys of the utterances with another one's transcript, in the corpus that was made in ``root``.

    Raises:
        CorpusError: no complete spoken corpus there.
    """
    made = _read_marker(Path(root))
    config = SpokenConfig(**{name: value for name, value in made.items() if name != "generator"})
    return frozenset(line.key for line in plan_spoken_corpus(config) if line.transcript != line.text)


def _read_marker(root: Path) -> dict[str, Any]:
    marker = root / MARKER
    if not marker.is_file():
        raise CorpusError(f"{root}: looked for {MARKER}, which closes a complete spoken demo corpus. Make it again.")
    return json.loads(marker.read_text())


def _is_made(root: Path, marker: Mapping[str, object]) -> bool:
    """True where the wanted corpus is; ConfigError where something else is in its place."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    found = root / MARKER
    if not found.is_file():
        raise ConfigError(f"{root}: is there already and is no spoken demo corpus. Choose a folder that is not.")
    made = json.loads(found.read_text())
    if made != marker:
        differing = sorted(key for key in made.keys() | marker.keys() if made.get(key) != marker.get(key))
        raise ConfigError(
            f"{root}: holds a spoken demo corpus with another {', '.join(differing)}. Delete it, or choose a folder."
        )
    return True


def _draw_line(index: int, split: str, words: Mapping[str, float], config: SpokenConfig) -> SpokenLine:
    source = random.Random(derive_seed("spoken", config.seed, index))
    speaker = source.choice([speaker for speaker in SPEAKERS if speaker.split == split])
    phrase = draw_phrase(words, config.two_words, source)
    activation, dominance = source.random(), source.random()
    centred = activation - 0.5
    # One setting each for how active the voice is: rate within e^+-0.25, pitch and its range around the variant's own.
    voice = Voice(
        name=speaker.voice,
        rate_wpm=round(config.rate_wpm * speaker.rate * math.exp(0.5 * centred + source.gauss(0, 0.03))),
        pitch=round(_clip(50 + speaker.pitch + 50 * centred + source.gauss(0, 3), 0.0, 100.0)),
        pitch_range=round(_clip(50 + 70 * centred + source.gauss(0, 5), 0.0, 100.0)),
    )
    loudness = MEAN_LOUDNESS_DBFS + LOUDNESS_SPAN_DB * (dominance - 0.5) + speaker.loudness_db + source.gauss(0, 0.7)
    return SpokenLine(
        key=f"SPOKEN_{speaker.number:02d}_{index:06d}",
        split=split,
        speaker=speaker,
        text=phrase.text,
        transcript=phrase.text,
        voice=voice,
        loudness_dbfs=loudness,
        ratings=_rate(phrase, activation, dominance, config, source),
    )


def _rate(
    phrase: Phrase, activation: float, dominance: float, config: SpokenConfig, source: random.Random
) -> tuple[Rating, ...]:
    assert abs(phrase.valence) <= LEXICON_LIMIT
    perceived = {
        "activation": 4 + ACTIVATION_POINTS * (activation - 0.5),
        "valence": 4 + VALENCE_POINTS * phrase.valence,
        "dominance": 4 + ACTIVATION_POINTS * (dominance - 0.5),
    }
    ratings = []
    for rater in source.sample(range(1, NUM_RATERS_AT_HAND + 1), config.num_raters):
        habit = random.Random(derive_seed("rater", config.seed, rater))
        written = {
            target: round(_clip(value + habit.gauss(0, 0.3) + source.gauss(0, config.rater_noise), 1.0, 7.0))
            for target, value in perceived.items()
        }
        ratings.append(Rating(rater=rater, **written))
    return tuple(ratings)


def _mix_up_transcripts(lines: Sequence[SpokenLine], split: str, config: SpokenConfig) -> list[SpokenLine]:
    """A share of the lines with a text that states something else."""
    mixed, texts = list(lines), [line.text for line in lines]
    num_wrong = round(config.wrong_transcripts * len(lines))
    if config.transcript_errors == "shuffled":
        wrong = wrong_transcripts(texts, split, config.seed)
    else:
        wrong = confused_transcripts(texts, split, config.seed, phonemes_of(all_words()))
    for index, transcript in islice(wrong, num_wrong):
        mixed[index] = replace(lines[index], transcript=transcript)
    return mixed


def _speak_all(lines: Sequence[SpokenLine], audios: Path, progress: bool, num_processes: int) -> None:
    speak = partial(_speak_to_file, audios=audios)
    with _mapper(min(num_processes, len(lines))) as each:
        bar = tqdm(
            each(speak, lines), total=len(lines), desc="speaking", unit="utterance", disable=None if progress else True
        )
        for _ in bar:
            pass


@contextmanager
def _mapper(num_processes: int) -> Iterator[Callable]:
    """A ``map`` over so many processes; the plain one for a single process."""
    import torch

    if num_processes == 1:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # threads cost more than they give on two seconds of audio
        try:
            yield map
        finally:
            torch.set_num_threads(num_threads)
        return
    spawn = multiprocessing.get_context("spawn")  # forking a process that has run torch can hang the child
    with ProcessPoolExecutor(num_processes, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield partial(pool.map, chunksize=16)
        except BrokenProcessPool as error:
            raise CorpusError(
                "a process of the speech synthesis died (out of memory?). Use fewer processes."
            ) from error


def _speak_to_file(line: SpokenLine, *, audios: Path) -> None:
    wave, rate_hz = synthesise(line.text, line.voice)
    wave = _at_loudness(_resampler(rate_hz)(wave), line.loudness_dbfs)
    soundfile.write(audios / f"{line.key}.wav", wave, SAMPLE_RATE_HZ, subtype="PCM_16")


@cache
def _resampler(rate_hz: int) -> Callable[[np.ndarray], np.ndarray]:
    import torch  # takes a second, and only makers of the corpus need it
    from torchaudio.transforms import Resample

    resample = Resample(rate_hz, SAMPLE_RATE_HZ)
    return lambda wave: resample(torch.from_numpy(wave)).numpy()


def _at_loudness(wave: Float32[np.ndarray, " samples"], loudness_dbfs: float) -> Float32[np.ndarray, " samples"]:
    root_mean_square = math.sqrt(float(np.mean(np.square(wave, dtype=np.float64))))
    gain = min(10 ** (loudness_dbfs / 20) / root_mean_square, HIGHEST_PEAK / float(np.abs(wave).max()))
    return (wave * gain).astype(np.float32)


def _write_texts(lines: Sequence[SpokenLine], root: Path) -> None:
    """Transcripts and label files, as MSP-Podcast spells them."""
    consensus = ["FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"]
    detailed = ["FileName,EmoDetail"]
    for line in lines:
        (root / "Transcripts" / f"{line.key}.txt").write_text(line.transcript + "\n", encoding="utf-8")
        means = (_mean(line, target) for target in ("activation", "valence", "dominance"))
        described = (f"{line.speaker.number}", line.speaker.gender, line.split)
        consensus.append(",".join((f"{line.key}.wav", _category(line), *(f"{mean!r}" for mean in means), *described)))
        for rating in line.ratings:
            numbers = f"A:{rating.activation}; V:{rating.valence}; D:{rating.dominance};"
            worker = f"WORKER{rating.rater:05d}; {rating.category}; {rating.category}"
            detailed.append(f'{line.key}.wav,"{worker}; {numbers}"')
    (root / "Labels" / "labels_consensus.csv").write_text("\n".join(consensus) + "\n", encoding="utf-8")
    (root / "Labels" / "labels_detailed.csv").write_text("\n".join(detailed) + "\n", encoding="utf-8")


def _mean(line: SpokenLine, target: str) -> float:
    return sum(getattr(rating, target) for rating in line.ratings) / len(line.ratings)


def _category(line: SpokenLine) -> str:
    """First letter of the emotion that most raters named; X without such a one, as in MSP-Podcast."""
    (first, count), *others = Counter(rating.category for rating in line.ratings).most_common()
    return "X" if others and others[0][1] == count else first[0]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
