"""Tables of predictions: written, read, cut, joined, gathered from batches."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ccts_dist.errors import ConfigError
from ccts_dist.scoring import (
    PredictionCollector,
    PredictionTable,
    RaterColumns,
    TeacherColumns,
    joined,
    read_table,
    write_table,
)
from ccts_dist.scoring.measures import SplitSums
from tests.helpers.examples.shard_examples import example_shard_set
from tests.helpers.examples.tables import make_table
from tests.helpers.examples.tones import build_tones, make_loader


def same(one: PredictionTable, other: PredictionTable) -> None:
    for field in fields(PredictionTable):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, TeacherColumns):
            assert mine.widest == theirs.widest
            for name in ("prediction", "residual", "gate_mask"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)
        elif isinstance(mine, RaterColumns):
            np.testing.assert_array_equal(mine.variance, theirs.variance)
            np.testing.assert_array_equal(mine.count, theirs.count)
        elif isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
            assert mine.dtype == theirs.dtype, field.name
        else:
            assert mine == theirs, field.name


def whole_table() -> PredictionTable:
    table = make_table()
    teacher = TeacherColumns(
        prediction=table.predictions + 0.1,
        residual=table.predictions - table.labels,
        gate_mask=table.duration_s > 3,
        widest=(0.25, 0.5, 0.125),
    )
    count = len(table)
    raters = RaterColumns(variance=table.labels / 10, count=np.arange(count) % 6)
    return replace(
        table,
        raters=raters,
        teacher=teacher,
        categories=("Happy", None) * (count // 2),
        predicted_categories=("Sad",) * count,
    )


@pytest.mark.parametrize("table", [make_table(), whole_table()], ids=["plain", "whole"])
def test_table_that_was_written_is_the_one_that_is_read(table: PredictionTable, tmp_path: Path):
    write_table(tmp_path / "t.parquet", table)
    same(read_table(tmp_path / "t.parquet"), table)


def test_other_programs_read_labels_and_predictions_by_target_and_no_label_as_null(tmp_path: Path):
    table = make_table(targets=("valence",))
    write_table(tmp_path / "t.parquet", table)
    found = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert found[11]["speaker"] is None
    assert found[3]["prediction.valence"] == table.predictions[3, 0]
    missing = int(np.flatnonzero(np.isnan(table.labels[:, 0]))[0])
    assert found[missing]["label.valence"] is None


def test_file_that_is_no_table_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    for name in ("other", "text", "absent"):
        with pytest.raises(ConfigError, match=rf"{name}\.parquet: no table of predictions"):
            read_table(tmp_path / f"{name}.parquet")


def test_table_that_cannot_be_written_is_reported_with_its_path(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"t\.parquet: cannot be written \(.*Not a directory\)"):
        write_table(tmp_path / "file" / "t.parquet", make_table())


def test_rows_that_are_taken_and_joined_again_are_the_table():
    table = whole_table()
    first = np.arange(len(table)) < 50
    again = joined([table.take(first), table.take(np.arange(50, len(table)))])
    same(again, replace(table, teacher=None, raters=None))
    assert table.take(first).teacher is not None


def test_only_some_targets_keep_their_columns():
    table = make_table()
    one = table.only(("dominance", "activation"))
    np.testing.assert_array_equal(one.predictions, table.predictions[:, [2, 0]])
    assert one.targets == ("dominance", "activation")
    raters = whole_table().only(("dominance",)).raters
    assert raters is not None
    np.testing.assert_array_equal(raters.variance, table.labels[:, 2:] / 10)


def test_sums_over_speakers_are_those_of_the_split():
    table = make_table()
    whole = SplitSums(table.targets)
    whole.add(torch.from_numpy(table.predictions), torch.from_numpy(table.labels), torch.ones(len(table)))
    torch.testing.assert_close(table.sums().sum(0), whole.to_tensor(), rtol=0, atol=1e-10)
    assert table.num_speakers == len(table.sums()) == len({*table.speakers} - {None}) + table.speakers.count(None)


def test_batches_in_any_order_make_a_table_in_the_order_of_the_shards(tmp_path: Path):
    build_tones(tmp_path)
    from ccts_dist.shards import open_shard_set

    shard_set = open_shard_set(tmp_path / "shards")
    tables = []
    for size in (3, 7):
        loader = make_loader(
            shard_set, splits=("Test1",), shuffle=False, global_batch_size=size, micro_batch_size=2,
            encode_text=lambda text: [len(text.split())], categories=("Happy", "Sad"),
        )  # fmt: skip
        printed = PredictionCollector(("activation", "valence", "dominance"), ("Happy", "Sad"))
        for step in loader.epoch(0):
            for batch in step.micro_batches:
                numbers = torch.tensor([float(key.removeprefix("u.")) for key in batch.keys])
                odds = torch.stack([numbers % 2, 1 - numbers % 2], dim=1)
                assert batch.tokens is not None
                printed.add(batch, numbers[:, None].expand(-1, 3), batch.tokens[:, 0], odds)
        tables.append(printed.table(shard_set, "Test1"))
    same(*tables)
    (table, _) = tables
    numbers = [int(key.removeprefix("u.")) for key in table.keys]
    assert sorted(numbers) == [37, 38, 39, 40, 41]
    assert table.predictions[:, 0].tolist() == numbers
    assert table.num_words.tolist() == [number % 4 for number in numbers]
    assert table.predicted_categories == tuple("Happy" if number % 2 else "Sad" for number in numbers)
    assert np.isnan(table.labels[numbers.index(40), 1])
    assert table.labels[numbers.index(39), 0] == pytest.approx(39 / 60)
    assert table.duration_s.tolist() == [(1_600 + (number * 613) % 4_800) / 16_000 for number in numbers]


def test_raters_come_from_the_shards_where_they_are_asked_for(tmp_path: Path):
    shard_set = example_shard_set(tmp_path)
    loader = make_loader(
        shard_set, splits=("Development",), shuffle=False, global_batch_size=2, micro_batch_size=2,
        targets=("valence", "activation"),
    )  # fmt: skip
    collected = PredictionCollector(("valence", "activation"))
    for step in loader.epoch(0):
        for batch in step.micro_batches:
            collected.add(batch, batch.labels, torch.zeros(len(batch.keys)))
    assert collected.table(shard_set, "Development").raters is None
    raters = collected.table(shard_set, "Development", raters=True).raters
    assert raters is not None
    assert raters.count.tolist() == [5, 5, 5]
    np.testing.assert_array_equal(raters.variance, [[np.nan, 0.01]] * 3)
