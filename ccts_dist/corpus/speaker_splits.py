"""Speaker-disjoint splits for corpora that have none of their own: a fixed rule, without a random number."""

from collections import defaultdict
from collections.abc import Mapping

from ccts_dist.corpus.folders import natural_order
from ccts_dist.errors import ConfigError

DEAL = ("Train", "Train", "Train", "Development", "Test")
"""Split of the first to the fifth speaker of each group; the sixth is dealt as the first is."""


def split_by_speaker(groups: Mapping[str, str], num_folds: int | None = None) -> dict[str, str]:
    """Split of each speaker.

    The speakers of a group, in the order of their names, are dealt out in turn: three to Train, one to Development, one
    to Test, and so on. With ``num_folds`` they are dealt to Fold1, Fold2 and so on, which a run file combines as it
    likes. The rule looks at the speakers that are there: a part of a corpus may be split otherwise than the whole.

    Args:
        groups: by speaker, whom to balance, such as the gender; "" where nothing is known.
        num_folds: None for Train, Development and Test.

    Raises:
        ConfigError: fewer than two folds, or more folds than speakers.
    """
    if num_folds is not None and not 2 <= num_folds <= len(groups):
        raise ConfigError(f"--folds {num_folds}: must be from 2 to {len(groups)}, the number of speakers. Change it.")
    names = DEAL if num_folds is None else tuple(f"Fold{number + 1}" for number in range(num_folds))
    members: dict[str, list[str]] = defaultdict(list)
    for speaker, group in groups.items():
        members[group].append(speaker)
    return {
        speaker: names[place % len(names)]
        for speakers in members.values()
        for place, speaker in enumerate(sorted(speakers, key=natural_order))
    }
