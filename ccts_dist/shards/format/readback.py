"""The index rows of a written tar, from the tar itself: what lies on disk is what the index states."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ccts_dist.audio.convert import flac_facts
from ccts_dist.errors import ShardError
from ccts_dist.records import Utterance
from ccts_dist.shards.format.index import MemberPlaces, ShardRows
from ccts_dist.shards.format.schema import AUDIO_MEMBER, JSON_MEMBER, unescape_key, utterance_from_json
from ccts_dist.shards.format.tars import TarMember, crc32_of, walk_tar


def read_back(path: Path, *, targets: Sequence[str], members: Sequence[str]) -> ShardRows:
    """Walk a tar and make its index rows.

    Args:
        targets: names of the labels.
        members: extensions that every utterance must have, in their order in the tar.

    Raises:
        ShardError: the tar is damaged, or a member is foreign, missing, doubled or not what it should be.
    """
    found = list(walk_tar(path))
    if len(found) % len(members):
        raise ShardError(f"{path.name}: {len(found)} members, not {len(members)} each. Delete it and build it again.")
    keys: list[str] = []
    utterances: list[Utterance] = []
    num_samples: list[int] = []
    checksums: dict[str, list[int]] = {member: [] for member in members}
    with open(path, "rb") as file:
        for first in range(0, len(found), len(members)):
            group = found[first : first + len(members)]
            key = _shared_key(path, group, members)
            payloads = {}
            for name, member in zip(members, group, strict=True):
                file.seek(member.offset)
                payloads[name] = file.read(member.size)
                checksums[name].append(crc32_of(payloads[name]))
            keys.append(key)
            utterances.append(utterance_from_json(payloads[JSON_MEMBER]))
            num_samples.append(flac_facts(payloads[AUDIO_MEMBER])[1])
            if utterances[-1].key != key:
                raise ShardError(
                    f"{path.name}: {key!r} states it is {utterances[-1].key!r}. Delete it, build it again."
                )
    if len(set(keys)) != len(keys):
        raise ShardError(f"{path.name}: a key comes twice. Delete it and build it again.")
    return ShardRows(
        shard=path.name,
        keys=tuple(keys),
        num_samples=np.array(num_samples, np.int64),
        labels={target: _labels(utterances, target) for target in targets},
        speakers=tuple(utterance.speaker for utterance in utterances),
        genders=tuple(utterance.gender for utterance in utterances),
        categories=tuple(utterance.category for utterance in utterances),
        members={
            name: MemberPlaces(
                offset=np.array([member.offset for member in found[at :: len(members)]], np.int64),
                size=np.array([member.size for member in found[at :: len(members)]], np.int64),
                crc32=np.array(checksums[name], np.uint32),
            )
            for at, name in enumerate(members)
        },
    )


def _shared_key(path: Path, group: Sequence[TarMember], members: Sequence[str]) -> str:
    escaped = group[0].name.partition(".")[0]
    for member, extension in zip(group, members, strict=True):
        if member.kind != "file" or member.name != f"{escaped}.{extension}":
            raise ShardError(
                f"{path.name}: met {member.kind} {member.name!r} where {extension} of {escaped!r} must be. "
                "Delete the shard and build it again."
            )
    return unescape_key(escaped)


def _labels(utterances: Sequence[Utterance], target: str) -> Any:
    return np.array([utterance.labels.get(target, np.nan) for utterance in utterances], np.float64)
