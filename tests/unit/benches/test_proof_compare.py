"""The comparison of two revisions: what counts as equal, and what the first difference is called."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ccts_dist.config import read_run
from ccts_dist.errors import ConfigError
from tests.helpers.processes.launching import ROOT
from tests.proof.__main__ import parse_args, wanted
from tests.proof.checkout import Checkout
from tests.proof.compare import (
    ProofError,
    compare_files,
    compare_histories,
    compare_weights,
    first_unequal,
    read_history,
)
from tests.proof.runs import SETTINGS, SOURCES, code_digest, median_step, settings, try_next_name

STEP = {"step": 1, "epoch": 0, "keys": "aa", "train/loss": 0.1 + 0.2, "train/gradient_norm": 1.5}


def history(*changes: dict) -> list[dict]:
    return [STEP | {"step": number} | change for number, change in enumerate(changes, start=1)]


def test_equal_histories_have_no_difference_and_speeds_do_not_count():
    base, head = history({"train/audio_s_per_s": 10.0}, {}), history({"train/audio_s_per_s": 11.0}, {})
    compared = compare_histories("text", base, head)
    assert (compared.difference, compared.unpaired) == (None, ())


def test_difference_in_the_last_digit_is_named_with_run_step_figure_and_both_values():
    compared = compare_histories("cts", history({}, {}, {}), history({}, {"train/loss": 0.3}, {"keys": "bb"}))
    assert compared.difference is not None
    assert compared.difference.words() == (
        "different: run cts, step 2, train/loss: 0.30000000000000004 at BASE, 0.3 here"
    )


def test_other_utterances_come_before_the_figures_that_follow_from_them():
    compared = compare_histories("ts", history({}), history({"train/loss": 2.0, "keys": "bb"}))
    assert compared.difference is not None
    assert (compared.difference.step, compared.difference.figure) == (1, "keys")


def test_nan_equals_nan_and_minus_zero_is_not_zero():
    assert compare_histories("ts", history({"x": math.nan}), history({"x": math.nan})).difference is None
    assert compare_histories("ts", history({"x": 0.0}), history({"x": -0.0})).difference is not None


def test_a_missing_step_is_a_difference():
    compared = compare_histories("ts", history({}, {}), history({}))
    assert compared.difference is not None
    assert compared.difference.words() == "different: run ts, step 2, number of steps: 2 at BASE, 1 here"


def test_renamed_figure_is_compared_under_its_new_name():
    new = {"train/grad_norm": 1.5, "train/lr_head": 1e-3}
    head = [{name: value for name, value in STEP.items() if name != "train/gradient_norm"} | new]
    base = history({"train/learning_rate_head": 1e-3})
    assert compare_histories("ts", base, head).difference is None
    compared = compare_histories("ts", base, [head[0] | {"train/grad_norm": 1.25}])
    assert compared.difference is not None
    assert (compared.difference.figure, compared.difference.head) == ("train/grad_norm", 1.25)


def test_figure_that_one_revision_has_is_named_and_not_compared():
    compared = compare_histories("ts", history({}), history({"train/new": 1.0}))
    assert (compared.difference, compared.unpaired) == (None, ("train/new",))


@pytest.mark.parametrize("name", ["keys", "train/loss", "train/gradient_norm"])
def test_history_without_what_must_be_compared_proves_nothing(name: str):
    head = [{key: value for key, value in STEP.items() if key != name}]
    with pytest.raises(ProofError, match=r"run ts: no step of its history has .* \(here\)\. If it was renamed, add"):
        compare_histories("ts", history({}), head)


def test_loss_that_one_step_lacks_is_a_difference():
    head = history({}, {})
    del head[1]["train/loss"]
    compared = compare_histories("ts", history({}, {}), head)
    assert compared.difference is not None
    assert (compared.difference.step, compared.difference.figure, compared.difference.head) == (2, "train/loss", None)


def test_run_without_a_history_is_named(tmp_path: Path):
    with pytest.raises(ProofError, match=r"history\.jsonl is missing"):
        read_history(tmp_path)
    (tmp_path / "history.jsonl").write_text(json.dumps(STEP) + "\n")
    assert read_history(tmp_path) == [STEP]


def saved(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_weights_are_compared_bit_by_bit(tmp_path: Path):
    weight = torch.tensor([[1.0, 2.0], [3.0, math.nan]])
    other = weight.clone()
    other[1, 0] = torch.nextafter(other[1, 0], torch.tensor(9.0))
    base, same = saved(tmp_path / "a", head=weight), saved(tmp_path / "b", head=weight.clone())
    assert compare_weights("cts", 30, base, same) is None
    difference = compare_weights("cts", 30, base, saved(tmp_path / "c", head=other))
    assert difference is not None
    assert difference.words() == ("different: run cts, step 30, weight head[1, 0]: 3.0 at BASE, 3.000000238418579 here")


def test_first_unequal_element_of_half_precision_and_of_a_scalar():
    half = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)
    other = half.clone()
    other[2] = 3.015625
    assert first_unequal(half, other) == (2,)
    assert first_unequal(torch.tensor(0.0), torch.tensor(-0.0)) == ()
    assert first_unequal(half, half.clone()) is None


def test_tensor_of_another_shape_is_named(tmp_path: Path):
    base, head = saved(tmp_path / "a", w=torch.zeros(2, 3)), saved(tmp_path / "b", w=torch.zeros(3, 2))
    difference = compare_weights("cts", 30, base, head)
    assert difference is not None
    assert (difference.figure, difference.base, difference.head) == ("shape of w", "float32[2, 3]", "float32[3, 2]")


def test_renamed_tensors_are_compared_by_their_bits(tmp_path: Path):
    base = saved(tmp_path / "a", old=torch.arange(3.0))
    assert compare_weights("ts", 3, base, saved(tmp_path / "b", new=torch.arange(3.0))) is None
    difference = compare_weights("ts", 3, base, saved(tmp_path / "c", new=torch.arange(3.0) + 1))
    assert difference is not None
    assert difference.words() == "different: run ts, step 3, names of weights: ['old'] at BASE, ['new'] here"


def test_model_without_weights_proves_nothing(tmp_path: Path):
    with pytest.raises(ProofError, match=r"holds no \*\.safetensors"):
        compare_weights("ts", 3, tmp_path, tmp_path)


def test_files_are_compared_by_digest_and_a_missing_one_is_a_difference(tmp_path: Path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes(content)
    assert compare_files("shards", tmp_path / "a", tmp_path / "b", "*.tar") is None
    difference = compare_files("shards", tmp_path / "a", tmp_path / "c", "*.tar")
    assert difference is not None
    assert (difference.run, difference.step, difference.figure) == ("shards", 0, "0.tar")
    (tmp_path / "b" / "1.tar").write_bytes(b"")
    difference = compare_files("shards", tmp_path / "a", tmp_path / "b", "*.tar")
    assert difference is not None
    assert (difference.figure, difference.base) == ("1.tar", None)
    with pytest.raises(ProofError, match=r"holds no \*\.npy"):
        compare_files("shards", tmp_path / "a", tmp_path / "b", "*.npy")


def test_time_per_step_is_a_median_that_a_validation_does_not_move():
    assert median_step([0.0, 0.1, 0.2, 5.0, 5.1]) == pytest.approx(0.1)
    assert median_step([0.0, 0.1]) is None


def test_students_bring_their_teacher_and_come_after_it():
    assert wanted(["cts", "text"]) == ["text", "teacher", "cts"]
    assert wanted(["speech"]) == ["speech"]
    assert wanted(parse_args(["main"]).only) == ["text", "speech", "teacher", "ts", "cts"]


def test_key_that_a_revision_refuses_is_given_by_its_next_name_and_stays_so(tmp_path: Path):
    checkout = Checkout(name="BASE", tree=ROOT, folder=tmp_path)
    assert settings(checkout, 30)[:4] == ["--set", "train.max_steps=30", "--set", "tracking.backend=none"]
    refused = (
        "epoch 1 of tracking.register\nerror: text.toml: unknown key tracking.backend = 'none'. Did you mean 'x'?\n"
    )
    assert try_next_name(checkout, refused)
    assert settings(checkout, 30)[3:] == ["tracking.kind=none", "--set", "tracking.registered_model_name="]
    assert not try_next_name(checkout, "error: text.toml: unknown key tracking.kind = 'none'."), "it has no third"
    assert not try_next_name(checkout, "error: data.shards = 'x': no shard set here.")


def refusal(override: str) -> str:
    """The error of an override of a run file of the demo; "" when it is taken."""
    try:
        read_run(ROOT / "launch" / "runs" / "demo" / "text.toml", [override])
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("names", "value"), SETTINGS)
def test_this_revision_takes_one_name_of_each_key_and_refuses_others_by_that_name(names: tuple[str, ...], value: str):
    refusals = [refusal(f"{name}={value.format(steps=3)}") for name in names]
    assert "" in refusals
    assert all(not words or f"unknown key {name} = " in words for name, words in zip(names, refusals, strict=True))


def test_digest_of_a_tree_is_of_its_programs_and_settings(tmp_path: Path):
    for name in ("ccts_dist/losses/ccc.py", "launch/runs/demo/text.toml"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("eps = 1e-8")
    of_shards, of_all = code_digest(tmp_path), code_digest(tmp_path, SOURCES)
    (tmp_path / "launch" / "__pycache__").mkdir()
    (tmp_path / "launch" / "__pycache__" / "train.pyc").write_text("left by Python")
    assert code_digest(tmp_path, SOURCES) == of_all
    (tmp_path / "launch/runs/demo/text.toml").write_text("eps = 1e-7")
    assert code_digest(tmp_path) == of_shards
    assert code_digest(tmp_path, SOURCES) != of_all
    (tmp_path / "ccts_dist/losses/ccc.py").write_text("eps = 1e-7")
    assert code_digest(tmp_path) != of_shards
