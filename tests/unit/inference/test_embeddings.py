"""Files of embeddings: read back by the libraries they are meant for, whole or cut short."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file

from ccts_dist.errors import ConfigError
from ccts_dist.inference.embeddings import SUFFIXES, check_suffix, embedding_file, keys_beside

COLUMNS = ("file", "start_s", "end_s")
SIZE = 5


def _rows(count: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    keys = [{"file": f"ä {number}.wav", "start_s": number / 2, "end_s": number + 1.0} for number in range(count)]
    return keys, np.random.default_rng(0).normal(size=(count, SIZE)).astype(np.float32)


def _read(path: Path, beside: Path | None) -> tuple[list[dict[str, Any]], np.ndarray]:
    if path.name.startswith("e.npy"):
        assert beside is not None
        return [json.loads(line) for line in beside.read_text("utf-8").splitlines()], np.load(path)
    if path.name.startswith("e.safetensors"):
        tensors = load_file(path)
        assert tensors.keys() == {"embeddings", "keys"}
        return [json.loads(line) for line in tensors["keys"].tobytes().splitlines()], tensors["embeddings"]
    table = parquet.read_table(path)
    keys = table.drop_columns(["embedding"]).to_pylist()
    return keys, np.array(table["embedding"].to_pylist(), dtype=np.float32).reshape(len(keys), SIZE)


@pytest.mark.parametrize("count", [0, 1, 1_024, 2_500])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_went_in_comes_out_with_its_keys(tmp_path: Path, suffix: str, count: int) -> None:
    path = tmp_path / f"e{suffix}"
    keys, embeddings = _rows(count)
    file = embedding_file(path, size=SIZE, columns=COLUMNS)
    for key, embedding in zip(keys, embeddings, strict=True):
        file.add(key, embedding)
    for part in file.end():
        part.complete()
    read_keys, read = _read(path, keys_beside(path))
    assert read_keys == keys
    np.testing.assert_array_equal(read, embeddings)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_left_before_its_end_can_be_read_under_its_partial_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"e{suffix}"
    keys, embeddings = _rows(3)
    file = embedding_file(path, size=SIZE, columns=COLUMNS)
    for key, embedding in zip(keys, embeddings, strict=True):
        file.add(key, embedding)
    for part in file.end():
        part.abandon()
    assert not path.exists()
    beside = keys_beside(path)
    partial = None if beside is None else beside.with_name(f"{beside.name}.partial")
    read_keys, read = _read(path.with_name(f"{path.name}.partial"), partial)
    assert read_keys == keys
    np.testing.assert_array_equal(read, embeddings)


def test_another_kind_of_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--embeddings e\.pkl: embeddings are \.npy, \.parquet, \.safetensors files"):
        check_suffix(Path("e.pkl"))
