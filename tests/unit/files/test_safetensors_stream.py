"""Files written a tensor at a time are safetensors files like any other."""

import hashlib
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ccts_dist.errors import CheckpointError, OutputError
from ccts_dist.files.safetensors_stream import Entry, StoredTensors, TensorFile
from ccts_dist.train.resilience.storage_errors import writing

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,  # not in a row in memory
    "step": torch.tensor(7.0),
    "empty": torch.zeros(0, 3),
    "count": torch.tensor([3, -1]),
    "mask": torch.tensor([True, False, True]),
    "odd": torch.tensor([-0.0, float("nan"), float("inf")]),
}


def write(path, tensors=TENSORS):
    file = TensorFile(path, {name: Entry(shape=tuple(t.shape), dtype=t.dtype) for name, t in tensors.items()})
    for name, tensor in tensors.items():
        file.write(name, tensor)
    return file.finish()


def test_the_safetensors_library_reads_what_was_written(tmp_path):
    size, digest = write(tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())
    loaded = load_file(tmp_path / "a.safetensors")
    assert list(safe_open(tmp_path / "a.safetensors", framework="pt").keys()) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert torch.signbit(loaded["odd"][0])


def test_file_without_tensors_is_one_too(tmp_path):
    write(tmp_path / "none.safetensors", {})
    assert load_file(tmp_path / "none.safetensors") == {}


def test_tensor_that_was_not_announced_next_is_a_bug(tmp_path):
    file = TensorFile(tmp_path / "a.safetensors", {"a": Entry(shape=(2,)), "b": Entry(shape=(2,))})
    with pytest.raises(AssertionError, match="a"):
        file.write("b", torch.zeros(2))
    file.close()
    file = TensorFile(tmp_path / "a.safetensors", {"a": Entry(shape=(2,))})
    with pytest.raises(AssertionError, match="not written"):
        file.finish()
    file.close()


def test_only_what_is_looked_at_is_read(tmp_path):
    """A tensor of 256 MB, of which a row is used: the process's own memory must not grow by the tensor."""
    save_file({"big": torch.zeros(64, 1 << 20)}, tmp_path / "big.safetensors")

    def private_kb() -> int:
        with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
            return sum(int(line.split()[1]) for line in lines if line.startswith(("Rss:",)))

    stored = StoredTensors(tmp_path / "big.safetensors")
    before = private_kb()
    row = stored.get("big", (64, 1 << 20)).reshape(-1)[5 << 20 : 6 << 20].clone()
    assert row.shape == (1 << 20,)
    assert private_kb() - before < 64_000
    os.remove(tmp_path / "big.safetensors")


def test_missing_or_misshapen_tensors_and_no_safetensors_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    stored = StoredTensors(path)
    assert stored.get("weight", (4, 3)).tolist() == TENSORS["weight"].tolist()
    with pytest.raises(CheckpointError, match=r"a.safetensors: holds no 'bias', which the model has"):
        stored.get("bias", (3,))
    with pytest.raises(CheckpointError, match=r"'weight' has shape \[4, 3\], the model's has \[5\]"):
        stored.get("weight", (5,))
    path.write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"a.safetensors: cannot be read"):
        StoredTensors(path)


def test_disk_that_is_full_is_reported_with_the_place(tmp_path):
    """/dev/full can be opened, and fails when it is written to, as a full disk does."""
    (tmp_path / "full").symlink_to("/dev/full")
    with (
        pytest.raises(OutputError, match=r"somewhere: cannot be written or read back: No space left on device"),
        writing(tmp_path / "somewhere"),
    ):
        write(tmp_path / "full")
