"""Plain WebDataset tars: ``KEY.flac`` and ``KEY.json``."""

import io
import json
import tarfile
from pathlib import Path

from material import Corpus


def write_tars(corpus: Corpus, folder: Path) -> list[Path]:
    """Write the corpus as tars; their paths."""
    paths = []
    for number, shard in enumerate(corpus.shards()):
        paths.append(folder / f"Train-{number:06d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for row, payload in shard:
                facts = json.dumps({"labels": row.labels}).encode()
                for name, data in ((f"{row.key}.flac", payload), (f"{row.key}.json", facts)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return paths
