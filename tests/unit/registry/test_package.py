"""Packages: what is in them, and that nothing altered gets past their digests."""

import json
import math
import os
from pathlib import Path

import pytest

from ccts_dist.errors import ConfigError, RegistryError
from ccts_dist.registry.card_data import without_metadata
from ccts_dist.registry.model_card import model_card
from ccts_dist.registry.model_uri import ModelUri, check_alias, check_name, parse_model_uri
from ccts_dist.registry.package import check_digests, check_package, write_package
from ccts_dist.registry.publish import find_checkpoint, register, shortened
from ccts_dist.registry.pull import resolve_model, resolve_version

HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
"""SHA-256 of "hello", from FIPS 180-4 test tools."""


def _model_folder(folder: Path) -> Path:
    (folder / "speech_encoder").mkdir(parents=True)
    (folder / "model.safetensors").write_text("hello")
    (folder / "model.json").write_text("{}")
    (folder / "speech_encoder" / "config.json").write_text("{}")
    return folder


def _package(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    run_file = tmp_path / "any.toml"
    run_file.write_text('name = "a"')
    package = tmp_path / "package"
    digests = write_package(
        _model_folder(tmp_path / "model"), package, card="# card", run_file=run_file, metrics={"ccc": 0.5}
    )
    return package, digests


def test_a_package_holds_model_run_file_figures_and_card_with_a_digest_of_each(tmp_path: Path) -> None:
    package, digests = _package(tmp_path)
    assert set(digests) == {
        "MODEL_CARD.md",
        "digests.json",
        "metrics.json",
        "model.json",
        "model.safetensors",
        "run.toml",
        "speech_encoder/config.json",
    }
    assert digests["model.safetensors"] == HELLO
    assert json.loads((package / "metrics.json").read_text()) == {"ccc": 0.5}
    check_package(package)
    check_digests(package, digests, source="tags")


def test_digest_of_the_list_of_digests_stands_for_all_of_them(tmp_path: Path) -> None:
    package, digests = _package(tmp_path)
    listed = (package / "digests.json").read_bytes()
    one = {"digests.json": digests["digests.json"]}
    check_digests(package, one, source="the tag")
    (package / "model.safetensors").write_text("hullo")
    with pytest.raises(
        RegistryError, match=rf"^model\.safetensors: .* and digests\.json, which the tag vouches for, states {HELLO}"
    ):
        check_digests(package, one, source="the tag")
    (package / "model.safetensors").write_text("hello")
    (package / "more.json").write_text("{}")
    with pytest.raises(RegistryError, match=r"^more\.json: .* states none: the file was added"):
        check_digests(package, one, source="the tag")
    (package / "more.json").unlink()
    (package / "digests.json").write_bytes(listed + b" ")
    with pytest.raises(RegistryError, match=rf"^digests\.json: .* and the tag states {one['digests.json']}"):
        check_digests(package, one, source="the tag")
    (package / "digests.json").unlink()
    with pytest.raises(RegistryError, match=r"^digests\.json: its SHA-256 is missing"):
        check_digests(package, one, source="the tag")


def test_long_card_is_cut_at_a_line_for_databases(tmp_path: Path) -> None:
    card = "\n".join(f"line {number}" for number in range(1_000))
    short = shortened(card)
    assert len(short) <= 5_000
    assert short.endswith("\n\nThe rest is in `MODEL_CARD.md`.")
    assert card.startswith(short.removesuffix("\n\nThe rest is in `MODEL_CARD.md`.") + "\n")
    assert shortened("# card") == "# card"


def test_description_of_a_version_is_the_card_without_metadata_and_title() -> None:
    assert without_metadata("---\na: b\n---\n\n# name\n\nPredicts.\n\n---\n# x\n") == "Predicts.\n\n---\n# x\n"
    assert without_metadata("Predicts.") == "Predicts."


def test_figures_that_are_not_finite_are_null_in_a_package(tmp_path: Path) -> None:
    metrics = {"test": {"valence": math.nan, "activation": 0.5}, "test_sums": {"valence": [0.0, math.inf]}}
    package = tmp_path / "package"
    write_package(_model_folder(tmp_path / "model"), package, card="", metrics=metrics)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    tree = json.loads((package / "metrics.json").read_text(), parse_constant=refuse)
    assert tree == {"test": {"valence": None, "activation": 0.5}, "test_sums": {"valence": [0.0, None]}}


def test_an_altered_file_is_named_with_both_digests(tmp_path: Path) -> None:
    package, digests = _package(tmp_path)
    (package / "model.safetensors").write_text("hullo")
    with pytest.raises(
        RegistryError, match=rf"^model\.safetensors: its SHA-256 is [0-9a-f]{{64}}, and tags states {HELLO}"
    ):
        check_digests(package, digests, source="tags")
    with pytest.raises(RegistryError, match=r"model\.safetensors.*digests\.json states"):
        check_package(package)


def test_a_missing_and_an_added_file_are_refused(tmp_path: Path) -> None:
    package, digests = _package(tmp_path)
    (package / "speech_encoder" / "extra.py").write_text("x")
    with pytest.raises(RegistryError, match=r"speech_encoder/extra\.py: .* was added after"):
        check_digests(package, digests, source="tags")
    (package / "model.json").unlink()
    with pytest.raises(RegistryError, match=r"^model\.json: its SHA-256 is missing"):
        check_digests(package, digests, source="tags")


def test_digests_that_were_altered_together_with_a_file_do_not_match_the_tags(tmp_path: Path) -> None:
    package, digests = _package(tmp_path)
    (package / "MODEL_CARD.md").write_text("forged")
    stored = json.loads((package / "digests.json").read_text())
    (package / "digests.json").write_text(json.dumps(stored))
    with pytest.raises(RegistryError, match=r"MODEL_CARD\.md"):
        check_digests(package, digests, source="tags")


def test_a_package_without_readable_digests_is_refused(tmp_path: Path) -> None:
    package, _ = _package(tmp_path)
    (package / "digests.json").write_text("no json")
    with pytest.raises(RegistryError, match=r"digests\.json: not readable"):
        check_package(package)
    (package / "digests.json").write_text('{"model.json": 3}')
    with pytest.raises(RegistryError, match=r"digests\.json: not readable: no object of a SHA-256 by path"):
        check_package(package)


@pytest.mark.parametrize("name", ["optimizer.pt", "model.PKL", "speech_encoder/pytorch_model.bin"])
def test_a_model_folder_with_a_pickle_is_not_packaged(tmp_path: Path, name: str) -> None:
    folder = _model_folder(tmp_path / "model")
    (folder / name).write_text("x")
    with pytest.raises(RegistryError, match="may be a pickle"):
        write_package(folder, tmp_path / "package", card="")


def test_a_link_is_neither_packaged_nor_accepted(tmp_path: Path) -> None:
    package, digests = _package(tmp_path)
    (package / "link").symlink_to(tmp_path)
    with pytest.raises(RegistryError, match="is a link"):
        check_digests(package, digests, source="tags")


def test_a_pipe_is_not_accepted(tmp_path: Path) -> None:
    package, digests = _package(tmp_path)
    os.mkfifo(package / "pipe")
    with pytest.raises(RegistryError, match="pipe: is a pipe or a device, and packages hold none"):
        check_digests(package, digests, source="tags")


def test_the_card_states_what_is_predicted_on_which_scale_from_what() -> None:
    card = model_card(
        name="emotion",
        targets=("activation", "valence"),
        categories=("sad", "happy"),
        scale=(1.0, 7.0),
        needs_text=False,
        num_parameters=1_234_567,
        run_name="student",
        facts={"corpus": "MSP-Podcast", "train_splits": ["Train"]},
        preprocessing={"sample_rate_hz": 16_000},
        metrics={
            "valid": {"valence": 0.5},
            "test": {"valence": 0.61234},
            "steps": 100,
            "test_sums": {"valence": [480.0]},
            "test_scores": {"categories": {"unweighted_accuracy": 0.25}, "sums": {"valence": [480.0]}},
            "resolved": {"train.device": "cpu"},
        },
    )
    assert "Predicts activation, valence of an utterance from speech alone, on the scale 1 to 7" in card
    assert "which of these categories it sounds like: sad, happy." in card
    assert "1,234,567 parameters" in card
    assert '- run: student\n- corpus: MSP-Podcast\n- train_splits: ["Train"]\n' in card
    assert "- sample_rate_hz: 16000\n" in card
    assert "- test / valence: 0.6123\n- steps: 100\n" in card
    assert "test_sums" not in card
    assert "resolved" not in card
    assert (
        "| CCC | valence | UAR |\n| :-- | --: | --: |\n| validation | 0.500 | - |\n| test | 0.612 | 0.250 |\n" in card
    )
    assert "licence" in card


def test_a_card_without_figures_states_how_to_measure_them() -> None:
    card = model_card(
        name="a",
        targets=("valence",),
        categories=(),
        scale=(0.0, 1.0),
        needs_text=True,
        num_parameters=1,
        run_name="",
        facts={},
        preprocessing={},
        metrics=None,
    )
    assert "speech and its transcript" in card
    assert "over HTTP" not in card, "who reads transcripts is not served"
    assert "- run: unknown" in card
    assert "`ccts evaluate -m M --shards SHARDS --splits SPLIT --out DIR`" in card


def test_addresses_of_models_are_read() -> None:
    assert parse_model_uri("models:/speech emotion@champion") == ModelUri("speech emotion", alias="champion")
    assert parse_model_uri("models:/emotion/12") == ModelUri("emotion", version="12")
    assert parse_model_uri("runs:/0a1b") == ModelUri("", run="0a1b")
    assert parse_model_uri("runs/student/best") is None


@pytest.mark.parametrize(
    "model", ["models:/a", "models:/a/latest", "models:/a/0", "models:/@b", "models:/a@b/3", "models:/"]
)
def test_addresses_that_are_neither_alias_nor_version_are_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="must be models:/NAME@ALIAS or models:/NAME/VERSION"):
        parse_model_uri(model)


