"""The ages of speakers, which shards do not hold."""

from pathlib import Path

from ccts_dist.corpus.cells import printable, table_rows
from ccts_dist.errors import ConfigError

_OLDEST = 130


def read_ages(path: Path) -> dict[str, float]:
    """Age in years by speaker, of a CSV with the columns ``speaker`` and ``age``; an empty age is unknown.

    Raises:
        ConfigError: an age is none.
        CorpusError: no such table.
    """
    ages: dict[str, float] = {}
    for line, cells in table_rows(path, ("speaker", "age")):
        cell = cells["age"].strip()
        try:
            age = float(cell or "nan")
        except ValueError:
            age = -1.0
        if cell and not 0 <= age <= _OLDEST:
            raise ConfigError(
                f"{path}: line {line}: age {printable(cell)!r} is no number of years up to {_OLDEST}. Correct it, or "
                "leave the cell empty."
            )
        if cell:
            ages[cells["speaker"].strip()] = age
    return ages
