"""Audio that changed after its shard set was finished: noticed by the files' times, decided by making the shards again.

Beside a finished set lies ``.sources.json``, the digest of each shard's sources with the times of their last change. It
is no part of the set: two copies of a corpus give one set and two of these. Where the times differ, the shards are made
again in a temporary folder and compared, so that a corpus that was merely copied or touched is no reason to complain.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ccts_dist.errors import ConfigError
from ccts_dist.shards.build.make_shard import MakeSettings, write_shard
from ccts_dist.shards.build.output import Output
from ccts_dist.shards.build.plan import PlannedBuild
from ccts_dist.shards.build.plan_shards import PlannedShard
from ccts_dist.shards.build.pool import run_tasks
from ccts_dist.shards.format.schema import Manifest

SOURCES_NAME = ".sources.json"

_MOST_NAMED = 5


def note_sources(output: Output, sources: Mapping[str, str]) -> None:
    """Write down the digest of each shard's sources as they were when they were looked at."""
    output.write(SOURCES_NAME, (json.dumps(dict(sources), indent=1, sort_keys=True) + "\n").encode())


def check_sources(
    build: PlannedBuild,
    manifest: Manifest,
    *,
    settings: MakeSettings,
    num_processes: int,
    progress: Callable[[int], object],
) -> int:
    """Make sure that a finished set is still that of its audio.

    Returns:
        How many shards had to be made again to know.

    Raises:
        ConfigError: the audio of a shard is another one by now; names the shards.
    """
    noted = _read(build.output)
    if noted is None:
        return 0  # a copy of the set, without the note: nothing is known of the times
    doubtful = [shard for shard in build.shards if noted.get(shard.name) != shard.source_digest]
    wanted = {entry.name: entry.sha256 for entry in manifest.shards}
    same = run_tasks(
        partial(_is_same, wanted=wanted, settings=settings), doubtful, num_processes=num_processes, progress=progress
    )
    changed = [shard.name for shard, is_same in zip(doubtful, same, strict=True) if not is_same]
    if changed:
        more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
        raise ConfigError(
            f"{build.output.where}: the audio of {len(changed)} shards has changed since they were built "
            f"({', '.join(changed[:_MOST_NAMED])}{more}). Delete the shard set to build it anew, or name another place."
        )
    if doubtful:
        note_sources(build.output, {shard.name: shard.source_digest for shard in build.shards})
    return len(doubtful)


def _is_same(
    shard: PlannedShard, progress: Callable[[int], object], *, wanted: dict[str, str], settings: MakeSettings
) -> bool:
    with tempfile.TemporaryDirectory(prefix="ccts-build-") as folder:
        made = write_shard(Path(folder) / shard.name, shard, settings, progress)
    return made.sha256 == wanted.get(shard.name, "")


def _read(output: Output) -> dict[str, str] | None:
    data = output.read(SOURCES_NAME)
    try:
        noted = None if data is None else json.loads(data)
    except ValueError:
        return None
    return noted if isinstance(noted, dict) else None
