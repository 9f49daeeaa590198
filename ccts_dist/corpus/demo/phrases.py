"""Phrases of the spoken demo corpus: short ones in which one or two words carry valence."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ccts_dist.errors import ConfigError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POSITIVE = _words(
    """amusing attractive awesome beautiful bold brave bright brilliant calm charming cheerful clean clever creative
    cute delightful elegant encouraging enjoyable entertaining excellent exciting fabulous fantastic fascinating
    festive fine fresh friendly funny generous gentle glorious good graceful great happy heavenly helpful honest
    impressive inspiring interesting joyful lovely lucky magnificent marvelous nice outstanding peaceful perfect
    playful pleasant popular splendid successful sunny superb sweet terrific thrilling valuable wonderful"""
)
NEGATIVE = _words(
    """alarming angry annoying awful bad bitter boring brutal confusing cruel damaged dangerous depressing desperate
    difficult dirty disappointing disgusting dismal disturbing dreadful dull embarrassing evil fake foolish
    frightening gloomy grim gross harsh hateful hopeless horrible hostile lazy lonely lousy messy miserable nasty
    painful pathetic poor ridiculous rotten rude sad scary severe shameful shocking strange stressful stupid terrible
    tragic ugly unfair unpleasant upsetting useless vicious violent weak weird wicked worthless"""
)
# Few carrier words, so that a small model without pretraining can learn something of the emotion words from sound.
NOUNS = ("train", "meeting", "garden", "letter", "station", "movie", "lecture", "journey", "office", "river", "story")
TIMES = ("today", "again", "yesterday", "last week", "at noon", "in june")
ONE_WORD = (
    "the {noun} was {first}",
    "it was {first} {time}",
    "that {first} {noun}",
    "how {first} it was",
)
TWO_WORDS = (
    "{first} and {second} {time}",
    "the {first} {noun} was {second}",
    "so {first} and {second}",
)
LEXICON_LIMIT = 4.0
"""Valence in the VADER lexicon runs from -4 to 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """A phrase and how pleasant its words are."""

    text: str
    valence: float
    """Mean of its emotion words in the lexicon, -4..4."""


def read_lexicon() -> dict[str, float]:
    """Valence per word, -4..4, from the VADER sentiment lexicon (Hutto and Gilbert 2014).

    Raises:
        ConfigError: the package that brings the lexicon is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the spoken demo corpus needs the package vaderSentiment. Install the extra: pip install 'ccts-dist[demo]'"
        ) from error
    return SentimentIntensityAnalyzer().lexicon


def choose_words(num_words: int, lexicon: Mapping[str, float]) -> dict[str, float]:
    """``num_words`` emotion words with their valence: half positive, half negative, from weak to strong each.

    Raises:
        ConfigError: an odd number, fewer than 2, or more than there are.
    """
    most = 2 * min(len(POSITIVE), len(NEGATIVE))
    if num_words % 2 or not 2 <= num_words <= most:
        raise ConfigError(f"num_words={num_words}: must be an even number from 2 to {most}.")
    chosen = [
        word
        for words in (POSITIVE, NEGATIVE)
        for word in _spread(sorted(words, key=lambda word: (lexicon[word], word)), num_words // 2)
    ]
    return {word: lexicon[word] for word in chosen}


def all_words() -> tuple[str, ...]:
    """Every word that a phrase can have, whatever the number of emotion words."""
    templates = (word for template in (*ONE_WORD, *TWO_WORDS) for word in template.split() if word[0] != "{")
    times = (word for time in TIMES for word in time.split())
    return tuple(sorted({*POSITIVE, *NEGATIVE, *NOUNS, *templates, *times}))


def _spread(ordered: Sequence[str], num: int) -> list[str]:
    """``num`` of the words, evenly spaced."""
    edges = [round(i * len(ordered) / num) for i in range(num + 1)]
    return [ordered[(low + high) // 2] for low, high in pairwise(edges)]


def draw_phrase(words: Mapping[str, float], two_words: float, source: random.Random) -> Phrase:
    """A phrase with one emotion word, or with two different ones in a share ``two_words`` of all cases."""
    first, second = source.sample(tuple(words), 2)
    double = source.random() < two_words
    template = source.choice(TWO_WORDS if double else ONE_WORD)
    text = template.format(first=first, second=second, noun=source.choice(NOUNS), time=source.choice(TIMES))
    valence = (words[first] + words[second]) / 2 if double else words[first]
    return Phrase(text=text, valence=valence)
