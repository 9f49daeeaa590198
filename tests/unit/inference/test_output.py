"""Files that grow: whole under their name, or what there is under another."""

import subprocess
import sys
from pathlib import Path

import pytest

from ccts_dist.errors import ConfigError, OutputError
from ccts_dist.inference.output import GrowingFile, check_outputs


def test_a_file_takes_its_name_when_it_is_complete_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    file = GrowingFile(path)
    file.file.write(b"new")
    assert path.read_text() == "old"
    file.complete()
    assert path.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["a.csv"]


def test_a_file_that_is_left_stays_beside_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    file = GrowingFile(path)
    file.file.write(b"ne")
    file.abandon()
    assert (path.read_text(), (tmp_path / "a.csv.partial").read_text()) == ("old", "ne")


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"absent/a\.csv: cannot be written \(No such file or directory\)\. Make room"
    ):
        GrowingFile(tmp_path / "absent" / "a.csv")


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"--out": "absent/a.csv"}, r"--out .*absent/a\.csv: there is no folder .*absent\. Make it first"),
        ({"--out": "."}, r"--out .*: is a folder\. Name a file in it"),
        ({"--out": "x/../a.wav"}, r"--out .*a\.wav: is a recording to be processed\. Name another file"),
        ({"--out": "e.npy", "--embeddings": "./e.npy"}, r"--embeddings .*e\.npy: is what --out writes"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused_at_once(tmp_path: Path, outputs: dict[str, str], words: str) -> None:
    (tmp_path / "x").mkdir()
    places: dict[str, Path | None] = {option: tmp_path / path for option, path in outputs.items()}
    with pytest.raises(ConfigError, match=words):
        check_outputs(places, [tmp_path / "a.wav"])
    check_outputs({"--out": None, "--embeddings": tmp_path / "fine.npy"}, [tmp_path / "a.wav"])


def test_what_c_libraries_print_does_not_stand_in_stdout():
    """libsndfile prints remarks on damaged files; printf of C holds them back, to the end of the process at last."""
    code = (
        "import ctypes, sys; from ccts_dist.inference.output import only_our_stdout; c = ctypes.CDLL(None)\n"
        "with only_our_stdout():\n"
        "    c.puts(b'noise'); print('answer'); c.printf(b'more noise')\n"
        "print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "answer\ndone\n"
    assert done.stderr == "noise\nmore noise"
