"""A wrong run file: exit code 2 and one line that names what value, what rule, what to do; before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from ccts_dist.errors import run_main
from launch import train as command
from tests.helpers.models.small_teacher import build_small_shards, save_small_teacher
from tests.helpers.processes.launching import launch
from tests.helpers.processes.small_runs import build_two_kinds, make_cache, write_run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    build_two_kinds(folder, num_train=16, num_valid=4)
    other = build_small_shards(folder / "other", {"Train": 12, "Development": 4})
    make_cache(save_small_teacher(folder / "teacher"), other, folder / "other-cache")
    (folder / "noises").mkdir()
    (folder / "noises" / "rain.wav").write_text("no audio")
    return folder


WRONG: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "unknown key": ({"optim": {"learning_rat": 1e-3}}, "optim.learning_rat", ["'learning_rate'"]),
    "wrong type": ({"batch": {"global_batch_size": "many"}}, "batch.global_batch_size", ["'many'", "a whole number"]),
    "out of range": ({"train": {"epochs": 0}}, "train.epochs", ["= 0", "at least 1"]),
    "missing shards": ({"data": {"shards": "nowhere"}}, "nowhere", ["no shard set", "shards/build.py"]),
    "unknown split": ({"data": {"valid_splits": ["Dev"]}}, "'Dev'", ["'Development'"]),
    "unknown test split": ({"data": {"test_splits": ["Tset1"]}}, "'Tset1'", ["'Test1'"]),
    "validation without labels": ({"model": {"targets": ["arousal"]}}, "arousal", ["no two utterances with a label"]),
    "tracking in a plain folder": (
        {"tracking": {"backend": "mlflow", "tracking_uri": "./mlruns"}},
        "./mlruns",
        ["sqlite:///"],
    ),
    "cache of other shards": (
        {"data": {"teacher_cache": "{place}/other-cache"}, "distill": {}},
        "other-cache",
        ["made for", "cache_teacher.py"],
    ),
    "no such ds_config": ({"train": {"deepspeed": "none.json"}}, "train.deepspeed", ["none.json", "ds_configs/"]),
    "split trained and tested on": ({"data": {"test_splits": ["Train"]}}, "'Train'", ["data.train_splits"]),
    "noise that is no audio": (
        {"augment": {"noises": ["{place}/noises"]}},
        "augment.noises",
        ["1 of 1 files cannot be used", "noises/rain.wav: cannot be decoded", "Mend or remove"],
    ),
    "no folder of rooms": (
        {"augment": {"impulse_responses": ["rooms"]}},
        "augment.impulse_responses",
        ["no such folder"],
    ),
    "warm-up longer than training": (
        {"optim": {"lr_scheduler": "linear", "warmup_steps": 50}},
        "optim.warmup_steps",
        ["= 50", "13 steps in all"],
    ),
    "no such encoder": (
        {"model": {"speech": {"encoder": "no/such/folder"}}},
        "no/such/folder",
        ["model.speech.encoder"],
    ),
}


def filled_in(place: Path, value: Any) -> Any:
    return value.replace("{place}", str(place)) if isinstance(value, str) else value


def write_wrong(place: Path, sections: dict[str, Any]) -> Path:
    filled = {
        name: {
            key: [filled_in(place, one) for one in value] if isinstance(value, list) else filled_in(place, value)
            for key, value in values.items()
        }
        for name, values in sections.items()
    }
    return write_run(place / "wrong.toml", place / "shards", place / "run", **filled)


@pytest.mark.parametrize("kind", WRONG)
def test_check_refuses_with_one_line(place, capfd, kind):
    sections, named, words = WRONG[kind]
    code = run_main(command.main, ["--config", str(write_wrong(place, sections)), "--check", "--ranks", "2"])
    out, err = capfd.readouterr()
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.strip()]
    assert line.startswith("error: ")
    for word in (named, *words):
        assert word in line
    assert "check passed" not in out
    assert not (place / "run").exists(), "--check must not touch the run"


def test_sound_run_file_passes_the_check_and_shows_what_follows_from_it(place, capfd):
    config = write_run(place / "sound.toml", place / "shards", place / "run")
    assert run_main(command.main, ["--config", str(config), "--check", "--ranks", "2"]) == 0
    out, _ = capfd.readouterr()
    assert "steps per epoch" in out
    assert "check passed" in out


def test_check_for_no_ranks_is_refused(place, capfd):
    config = write_run(place / "sound.toml", place / "shards", place / "run")
    assert run_main(command.main, ["--config", str(config), "--check", "--ranks", "0"]) == 2
    assert "--ranks 0: must be at least 1" in capfd.readouterr().err


def test_more_ranks_than_utterances_in_a_batch_are_refused(place, capfd):
    config = write_run(place / "sound.toml", place / "shards", place / "run")
    assert run_main(command.main, ["--config", str(config), "--check", "--ranks", "17"]) == 2
    assert "batch.global_batch_size=16 leaves some of 17 ranks without" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["unknown key", "cache of other shards"])
def test_launcher_passes_exit_code_2_on_and_one_rank_speaks(place, kind):
    sections, named, _ = WRONG[kind]
    done = launch(2, "launch/train.py", "--config", str(write_wrong(place, sections)), whole_launcher=True)
    assert done.returncode == 2, done.stderr[-4000:]
    reported = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert len(reported) == 1
    assert named in reported[0]
    assert "Traceback" not in done.stderr


def test_rank_0_speaks_though_it_comes_last_to_the_mistake(tmp_path):
    script = tmp_path / "slow_first_rank.py"
    script.write_text(
        "import os, time\n"
        "from ccts_dist.errors import ConfigError, run_main\n"
        "def main(argv):\n"
        "    time.sleep(3 if os.environ['RANK'] == '0' else 0)\n"
        "    raise ConfigError('what rank 0 states')\n"
        "raise SystemExit(run_main(main))\n"
    )
    done = launch(2, str(script))
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == ["error: what rank 0 states"]
