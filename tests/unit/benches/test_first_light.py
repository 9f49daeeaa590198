"""How first light runs its parts, what it carries to a machine without an index, and what it installs there."""

import json
import re
import sys
import time
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ccts_dist.train.memory.parts import Estimate, Part
from tests.gpu import first_light, pack, supervision, wheels
from tests.gpu.outcome import FAILED, PASSED, SKIPPED, NotApplicable, Outcome
from tests.gpu.parts import b_losses, f_speed
from tests.gpu.settings import SETTINGS
from tests.gpu.table import table

PART = supervision.Part(letter="X", title="a part", module="none", limit_s=60.0)

# Each writes its record as a part does: one item at once, then what the case is about.
BEGUN = (
    "import os, signal, sys, time\n"
    "from pathlib import Path\n"
    "from tests.gpu.outcome import Outcome\n"
    "outcome = Outcome(Path(sys.argv[sys.argv.index('--json') + 1]), 'X')\n"
    "with outcome.item('first') as figures:\n"
    "    figures['n'] = 3\n"
)


def run(tmp_path: Path, rest: str, *, limit_s: float = 60.0) -> dict:
    """A part in a process of its own that does this after its first item."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(supervision.ROOT)}
    command = [sys.executable, "-c", BEGUN + rest]
    reported = supervision.run_part(PART, limit_s, command, tmp_path, tmp_path, env)
    assert json.loads((tmp_path / "X.json").read_text()) == reported
    assert reported["items"][0] == {**reported["items"][0], "name": "first", "status": PASSED, "figures": {"n": 3}}
    return reported


def test_part_that_ends_well_has_passed(tmp_path):
    reported = run(tmp_path, "outcome.show('speed', 12.345)\noutcome.write(finished=True)\n")
    assert (reported["status"], reported["passed"], reported["failed"], reported["reason"]) == (PASSED, 1, 0, "")
    assert reported["shown"] == {"speed": "12.3"}


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)\n", "was killed by SIGKILL"),
        ("sys.exit(3)\n", "exit code 3"),
        ("os._exit(0)\n", "ended before its end, with exit code 0"),
        ("with outcome.item('bad'):\n    1 / 0\noutcome.write(finished=True)\n", "bad: ZeroDivisionError: division by"),
    ],
)
def test_part_that_ends_badly_has_failed_and_keeps_its_items(tmp_path, rest, reason):
    reported = run(tmp_path, rest)
    assert reported["status"] == FAILED
    assert reported["reason"].startswith(reason)


@pytest.mark.integration
def test_part_that_hangs_is_ended_at_its_limit_with_all_that_it_started(tmp_path):
    pids = tmp_path / "pids"
    hang = f"os.fork()\nPath({str(pids)!r}).open('a').write(f'{{os.getpid()}} ')\ntime.sleep(600)\n"
    reported = run(tmp_path, hang, limit_s=8.0)
    assert (reported["status"], reported["reason"]) == (FAILED, "ran longer than its 8 s")
    alive = [Path(f"/proc/{pid}/status") for pid in pids.read_text().split()]
    assert len(alive) == 2
    while any(status.exists() and "zombie" not in status.read_text() for status in alive):
        time.sleep(0.05)  # a signal that cannot be caught takes its time on a busy machine


def test_item_that_does_not_apply_is_skipped_and_numbers_that_json_lacks_are_words(tmp_path):
    outcome = Outcome(tmp_path / "X.json", "X")
    with outcome.item("no such device"):
        raise NotApplicable("cpu: not applicable")
    with outcome.item("a number") as figures:
        figures["loss"] = float("nan")
    items = json.loads((tmp_path / "X.json").read_text())["items"]
    assert [(item["status"], item["reason"]) for item in items] == [(SKIPPED, "cpu: not applicable"), (PASSED, "")]
    assert items[1]["figures"] == {"loss": "nan"}


def test_table_has_a_line_for_every_part_and_the_reason_of_every_failure():
    bad = supervision.verdict_of(PART, {"items": []}, "was killed by SIGKILL", 2.0)
    good = supervision.verdict_of(PART, {"finished": True, "shown": {"speed": "3/s"}}, "", 61.2)
    assert table("A device", [good, bad]).splitlines()[2:] == [
        "| part | s | verdict | items | figures |",
        "|:--|--:|:--|:--|:--|",
        "| X a part | 61 | passed |  | speed 3/s |",
        "| X a part | 2 | failed |  |  |",
        "",
        "X: was killed by SIGKILL",
        "",
        "63 s in all.",
    ]


def test_limits_keep_the_first_five_parts_under_420_s_and_all_under_15_minutes():
    limits = {part.letter: part.limit_s for part in first_light.PARTS}
    assert list(limits) == list("ABCDEFGH")
    assert sum(limits[letter] for letter in "ABCDE") <= 420
    assert sum(limits.values()) <= first_light.WITHIN_S < 900
    for part in first_light.PARTS:
        assert (first_light.ROOT / f"{part.module.replace('.', '/')}.py").is_file()


def test_differences_are_relative_above_one_and_what_is_not_finite_is_refused():
    step = {"loss": 2.0, "ccc_loss": 0.5, "gradient_norm": 100.0, "num_distilled": 8.0}
    off = {"loss": 2.1, "ccc_loss": 0.4, "gradient_norm": 101.0, "num_distilled": 8.0}
    # |2.1 - 2| / 2, |.4 - .5| / 1, |101 - 100| / 100
    expected = {"loss": 0.05, "ccc_loss": 0.1, "gradient_norm": 0.01, "num_distilled": 0.0}
    assert b_losses.far_apart([step, off], [step, step]) == pytest.approx(expected)
    with pytest.raises(AssertionError, match="loss is not finite"):
        b_losses.far_apart([{**step, "loss": float("nan")}], [step])
    with pytest.raises(AssertionError, match="1 steps, and 2"):
        b_losses.far_apart([step], [step, step])


def test_forecast_of_tensors_is_that_of_steps_alone():
    parts = (
        Part(what="weights", size_bytes=100, why=""),
        Part(what="activations", size_bytes=50, why="", phases=("forward and backward",)),
        Part(what="update", size_bytes=20, why="", phases=("optimizer step",)),
        Part(what="file", size_bytes=900, why="", phases=("saving a model",)),
        Part(what="offloaded", size_bytes=700, why="", on_host=True),
        Part(what="NCCL", size_bytes=800, why=""),
    )
    assert f_speed.tensor_bytes(Estimate(parts=parts, on_gpu=True)) == 150
    # Without a GPU the host holds what is offloaded beside the rest.
    assert f_speed.tensor_bytes(Estimate(parts=parts, on_gpu=False)) == 850


def test_settings_differ_from_one_another():
    assert len(SETTINGS) >= 17
    assert len({repr(sections) for sections in SETTINGS.values()}) == len(SETTINGS)


def test_packages_that_are_carried_are_those_of_the_lock_and_all_that_they_need():
    pins, carried = wheels.locked_versions(), wheels.carried_packages()
    assert carried.items() <= pins.items()
    # By hand, from a list of what a GPU machine with torch alone was found to lack.
    lacked = {
        "transformers", "deepspeed", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "hjson",
        "soundfile", "miniaudio", "cffi", "pycparser", "tomli-w", "webdataset", "braceexpand",
    }  # fmt: skip
    assert lacked <= carried.keys()
    assert not {"torch", "numpy", "pyarrow", "triton"} & carried.keys()
    assert not any(name.startswith("nvidia") for name in carried)


def test_lock_is_read_with_extras_and_markers(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text("# made by\nTomli_W==1.2.0 \\\n    --hash=sha256:0\nmoto[s3]==5.1 ; python_version > '3'\nfoo>=1\n")
    assert wheels.locked_versions(lock) == {"tomli-w": "1.2.0", "moto": "5.1"}


def wheel(folder: Path, name: str, version: str, *needs: str) -> wheels.Wheel:
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name.replace('-', '_')}-{version}.dist-info/METADATA", "\n".join(lines) + "\n\nAbout.\n")
    return wheels.read_wheel(path)


def test_what_is_missing_or_too_old_is_installed_with_what_it_needs_and_nothing_else(tmp_path):
    carried = [
        wheel(tmp_path, "big", "5.23", "hub>=2", "there", 'more; extra == "all"'),
        wheel(tmp_path, "hub", "2.4", "newer-http"),
        wheel(tmp_path, "newer-http", "1.0"),
        wheel(tmp_path, "there", "3.0"),
        wheel(tmp_path, "more", "1.0"),
        wheel(tmp_path, "sound-file", "0.14"),
    ]
    installed = {"big": "5.17", "hub": "1.33", "there": "2.0"}
    project = [Requirement("big>=5.20,<6"), Requirement("sound_file>=0.13"), Requirement("there>=1")]
    assert [one.name for one in wheels.lacking(carried, installed, project)] == [
        "big", "hub", "newer-http", "sound-file",
    ]  # fmt: skip
    # Where the machine has it new enough, nothing of it comes along.
    enough = {"big": "5.21", "hub": "1.33", "there": "2.0", "sound-file": "0.13"}
    assert wheels.lacking(carried, enough, project) == []


def test_pack_that_is_too_large_to_carry_is_refused(tmp_path):
    with open(tmp_path / "a.whl", "wb") as file:
        file.truncate(61 * 2**20)
    with pytest.raises(SystemExit, match=r"61\.0 MiB, and at most 60 are carried"):
        pack.check_size(tmp_path)


def test_no_packed_folder_and_no_such_part_are_refused_in_words(tmp_path, capsys):
    for arguments, words in (
        (["--pack", str(tmp_path)], "there is no references.json"),
        (["--parts", "AZ"], "--parts AZ: must be some of ABCDEFGH"),
    ):
        with pytest.raises(SystemExit) as refused:
            first_light.main(["--out", str(tmp_path), *arguments])
        assert refused.value.code == 2
        assert re.search(re.escape(words), capsys.readouterr().err)
