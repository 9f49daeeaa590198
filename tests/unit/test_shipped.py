"""Run files and ds_configs that come with the package are found from any folder, after the user's own."""

from pathlib import Path

import pytest

from ccts_dist import shipped
from ccts_dist.config import read_run
from ccts_dist.errors import ConfigError
from ccts_dist.report.stages import Stage, _script
from ccts_dist.train.zero.ds_config import read_ds_config

RUN_FILES = sorted(path.relative_to("launch/runs") for path in Path("launch/runs").rglob("*.toml"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_of_the_package_are_those_of_the_checkout():
    for name in ("launch/runs", "ds_configs"):
        assert (shipped.FOLDER / Path(name).name).resolve() == Path(name).resolve()
    assert len(RUN_FILES) >= 25


@pytest.mark.parametrize("name", RUN_FILES, ids=str)
def test_run_file_is_found_by_both_names(name: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    in_checkout = read_run(Path("launch/runs") / name)
    monkeypatch.chdir(tmp_path)
    assert read_run(name) == read_run(Path("launch/runs") / name) == in_checkout


def test_own_file_goes_before_a_shipped_one(elsewhere: Path):
    (elsewhere / "demo").mkdir()
    (elsewhere / "demo" / "cts.toml").write_text("no run")
    with pytest.raises(ConfigError, match=r"demo/cts\.toml: not a TOML file"):
        read_run(Path("demo/cts.toml"))


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", ["demo/none.toml", "/demo/cts.toml", "../runs/demo/cts.toml", "demo/../demo/cts.toml"])
def test_other_names_are_not_found(name: str):
    with pytest.raises(ConfigError, match="cannot read the run file"):
        read_run(Path(name))


@pytest.mark.usefixtures("elsewhere")
def test_ds_config_of_a_default_run_is_found():
    assert read_ds_config(Path("ds_configs/zero2.json"))["zero_optimization"]["stage"] == 2
    assert read_ds_config(Path("zero3.json"))["zero_optimization"]["stage"] == 3
    with pytest.raises(ConfigError, match="cannot read it"):
        read_ds_config(Path("ds_configs/none.json"))


def test_stages_start_the_installed_commands_where_no_checkout_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    words = ("launch/cache_teacher.py", "shards/build.py", "launch/none.txt", "--out")
    assert tuple(map(_script, words)) == words
    stage = Stage(name="text", command=words, inputs=(Path("launch/runs/demo/text.toml"),))
    digest = stage.digest()
    monkeypatch.chdir(tmp_path)
    started = [_script(word) for word in words]
    assert [Path(word).name for word in started[:2]] == ["cache_teacher.py", "build.py"]
    assert all("commands" in Path(word).parts and Path(word).is_file() for word in started[:2])
    assert started[2:] == list(words[2:])
    assert stage.digest() == digest
