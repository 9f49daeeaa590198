"""Which transcripts of the spoken demo corpus are wrong, and what they state instead.

Two kinds of errors: the text of another utterance, and words that sound like those that were spoken, which a speech
recognizer might take for them.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache

from ccts_dist.process.seeds import derive_seed

USUAL_SHARE = 0.1
"""Share of wrong transcripts: drawn first, so that smaller shares take the first of these, and greater ones draw
more."""


CONFUSED_WORDS = 0.5
"""Probability with which each word of a misheard transcript is mistaken for another."""

LIKENESS = 25.0
"""How much likelier a word is mistaken for one that sounds like it: weights are exp(LIKENESS * similarity)."""


def wrong_transcripts(texts: Sequence[str], split: str, seed: int) -> Iterator[tuple[int, str]]:
    """Which line of a split is wrong next, and the other line's text that it gets; every line comes once.

    The order does not depend on how many are taken: what is wrong at one share is wrong in the same way at every
    greater one. Where all lines state the same, they keep their text.
    """

    def another(index: int, source: random.Random) -> str:
        others = [text for text in texts if text != texts[index]]
        return source.choice(others) if others else texts[index]

    for index, source in _order(len(texts), split, seed):
        yield index, another(index, source)


def confused_transcripts(
    texts: Sequence[str], split: str, seed: int, phonemes: Mapping[str, str]
) -> Iterator[tuple[int, str]]:
    """Which line of a split is wrong next, and what a recognizer might take it for; every line comes once.

    Each word is mistaken with probability ``CONFUSED_WORDS``, at least one of a line is, for another of the vocabulary:
    the more alike they sound, the likelier. Errors at one share stay in the same way at every greater one.

    Args:
        texts: as spoken.
        split: the lines' own.
        seed: the corpus's.
        phonemes: of each word of the vocabulary, a character for each sound; all words of ``texts`` are in it.
    """
    vocabulary = sorted(phonemes)

    @cache
    def weights(word: str) -> tuple[float, ...]:
        alike = (similarity(phonemes[word], phonemes[other]) for other in vocabulary)
        return tuple(
            0.0 if other == word else math.exp(LIKENESS * one) for other, one in zip(vocabulary, alike, strict=True)
        )

    for index, _ in _order(len(texts), split, seed):
        source = random.Random(derive_seed("misheard", seed, split, index))
        words = texts[index].split()
        mistaken = {at for at in range(len(words)) if source.random() < CONFUSED_WORDS} or {
            source.randrange(len(words))
        }
        yield (
            index,
            " ".join(
                source.choices(vocabulary, weights(word))[0] if at in mistaken else word
                for at, word in enumerate(words)
            ),
        )


def similarity(one: str, other: str) -> float:
    """Share of the sounds that two words have in common in the same order, 0..1 (Ratcliff and Obershelp)."""
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def _order(count: int, split: str, seed: int) -> Iterator[tuple[int, random.Random]]:
    """The lines in the order in which they are wrong, each with the source to draw from next."""
    source = random.Random(derive_seed("transcripts", seed, split))
    first = source.sample(range(count), round(USUAL_SHARE * count))
    for index in first:
        yield index, source
    source = random.Random(derive_seed("more transcripts", seed, split))
    rest = sorted(set(range(count)).difference(first))
    for index in source.sample(rest, len(rest)):
        yield index, source
