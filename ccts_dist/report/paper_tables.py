"""The tables of arXiv 2112.00158: which run file makes which row, and the figures that stand there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ccts_dist.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One system."""

    number: int
    """Number in the paper."""

    words: str
    run: str
    """Its run file, without ``.toml``."""

    paper: tuple[float, float, float]
    """CCC of activation, valence and dominance."""

    teacher: int = 0
    """Row whose outputs it learns from; 0 for none."""

    needs: str = ""
    """Folder, below that of the results, without which the row is omitted; "" for none."""

    distance: str = ""
    """``distill.embedding_loss`` in place of its run file's; "" for that."""

    @property
    def short(self) -> str:
        """Its number, and the distance if that is another."""
        return " ".join(part for part in (str(self.number), self.distance) if part)

    @property
    def name(self) -> str:
        """Name of its runs: the run file's, and the distance if that is another."""
        return "-".join(part for part in (self.run, self.distance) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Which splits do what."""

    name: str
    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTable:
    """Rows over one corpus."""

    name: str
    title: str
    runs: Path
    """Folder of the run files."""

    corpus: str
    """Name of the corpus in ``shards/build.py``."""

    rows: tuple[Row, ...]
    folds: tuple[Fold, ...]
    compared: tuple[tuple[int, int], ...] = ()
    """Rows whose difference is of interest: the first less the second."""

    def pairs(self, rows: Sequence[Row]) -> list[tuple[Row, Row]]:
        """Those of ``compared`` among ``rows``, students of one distance; and each other distance less the paper's."""
        return [
            (one, other)
            for one in rows
            for other in rows
            if ((one.number, other.number) in self.compared and (not other.teacher or one.distance == other.distance))
            or (one.number == other.number and one.distance and not other.distance)
        ]

    def choose(self, numbers: Sequence[int]) -> list[Row]:
        """These rows and the teachers that they need, in the paper's order; all rows when none is named.

        Raises:
            ConfigError: there is no such row.
        """
        known = {row.number: row for row in self.rows}
        for number in numbers:
            if number not in known:
                raise ConfigError(
                    f"--only {number}: the table {self.name} has the rows {', '.join(map(str, known))}. Name some of "
                    "them."
                )
        wanted = set(numbers) or set(known)
        wanted |= {known[number].teacher for number in wanted} - {0}
        return [row for row in self.rows if row.number in wanted]


MSP = PaperTable(
    name="msp",
    title="MSP-Podcast 1.6, test",
    runs=Path("launch/runs/paper/msp"),
    corpus="msp-podcast",
    rows=(
        Row(
            number=3,
            words="Modified CPC, frozen",
            run="03-modified-cpc",
            paper=(0.736, 0.396, 0.662),
            needs="encoders/modified-cpc",
        ),
        Row(number=4, words="wav2vec 2.0 base, frozen", run="04-wav2vec2-base", paper=(0.728, 0.363, 0.636)),
        Row(number=5, words="wav2vec 2.0 large, frozen", run="05-wav2vec2-large", paper=(0.735, 0.472, 0.654)),
        Row(number=6, words="HuBERT base, frozen", run="06-hubert-base", paper=(0.733, 0.485, 0.640)),
        Row(number=7, words="HuBERT large, frozen", run="07-hubert-large", paper=(0.752, 0.547, 0.674)),
        Row(number=8, words="BERT base, text only, frozen", run="08-bert-base", paper=(0.317, 0.563, 0.290)),
        Row(number=9, words="teacher = 7 + 8", run="09-teacher", paper=(0.765, 0.690, 0.683)),
        Row(number=10, words="HuBERT base tuned", run="10-hubert-base-tuned", paper=(0.730, 0.533, 0.644)),
        Row(number=11, words="10 + teacher 9: T/S", run="11-ts", paper=(0.738, 0.590, 0.650), teacher=9),
        Row(number=12, words="10 + teacher 9: cT/S", run="12-cts", paper=(0.757, 0.627, 0.671), teacher=9),
    ),
    folds=(Fold(name="", train=("Train",), valid=("Development",), test=("Test1",)),),
    compared=((9, 7), (11, 10), (12, 10), (12, 11)),
)

_SESSIONS = tuple(f"Session{number}" for number in range(1, 6))


def _iemocap_fold(test: int) -> Fold:
    """One session tests, the next one validates, three train; which one validates the paper leaves open."""
    valid = (test + 1) % len(_SESSIONS)
    return Fold(
        name=f"fold{test + 1}",
        train=tuple(session for number, session in enumerate(_SESSIONS) if number not in (test, valid)),
        valid=(_SESSIONS[valid],),
        test=(_SESSIONS[test],),
    )


IEMOCAP = PaperTable(
    name="iemocap",
    title="IEMOCAP",
    runs=Path("launch/runs/paper/iemocap"),
    corpus="iemocap",
    rows=(
        Row(number=2, words="HuBERT base, frozen", run="02-hubert-base", paper=(0.663, 0.527, 0.530)),
        Row(number=3, words="BERT base, text only, frozen", run="03-bert-base", paper=(0.463, 0.576, 0.442)),
        Row(number=4, words="teacher = 2 + 3", run="04-teacher", paper=(0.668, 0.648, 0.537)),
        Row(number=5, words="teacher 4: T/S", run="05-ts", paper=(0.667, 0.582, 0.545), teacher=4),
        Row(number=6, words="teacher 4: cT/S", run="06-cts", paper=(0.645, 0.481, 0.528), teacher=4),
    ),
    folds=tuple(_iemocap_fold(test) for test in range(len(_SESSIONS))),
    compared=((4, 2), (5, 2), (6, 2), (6, 5)),
)

TABLES = {table.name: table for table in (MSP, IEMOCAP)}
