"""Speaker-disjoint splits for corpora that have none of their own: a fixed rule, without a random number."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ccts_dist.corpus.folders import natural_order
from ccts_dist.errors import ConfigError
from ccts_dist.records import Rejected, Utterance

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


def resplit_by_speaker(
    given: Sequence[Utterance | Rejected], num_folds: int | None = None
) -> Iterator[Utterance | Rejected]:
    """Utterances with the splits of ``split_by_speaker``, balanced by gender, in place of their own.

    One without a speaker is rejected.

    Raises:
        ConfigError: as ``split_by_speaker``; or no utterance has a speaker.
    """
    speakers = {one.speaker: one.gender or "" for one in given if isinstance(one, Utterance) and one.speaker}
    if not speakers:
        raise ConfigError("--by-speaker: no utterance has a speaker. Give the column (speaker, or --speaker COLUMN).")
    splits = split_by_speaker(speakers, num_folds)
    for one in given:
        if isinstance(one, Rejected):
            yield one
        elif one.speaker is None:
            yield Rejected(key=one.key, reason="no speaker, so no split by speaker", source=one.audio.name)
        else:
            yield replace(one, split=splits[one.speaker])
