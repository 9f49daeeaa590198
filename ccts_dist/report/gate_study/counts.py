"""Whom the gates of a seed's runs reject: of the utterances whose words are off, and of the others."""

import json
from pathlib import Path

from ccts_dist.config import read_run
from ccts_dist.files.atomic import atomic_write
from ccts_dist.report.study.results import distilled_shares

COUNTS = "rejected.json"
"""In a run's folder."""


def count(argv: list[str]) -> int:
    """Count for each run folder, and store it there: FILE_OF_THE_ORACLE RUN..."""
    sound = set(Path(argv[0]).read_text(encoding="utf-8").split())
    for folder in map(Path, argv[1:]):
        shares = distilled_shares(read_run(folder / "run.toml"))
        of = {"off": [1 - share for key, share in shares.items() if key not in sound]}
        of["sound"] = [1 - share for key, share in shares.items() if key in sound]
        counted = {name: sum(rejected) / max(1, len(rejected)) for name, rejected in of.items()}
        atomic_write(folder / COUNTS, (json.dumps(counted) + "\n").encode())
    return 0