@pytest.mark.parametrize("model", ["runs:/", "runs:/a/b", "runs:/a' OR run_id='b"])
def test_addresses_that_name_no_single_run_are_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="must be runs:/RUN_ID, the id alone"):
        parse_model_uri(model)


@pytest.mark.parametrize("name", ["", " ", "a/b", "a@b", "a:b"])
def test_names_that_no_address_could_hold_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"alias .*must not"):
        check_name(name, "alias")


def test_a_folder_is_its_own_model_and_has_no_version(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_version(str(tmp_path)) == ""
    with pytest.raises(ConfigError, match=r"'absent': no such folder"):
        resolve_model("absent")


def test_a_run_folder_means_its_best_model(tmp_path: Path) -> None:
    best = _model_folder(tmp_path / "run" / "best")
    _model_folder(tmp_path / "run" / "last")
    assert resolve_model(str(tmp_path / "run")) == best
    assert resolve_model(str(best)) == best
    model = _model_folder(tmp_path / "model")
    (model / "best").mkdir()
    assert resolve_model(str(model)) == model


def test_a_run_folder_gives_its_best_model_with_run_file_figures_and_run(tmp_path: Path) -> None:
    _model_folder(tmp_path / "best")
    (tmp_path / "run.toml").write_text("")
    (tmp_path / "summary.json").write_text('{"steps": 3}')
    (tmp_path / "tracking.json").write_text('{"tracking_uri": "http://a:1", "experiment": "e", "run_id": "r"}')
    found = find_checkpoint(tmp_path)
    assert (found.model, found.run_file) == (tmp_path / "best", tmp_path / "run.toml")
    assert found.metrics == {"steps": 3}
    assert (found.tracked.tracking_uri, found.tracked.run_id) == ("http://a:1", "r")


def test_the_best_model_of_a_run_is_the_run_folders_by_either_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _model_folder(tmp_path / "best")
    (tmp_path / "run.toml").write_text("")
    (tmp_path / "summary.json").write_text('{"steps": 3}')
    (tmp_path / "tracking.json").write_text('{"tracking_uri": "http://a:1", "experiment": "e", "run_id": "r"}')
    by_run, by_model = find_checkpoint(tmp_path), find_checkpoint(tmp_path / "best")
    assert by_model == by_run
    monkeypatch.chdir(tmp_path / "best")
    assert find_checkpoint(Path()).tracked == by_run.tracked


def test_a_package_beside_a_run_file_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    (tmp_path / "summary.json").write_text('{"steps": 3}')
    package = _model_folder(tmp_path / "package")
    (package / "run.toml").write_text("")
    found = find_checkpoint(package)
    assert (found.run_file, found.metrics, found.tracked.run_id) == (package / "run.toml", None, "")


def test_a_model_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    found = find_checkpoint(_model_folder(tmp_path / "model"))
    assert (found.model, found.run_file, found.metrics) == (tmp_path / "model", None, None)


def test_a_folder_without_a_model_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no model"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", "[" * 100_000, "1" * 5_000])
def test_damaged_figures_are_named(tmp_path: Path, text: str):
    _model_folder(tmp_path / "best")
    (tmp_path / "summary.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"summary\.json: not the figures of a run \(.*Restore it, or delete it"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("alias", ["latest", "Latest", "v3", "V12", "a b", "é" * 300, "x" * 256, ""])
def test_an_alias_that_mlflow_would_refuse_is_refused_before_a_version_is_made(tmp_path: Path, alias: str) -> None:
    with pytest.raises(ConfigError, match=r"alias .*Choose another\."):
        check_alias(alias)
    if alias:
        with pytest.raises(ConfigError, match="alias"):  # there is not even a model
            register(tmp_path, "emotion", alias=alias, tracking_uri=f"sqlite:///{tmp_path}/m.db")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alias", ["candidate", "v3-small", "latest-1", "LATEST_", "x" * 255])
def test_an_alias_that_mlflow_takes_is_taken(alias: str) -> None:
    from mlflow.utils.validation import _validate_model_alias_name, _validate_model_alias_name_reserved

    check_alias(alias)
    _validate_model_alias_name(alias)
    _validate_model_alias_name_reserved(alias)
