"""The paper's tables at a small size: every row by its own run file, from a corpus on disk to the table.

Encoders have the names of the real ones, in a hub cache made here.
"""

import json
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from ccts_dist.model.speech.modified_cpc import convert
from ccts_dist.records import DIMENSIONS
from ccts_dist.report.command import build_parser, reproduction_of
from ccts_dist.report.paper import reproduce
from ccts_dist.report.paper_tables import TABLES, PaperTable
from tests.flow.report.forked_stages import fork_stages
from tests.helpers.examples.small_corpora import write_iemocap, write_msp_podcast
from tests.helpers.models.hub import write_hub
from tests.helpers.models.published_cpc import published, write_checkpoint

pytestmark = pytest.mark.long

CORPORA = {
    "msp": lambda root: write_msp_podcast(root, {"Train": 40, "Development": 12, "Test1": 12}),
    "iemocap": lambda root: write_iemocap(root, per_session=14),
}
# One rank each: starting is most of what so small trainings take. The demo's table shows two.
OPTIONS = {"msp": [], "iemocap": ["--folds", "2", "5"]}
FOLDS = {"msp": (0,), "iemocap": (1, 4)}


def make(table: PaperTable, place: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The table and what was reported on the way."""
    words = [
        "--table", table.name, "--out", str(place / "made"), "--corpus", str(place / "corpus"),
        "--set", "train.epochs=1", "--set", "data.num_workers=0", "--launcher", sys.executable, *OPTIONS[table.name],
    ]  # fmt: skip
    table = reproduce(reproduction_of(build_parser().parse_args(words)))
    return table, capsys.readouterr().err


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_row_runs_and_stands_beside_the_papers_figures(table: PaperTable, tmp_path: Path, monkeypatch, capsys):
    fork_stages(monkeypatch)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    write_hub(tmp_path / "hub")
    checkpoint = write_checkpoint(tmp_path / "published.pt", published())
    convert(checkpoint, tmp_path / "made" / "encoders" / "modified-cpc")
    CORPORA[table.name](tmp_path / "corpus")
    table_text, _ = make(table, tmp_path, capsys)
    text = (tmp_path / "made" / "table.md").read_text()
    assert text.strip() == table_text.strip()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    folds = [table.folds[at] for at in FOLDS[table.name]]
    by_number = {cells[0]: cells for cells in reversed(lines)}  # the first table, where there are two
    for row in table.rows:
        cells = by_number[str(row.number)]
        assert [float(cells[at]) for at in (2, 5, 8)] == list(row.paper)
        runs = [tmp_path / "made" / "runs" / "-".join(filter(None, (row.run, fold.name, "seed17"))) for fold in folds]
        reported = [json.loads((run / "summary.json").read_text()) for run in runs]
        ours = [sum(one["test"][dimension] for one in reported) / len(reported) for dimension in DIMENSIONS]
        assert [float(cells[at]) for at in (3, 6, 9)] == pytest.approx(ours, abs=6e-4)
        assert all(one["steps"] > 0 for one in reported)
    again, printed = make(table, tmp_path, capsys)
    assert again == table_text
    done = 1 + len(folds) * (len(table.rows) + 1)
    assert printed.count("done before") == done, "the shards, every run, and each teacher's cache"
