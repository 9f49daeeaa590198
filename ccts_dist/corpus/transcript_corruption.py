"""Which transcripts of the spoken demo corpus are wrong, and what they state instead."""

import random
from collections.abc import Iterator, Sequence

from ccts_dist.distributed import derive_seed

USUAL_SHARE = 0.1
"""Of wrong transcripts: drawn first, so that smaller shares take the first of these, and greater ones draw more."""


def wrong_transcripts(texts: Sequence[str], split: str, seed: int) -> Iterator[tuple[int, str]]:
    """Which line of a split is wrong next, and the other line's text that it gets; every line comes once.

    The order does not depend on how many are taken: what is wrong at one share is wrong in the same way at every
    greater one. Where all lines state the same, they keep their text.
    """

    def another(index: int, source: random.Random) -> str:
        others = [text for text in texts if text != texts[index]]
        return source.choice(others) if others else texts[index]

    source = random.Random(derive_seed("transcripts", seed, split))
    first = source.sample(range(len(texts)), round(USUAL_SHARE * len(texts)))
    for index in first:
        yield index, another(index, source)
    source = random.Random(derive_seed("more transcripts", seed, split))
    rest = sorted(set(range(len(texts))).difference(first))
    for index in source.sample(rest, len(rest)):
        yield index, another(index, source)
