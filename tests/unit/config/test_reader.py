"""Run files are read strictly: what is not known, of another type or off its range is named, with the way out."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from ccts_dist.config import (
    BatchConfig,
    FilterbankConfig,
    complete_tree,
    layer_number,
    num_trainable_layers,
    parse_model,
    parse_run,
    read_run,
    run_to_toml,
    run_to_tree,
)
from ccts_dist.errors import ConfigError

RUN_FILES = sorted(Path("launch/runs").rglob("*.toml"))


def tree(**sections: Any) -> dict[str, Any]:
    return {
        "run_name": "r",
        "output_dir": "o",
        "data": {"shards": "s"},
        "model": {"speech": {"encoder": "e"}},
    } | sections


def taught(**distill: Any) -> dict[str, Any]:
    """Sections of a run with a teacher."""
    return {"data": {"shards": "s", "teacher_cache": "c"}, "distill": distill}


def test_there_are_shipped_run_files():
    assert len(RUN_FILES) >= 5


@pytest.mark.parametrize("path", RUN_FILES, ids=str)
def test_every_shipped_run_file_is_read_and_comes_back_from_its_resolved_form(path):
    run = read_run(path)
    assert parse_run(tomllib.loads(run_to_toml(run))) == run


def test_defaults_are_those_of_the_paper():
    run = parse_run(tree(data={"shards": "s", "teacher_cache": "c"}, distill={}))
    assert run.distill is not None
    assert (run.distill.embedding_weight, run.distill.gate, run.distill.threshold) == (30.0, "any-dimension", None)
    assert (run.batch.global_batch_size, run.train.epochs) == (32, 50)
    assert (run.optim.name, run.optim.learning_rate, run.optim.encoder_lr_scale) == ("adam", 5e-4, 0.25)
    assert (run.optim.lr_scheduler, run.optim.plateau_factor, run.optim.plateau_patience) == ("plateau", 0.75, 2)
    assert run.model.targets == ("activation", "valence", "dominance")
    assert (run.model.embedding_dim, run.model.speech.pooling, run.model.speech.gru_layers) == (128, "gru", 2)  # pyright: ignore


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"optim": {"learning_rat": 1}}, r"run: unknown key optim\.learning_rat = 1\. Did you mean 'learning_rate'\?"),
        ({"zzz": 1}, r"unknown key zzz = 1\. Known keys: run_name, output_dir, .*"),
        ({"seed": "x"}, "seed = 'x': must be a whole number"),
        ({"seed": True}, "seed = True: must be a whole number"),
        ({"seed": 1.0}, r"seed = 1\.0: must be a whole number"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
        ({"run_name": 3}, "run_name = 3: must be a string"),
        ({"optim": {"learning_rate": "2e-5"}}, "optim.learning_rate = '2e-5': must be a number"),
        ({"optim": {"learning_rate": 0}}, "optim.learning_rate = 0: must be at least 1e-12"),
        ({"optim": {"learning_rate": 1e-30}}, "optim.learning_rate = 1e-30: must be at least 1e-12"),
        ({"optim": {"learning_rate": [10**5000]}}, "optim.learning_rate = a list too large to show: must be a number"),
        ({"optim": {"plateau_factor": 1.5}}, "optim.plateau_factor = 1.5: must be between 0 and 1"),
        ({"optim": {"learning_rate": float("nan")}}, "optim.learning_rate = nan: must be a finite number"),
        ({"optim": {"learning_rate": float("inf")}}, "optim.learning_rate = inf: must be a finite number"),
        ({"train": {"precision": "fp23"}}, r"must be one of 'fp32', 'tf32', 'bf16' \(did you mean 'fp32'\?\)"),
        ({"model": {"speech": {"encoder": "e"}, "gradient_checkpointing": 1}}, "= 1: must be true or false"),
        ({"data": {"shards": "s", "train_splits": "Train"}}, "data.train_splits = 'Train': must be a list"),
        ({"data": {"shards": "s", "train_splits": [1]}}, r"data.train_splits\[0\] = 1: must be a string"),
        ({"data": 3}, "data = 3: must be a table"),
        ({"data": {}}, "data.shards is missing"),
        ({"model": {}}, r"neither \[model.speech\] nor \[model.text\]"),
        ({"model": {"speech": {"encoder": "e"}, "targets": ["a", "a"]}}, "must name each target once"),
        ({"model": {"speech": {"encoder": "e"}, "targets": []}}, "may be empty where model.categories are given"),
        ({"model": {"speech": {"encoder": "e"}, "categories": ["a", "a"]}}, "must be two or more, each once, or none"),
        ({"model": {"speech": {"encoder": "e"}, "categories": ["a"]}}, "must be two or more, each once, or none"),
        (
            {"model": {"speech": {"encoder": "e"}, "categories": ["a", "b"], "category_map": {"d": "", "c": "e"}}},
            "'e' must be one of model.categories, or \"\" for none",
        ),
        (
            {"model": {"speech": {"encoder": "e"}, "categories": ["a", "b"], "category_map": {"c": 1}}},
            r"model\.category_map\.c = 1: must be a string",
        ),
        (
            {
                "model": {"speech": {"encoder": "e"}, "categories": ["a", "b"], "category_map": {"c": "a"}},
                "loss": {"category_target": "votes"},
            },
            "votes by the names of the corpus, which model.category_map changes",
        ),
        (
            {"model": {"speech": {"encoder": "e"}, "categories": ["a", "b"]}, "loss": {"category_weight": 0}},
            "loss.category_weight = 0.0 leaves model.categories untrained",
        ),
        ({"evaluation": {"bins": ["low"]}}, r"evaluation.bins\[0\] = 'low': must be a number"),
        ({"model": {"speech": {"encoder": "e", "trainable": "top:0"}}}, "must be 'none', 'all', 'top:N' or 'lora:R'"),
        ({"model": {"speech": {"encoder": "scratch"}}}, "go together"),
        ({"model": {"speech": {"encoder": "e", "scratch": {"model_type": "hubert"}}}}, "go together"),
        ({"model": {"speech": {"encoder": "e", "layers": "layer:x"}}}, "must be 'last', 'layer:N' or 'weighted'"),
        ({"model": {"text": {"encoder": "e", "layers": "top"}}}, "model.text.layers = 'top': must be 'last'"),
        ({"model": {"speech": {"encoder": "e", "pooling": "max"}}}, "model.speech.pooling = 'max': must be one of"),
        (
            {"model": {"text": {"encoder": "e"}, "extra_speech": [{"encoder": "e"}]}},
            r"\[\[model.extra_speech\]\] stands without",
        ),
        (
            {"model": {"speech": {"encoder": "e"}, "extra_speech": [{"encoder": "e", "trainable": "top:0"}]}},
            r"model.extra_speech\[0\].trainable = 'top:0': must be",
        ),
        (
            {"model": {"speech": {"encoder": "e"}, "extra_speech": [{"encodr": "e"}]}},
            r"unknown key model.extra_speech\[0\].encodr = 'e'. Did you mean 'encoder'",
        ),
        (
            {"model": {"speech": {"encoder": "e", "filterbank": {"num_mel_bins": 20}}}},
            r"the table \[model.speech.filterbank\] shapes only",
        ),
        (
            {"model": {"speech": {"encoder": "filterbank", "filterbank": {"num_mel_bins": 4}}}},
            "model.speech.filterbank.num_mel_bins = 4: must be between 8 and 128",
        ),
        (
            {"model": {"speech": {"encoder": "filterbank", "filterbank": {"channels": [8, 0]}}}},
            r"model.speech.filterbank.channels\[1\] = 0: must be at least 1",
        ),
        ({"model": {"speech": {"encoder": "filterbank", "trainable": "none"}}}, "trainable = 'none': must be 'all'"),
        ({"model": {"speech": {"encoder": "filterbank", "layers": "weighted"}}}, "layers = 'weighted': must be 'last'"),
        (
            {"model": {"speech": {"encoder": "filterbank", "train_feature_encoder": True}}},
            "train_feature_encoder = True: must be",
        ),
        ({"optim": {"speech_lr_scale": -1}}, "optim.speech_lr_scale = -1: must be at least 0"),
        ({"optim": {"text_lr_scale": "x"}}, "optim.text_lr_scale = 'x': must be a number"),
        ({"loss": {"target_weights": [1.0]}}, "has 1 numbers for 3 targets"),
        ({"loss": {"class_weights": [1.0]}}, "loss.class_weights has 1 numbers for 0 of model.categories"),
        (
            {
                "data": {"shards": "S", "teacher_cache": "C"},
                "model": {"targets": [], "categories": ["a", "b"], "speech": {"encoder": "x"}},
            },
            "data.teacher_cache = 'C' needs model.targets",
        ),
        ({"loss": {"class_weights": [0.0]}}, r"loss.class_weights\[0\] = 0\.0: must be at least 1e-12"),
        ({"loss": {"focal_gamma": 2.0}}, r"loss.focal_gamma = 2\.0 shapes the cross-entropy of model.categories"),
        ({"loss": {"category_target": "votes"}}, 'category_target = "votes" needs model.categories'),
        ({"distill": {}}, "needs a teacher, and data.teacher_cache is empty"),
        (
            {"data": {"shards": "s", "teacher_cache": "c"}},
            "data.teacher_cache = 'c' is named, and there is no .distill.",
        ),
        ({"loss": {"target_weights": [1.0, -1.0, 1.0]}}, "must be at least 0 each"),
        ({"output_dir": ""}, "output_dir is empty"),
        ({"tracking": {"registered_model_name": "a/b"}}, "tracking.registered_model_name = 'a/b': must hold none of /"),
        ({"train": {"comm_timeout_s": 1e20}}, "train.comm_timeout_s = 1e.20: must be between 1 and 1000000"),
        ({"data": {"shards": "s", "valid_splits": ["Train"]}}, "'Train' is trained on and also validated or tested on"),
        ({"data": {"shards": "s", "valid_splits": []}}, "data.valid_splits is empty"),
        (
            {"data": {"shards": "s", "extra_shards": [{"shards": "t", "share": 0.6}, {"shards": "u", "share": 0.4}]}},
            r"the shares of \[\[data.extra_shards\]\] add up to 1: must be below 1",
        ),
        (
            {
                "data": {"shards": "s", "teacher_cache": "c", "extra_shards": [{"shards": "t", "share": 0.5}]},
                "distill": {},
            },
            r"\[\[data.extra_shards\]\] with data.teacher_cache, which must stand with data.shards alone",
        ),
        (
            {
                "data": {"shards": "s", "extra_shards": [{"shards": "t", "share": 0.5}]},
                "batch": {"labelled_share": 0.5},
            },
            r"\[\[data.extra_shards\]\] with batch.labelled_share",
        ),
        ({"batch": {"balanced": True}}, r"batch\.balanced = true: must stand with model\.categories"),
        (
            {
                "batch": {"balanced": True, "labelled_share": 0.5},
                "model": {"speech": {"encoder": "e"}, "categories": ["a", "b"]},
            },
            r"batch\.balanced = true: must stand without batch\.labelled_share",
        ),
        ({"data": {"shards": "s", "extra_shards": [{"shards": "t"}]}}, r"extra_shards\[0\].share is missing"),
        (
            {"optim": {"warmup_steps": 9}},
            "warmup_steps = 9 with optim.lr_scheduler = 'plateau': only constant, linear, cosin",
        ),
        (
            {"data": {"shards": "s", "max_duration_s": 0.02}},
            r"max_duration_s = 0.02: must be 0, or at least the 0\.025",
        ),
        ({"augment": {"snr_db": [5.0]}}, r"augment.snr_db = \[5\.0\]: must be two numbers"),
        ({"augment": {"snr_db": [20, 5]}}, r"augment.snr_db = \[20\.0, 5\.0\]: must be two numbers, the lowest"),
        ({"augment": {"speed": [1.0, 3]}}, r"augment.speed\[1\] = 3: must be between 0\.5 and 2"),
        ({"augment": {"speed": [0.925]}}, r"augment.speed = \[0\.925\]: must go by steps of 0\.01"),
        ({"augment": {"noises": [" "]}}, "augment.noises = .*must name something each"),
        ({"augment": {"impulse_responses": [""]}}, "augment.impulse_responses = .*must name something each"),
        ({"augment": {"noise": ["white"]}}, "unknown key augment.noise = .*Did you mean 'noises'"),
        ({"augment": {}, "model": {"text": {"encoder": "t"}}}, r"\[augment\] changes audio, and there is no"),
        (
            {"model": {"speech": {"encoder": "e", "trainable": "none", "spec_augment": {}}}},
            r"\[model.speech.spec_augment\] with model.speech.trainable = 'none'",
        ),
        (
            {
                "model": {
                    "speech": {"encoder": "e"},
                    "extra_speech": [{"encoder": "f", "trainable": "none", "spec_augment": {}}],
                }
            },
            r"\[model.extra_speech\[0\].spec_augment\] with model.extra_speech\[0\].trainable = 'none'",
        ),
        (
            {"model": {"speech": {"encoder": "e", "trainable": "none", "encoder_dropout": 0.1}}},
            r"model.speech.encoder_dropout = 0\.1: a frozen encoder is never run with dropout",
        ),
        (
            {"model": {"speech": {"encoder": "filterbank", "encoder_dropout": 0.1}}},
            "encoder_dropout = 0.1: the filter bank has none",
        ),
        (
            {"model": {"speech": {"encoder": "filterbank", "spec_augment": {}}}},
            r"\[model.speech.spec_augment\] masks what enters transformer layers",
        ),
        (
            {
                "model": {
                    "gradient_checkpointing": True,
                    "speech": {"encoder": "e", "trainable": "none"},
                    "extra_speech": [{"encoder": "filterbank"}],
                    "text": {"encoder": "t", "trainable": "none"},
                }
            },
            "gradient_checkpointing = true: recomputes the layers of trained encoders, and none is",
        ),
        (taught(embedding_weight=0.0), "embedding_weight = 0 and distill.prediction_weight = 0 distils nothing"),
        (taught(gate="soft", threshold=1.0), r"distill.threshold = 1\.0: distill.gate = 'soft' has no use"),
        (taught(gate="none", threshold=1.0), r"distill.threshold = 1\.0: distill.gate = 'none' has no use"),
        (taught(prediction_loss="ccc"), "'ccc' shapes the prediction term, and distill.prediction_weight"),
        (taught(distance="cosin"), "distill.embedding_loss = 'cosin': must be one of .*did you mean 'cosine'"),
        (taught(gate="soft", reject_fraction=0.1), r"distill.reject_fraction = 0\.1: distill.gate = 'soft' has no use"),
        (taught(gate="none", reject_fraction=0.1), r"distill.reject_fraction = 0\.1: distill.gate = 'none' has no use"),
        (taught(gate="random", reject_fraction=0.1, threshold=3.0), "gate = 'random' has no use for it"),
        (taught(gate="keys"), "gate = 'keys' with distill.gate_keys = '': gate = .keys. and gate_keys go together"),
        (taught(gate_keys="f"), "gate = 'any-dimension' with distill.gate_keys = 'f'"),
        (taught(gate="confidence"), "distill.min_confidence = '': gate = .confidence. and min_confidence go tog"),
        (taught(min_confidence=0.0), r"distill.min_confidence = 0\.0: gate = .confidence. and min_confidence go tog"),
        (taught(gate="confidence", min_confidence=1.5), r"min_confidence = 1\.5: must be between 0 and 1"),
        (taught(gate_targets=["mood"]), r"distill.gate_targets = \['mood'\]: must name some of model.targets"),
        (taught(gate_targets=["valence"] * 2), "each once. Change the list"),
        (taught(gate="none", gate_targets=["valence"]), "distill.gate = 'none' looks at no residual"),
        (
            taught(gate="none", residual_scale="robust"),
            "distill.residual_scale = 'robust': distill.gate = 'none' looks at no",
        ),
        (taught(reject_fraction=1.0), r"distill.reject_fraction = 1\.0: must be between 0 and 0\.99"),
        (
            taught(gate="per-dimension"),
            "'per-dimension' acts on the prediction term, and distill.prediction_weight = 0",
        ),
        (
            taught(prediction_loss="ccc", prediction_weight=1.0) | {"loss": {"scope": "micro-batch"}},
            "'ccc' is taken over the global batch, .* Set loss.scope = .global.",
        ),
    ],
)
def test_mistake_is_refused_with_key_value_and_rule(sections, words):
    with pytest.raises(ConfigError, match=words) as caught:
        parse_run(tree(**sections))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_file_that_is_not_there_or_no_toml_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read the run file"):
        read_run(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: not a TOML file"):
        read_run(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ConfigError, match=r"latin\.toml: not a TOML file"):
        read_run(tmp_path / "latin.toml")


def test_set_changes_one_key_and_bare_words_are_strings(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(run_to_toml(parse_run(tree())))
    run = read_run(path, ["optim.learning_rate=1e-3", "train.precision=bf16", 'data.test_splits=["A", "B"]', "seed=7"])
    assert (run.optim.learning_rate, run.train.precision, run.data.test_splits, run.seed) == (
        1e-3,
        "bf16",
        ("A", "B"),
        7,
    )


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", "optim.name.x=3"])
def test_set_of_another_form_is_refused(tmp_path, override):
    path = tmp_path / "run.toml"
    path.write_text(run_to_toml(parse_run(tree(optim={"name": "sgd"}))))
    with pytest.raises(ConfigError, match="--set"):
        read_run(path, [override])


def test_run_with_a_share_to_leave_out_comes_back_from_its_resolved_form():
    run = parse_run(tree(**taught(reject_fraction=0.1, threshold=2)))
    assert run.distill is not None
    assert run.distill.reject_fraction == 0.1
    assert parse_run(tomllib.loads(run_to_toml(run))) == run


def test_several_speech_encoders_come_back_from_the_resolved_form():
    also = [{"encoder": "f", "pooling": "mean"}, {"encoder": "filterbank", "filterbank": {"channels": [8]}}]
    speech = {"encoder": "e", "layers": "layer:9", "pooling": "attentive-statistics", "attention_hidden": 9}
    model = {"speech": speech, "extra_speech": also, "heads": "per-target", "head_hidden_dim": 7}
    run = parse_run(tree(model=model, optim={"speech_lr_scale": 0.1, "text_lr_scale": 0.0}))
    assert [branch.encoder for branch in run.model.extra_speech] == ["f", "filterbank"]
    assert run.model.extra_speech[1].filterbank == FilterbankConfig(channels=(8,))
    assert (run.optim.speech_lr_scale, run.optim.text_lr_scale) == (0.1, 0.0)
    assert parse_run(tomllib.loads(run_to_toml(run))) == run


def test_layer_numbers_by_hand():
    assert [layer_number(words) for words in ("last", "weighted", "layer:0", "layer:12")] == [None, None, 0, 12]
    for words in ("first", "layer:", "layer:-1", "12"):
        with pytest.raises(ValueError, match=words):
            layer_number(words)


def test_gradient_accumulation_steps_by_hand():
    batch = BatchConfig(global_batch_size=32, micro_batch_size=4)
    assert [batch.gradient_accumulation_steps(ranks) for ranks in (1, 2, 3, 8, 32)] == [8, 4, 3, 1, 1]
    with pytest.raises(ConfigError, match="global_batch_size=32 leaves some of 33 ranks without"):
        batch.gradient_accumulation_steps(33)


def test_trainable_layers_by_hand():
    assert [num_trainable_layers(words) for words in ("all", "none", "top:6")] == [None, 0, 6]
    for words in ("top", "top:", "top:0", "top:-1", "6"):
        with pytest.raises(ValueError, match=words):
            num_trainable_layers(words)


def test_tree_of_an_earlier_version_gets_the_defaults_of_keys_it_did_not_know():
    run = parse_run(tree(seed=7))
    earlier = run_to_tree(run)
    del earlier["train"]["early_stopping_patience"], earlier["data"]["max_duration_s"], earlier["tracking"]
    assert complete_tree(earlier, source="c") == run_to_tree(run)
    with pytest.raises(ConfigError, match="c: unknown key later = 1"):
        complete_tree({**earlier, "later": 1}, source="c")


def test_model_of_an_earlier_run_is_read_whatever_a_run_may_no_longer_ask_for():
    model = parse_model({"gradient_checkpointing": True, "speech": {"encoder": "filterbank", "spec_augment": {}}})
    assert model.gradient_checkpointing
