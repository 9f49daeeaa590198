"""Folders for transformers: its own classes and pipeline predict what the student does, of every family of encoders."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification, AutoModelForCTC, pipeline

from ccts_dist.config import FilterbankConfig, ModelConfig, SpeechConfig
from ccts_dist.errors import ExportError
from ccts_dist.export.command import export_model
from ccts_dist.export.folder import _refuse_unloaded
from ccts_dist.registry import load_student
from tests.helpers.models import model_shapes
from tests.helpers.models.small_student import save_student, student_config
from tests.tiers import with_long

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")  # WavLM's own
SPEECH = model_shapes.speech_config
MANY = ("angry", "happy", "neutral", "sad", "surprise", "contempt")
"""More than the five labels that transformers' pipeline gives of its own accord."""


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers copies the code of a folder to before it runs it."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def _save(folder: Path, config: ModelConfig) -> Path:
    return save_student(folder, config, large_weights=True)


def _waves() -> list[np.ndarray]:
    """Of 16 bit, as recordings are; the longest is three pieces of the small Whisper's."""
    rng = np.random.default_rng(0)
    waves = [rng.normal(0.02, 0.1, count) for count in (5_000, 16_000, 40_001)]
    return [(np.rint(wave * 32_768) / 32_768).astype(np.float32) for wave in waves]


def _extracted(tmp_path: Path, family: str) -> str:
    model_shapes.save_extracted_encoder(tmp_path / "encoder", family)
    return str(tmp_path / "encoder")


def _configs(tmp_path: Path, name: str) -> ModelConfig:
    filterbank = SpeechConfig(encoder="filterbank", filterbank=FilterbankConfig(num_mel_bins=20, channels=(8,)))
    if name in model_shapes.EXTRACTED_FAMILIES:
        return student_config(
            SpeechConfig(encoder=_extracted(tmp_path, name), pooling="statistics"),
            heads="per-target",
            categories=("sad", "happy"),
        )
    return {
        "hubert, averaged": student_config(SPEECH(pooling="mean", do_normalize="on")),
        "hubert, averaged, categories": student_config(SPEECH(pooling="mean"), targets=(), categories=MANY),
        "hubert, per-target": student_config(
            SPEECH(do_normalize="on"), heads="per-target", embedding_norm="layer", embedding_activation="gelu"
        ),
        "hubert, both": student_config(
            SPEECH(pooling="attentive-statistics", layers="weighted"),
            targets=("valence", "valence.variance"),
            categories=MANY,
        ),
        "hubert, categories": student_config(SPEECH(), targets=(), categories=MANY),
        "without the norm at its end": student_config(SPEECH(layers="layer:1", shape=model_shapes.LAYER_NORM)),
        "filterbank": student_config(filterbank),
        "two encoders": student_config(SPEECH(), extra_speech=(SPEECH(pooling="self-attention", do_normalize="on"),)),
        "poolings per target": student_config(SPEECH(), poolings="per-target", categories=("sad", "happy")),
        "first frame": student_config(SPEECH(pooling="first")),
    }[name]


OF_TRANSFORMERS = ("hubert, averaged", "hubert, averaged, categories")
STUDENTS = [
    *OF_TRANSFORMERS,
    *("hubert, per-target", "hubert, both", "hubert, categories", "without the norm at its end", "filterbank"),
    *("two encoders", "first frame", "poolings per target", *model_shapes.EXTRACTED_FAMILIES),
]
FAST = (
    "hubert, averaged",
    "hubert, averaged, categories",
    "hubert, per-target",
    "hubert, both",
    "filterbank",
    "poolings per target",
    "whisper",
)


@pytest.mark.parametrize("name", with_long(FAST, STUDENTS))
def test_pipeline_and_auto_model_predict_what_the_student_does(tmp_path: Path, name: str) -> None:
    model = _save(tmp_path / "model", _configs(tmp_path, name))
    report = export_model(str(model), "transformers", tmp_path / "out")
    assert report.largest_difference < 1e-4
    trusted = {} if name in OF_TRANSFORMERS else {"trust_remote_code": True}
    emotion = pipeline("audio-classification", model=str(tmp_path / "out"), **trusted)
    student, waves = load_student(model), _waves()
    for wave, expected in zip(waves, student.predict(waves), strict=True):
        found = {one["label"]: one["score"] for one in emotion({"raw": wave, "sampling_rate": 16_000}, top_k=None)}
        expected.pop("category", None)
        if not student.targets:
            expected = {label[2:-1]: share for label, share in expected.items()}
        assert found == pytest.approx(expected, abs=1e-4)
    opened = AutoModelForAudioClassification.from_pretrained(tmp_path / "out", **trusted)
    given = emotion.feature_extractor(waves[0], sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        logits = opened(**given).logits[0]
    if not student.targets:
        logits = logits.softmax(dim=0)
    columns = [name for name in student.columns if name != "category"]
    (expected,) = student.predict(waves[:1])
    assert logits.tolist() == pytest.approx([expected[name] for name in columns], abs=1e-4)


def test_a_folder_with_code_of_its_own_gives_all_labels_and_embeddings_in_any_batch(tmp_path: Path) -> None:
    out = tmp_path / "out"
    student = load_student(_save(tmp_path / "model", _configs(tmp_path, "hubert, both")))
    export_model(str(tmp_path / "model"), "transformers", out)
    waves = _waves()
    emotion = pipeline("audio-classification", model=str(out), trust_remote_code=True)
    first, *_ = emotion([{"raw": wave, "sampling_rate": 16_000} for wave in waves], batch_size=3)
    assert len(first) == 2 + len(MANY)
    assert [one["label"] for one in emotion(waves[0], top_k=1)] == [first[0]["label"]]
    given = emotion.feature_extractor(waves, sampling_rate=16_000, return_tensors="pt", padding=True)
    with torch.inference_mode():
        output = AutoModel.from_pretrained(out, trust_remote_code=True)(**given)
    assert output.embedding.numpy() == pytest.approx(student.embed(waves), abs=1e-4)
    assert output.rating.shape == (3, 2)
    assert output.probability.sum(dim=1).tolist() == pytest.approx([1.0] * 3)


def test_an_exported_folder_with_code_is_still_a_model_folder(tmp_path: Path) -> None:
    model = _save(tmp_path / "model", _configs(tmp_path, "hubert, per-target"))
    export_model(str(model), "transformers", tmp_path / "out")
    waves = _waves()
    assert load_student(tmp_path / "out").predict(waves) == load_student(model).predict(waves)
    export_model(str(tmp_path / "out"), "transformers", tmp_path / "again")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {
        *("model.json", "model.safetensors", "speech_encoder", "config.json", "preprocessor_config.json"),
        *("modeling_ccts.py", "README.md", "export.json"),
    }
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == (
        (tmp_path / "out" / "model.json").stat().st_mode & 0o777
    )


def test_a_folder_with_code_is_not_opened_unless_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path / "model", _configs(tmp_path, "hubert, per-target"))
    export_model(str(tmp_path / "model"), "transformers", tmp_path / "out")
    monkeypatch.setattr(transformers.dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 1)  # nobody answers the question
    for opens in (
        lambda: AutoConfig.from_pretrained(tmp_path / "out"),
        lambda: AutoModelForAudioClassification.from_pretrained(tmp_path / "out", trust_remote_code=False),
        lambda: pipeline("audio-classification", model=str(tmp_path / "out"), trust_remote_code=False),
    ):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            opens()
    assert not (tmp_path / "modules" / "transformers_modules" / "out").exists(), "code was copied to be run"


def test_no_class_of_transformers_predicts_with_a_head_drawn_at_random(tmp_path: Path) -> None:
    """Where it has the class, all weights arrive; another task's class has labels of its own, not the student's."""
    export_model(
        str(_save(tmp_path / "model", _configs(tmp_path, "hubert, averaged"))), "transformers", tmp_path / "own"
    )
    opened, told = AutoModelForAudioClassification.from_pretrained(tmp_path / "own", output_loading_info=True)
    assert type(opened).__name__ == "HubertForSequenceClassification"
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert opened.config.problem_type == "regression"
    assert list(opened.config.id2label.values()) == ["activation", "valence", "dominance"]
    _save(tmp_path / "gru", _configs(tmp_path, "hubert, per-target"))
    export_model(str(tmp_path / "gru"), "transformers", tmp_path / "code")
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForCTC.from_pretrained(tmp_path / "code", trust_remote_code=True)
    with pytest.raises(ExportError, match=r"transformers does not load classifier\.weight of the folder"):
        _refuse_unloaded({"missing_keys": {"classifier.weight"}, "unexpected_keys": set(), "mismatched_keys": set()})


LONG_FIRST_FRAME = {"conv_dim": [8, 8, 16], "conv_kernel": [40, 8, 16], "conv_stride": [20, 4, 8]}
"""The demo's student: 1,380 samples, where recordings may have 400."""


@pytest.mark.parametrize("pooling", ["statistics", "mean"])
def test_a_student_whose_first_frame_is_long_predicts_short_recordings(tmp_path: Path, pooling: Any) -> None:
    speech = SPEECH(pooling=pooling, shape=LONG_FIRST_FRAME, do_normalize="on")
    model = _save(tmp_path / "model", student_config(speech))
    assert export_model(str(model), "transformers", tmp_path / "out").largest_difference < 1e-4


def test_the_card_says_how_to_call_it_and_the_hub_can_read_it(tmp_path: Path) -> None:
    model = _save(tmp_path / "model", _configs(tmp_path, "hubert, both"))
    scores = {"ccc": {"valence": 0.61}, "categories": {"unweighted_accuracy": 0.5}}
    (model / "metrics.json").write_text(json.dumps({"test": {"valence": 0.61}, "test_scores": scores}))
    export_model(str(model), "transformers", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict()["pipeline_tag"] == "audio-classification"
    assert (card.data.library_name, card.data.license) == ("transformers", "other")
    assert set(card.data.tags or ()) == {"speech-emotion-recognition", "ccts-dist", "custom_code"}
    results = {result.metric_name: result.metric_value for result in card.data.eval_results or ()}
    assert results == {"CCC of valence": 0.61, "unweighted accuracy of categories (UAR)": 0.5}
    assert "pipeline(\"audio-classification\", model='FOLDER', trust_remote_code=True)" in card.text
    assert "p(angry)" in card.text
    assert "must not decide about a person" in card.text


@pytest.mark.long
def test_a_folder_with_code_needs_no_ccts_dist_and_no_network(tmp_path: Path) -> None:
    student = load_student(_save(tmp_path / "model", _configs(tmp_path, "whisper")))
    export_model(str(tmp_path / "model"), "transformers", tmp_path / "out")
    np.save(tmp_path / "wave.npy", _waves()[1])
    (expected,) = student.predict(_waves()[1:2])
    del expected["category"]
    program = f"""
import json, socket, sys
sys.modules["ccts_dist"] = None  # an import of it would fail
socket.socket.connect = None
import numpy
from transformers import pipeline
emotion = pipeline("audio-classification", model={str(tmp_path / "out")!r}, trust_remote_code=True)
print(json.dumps(emotion(numpy.load({str(tmp_path / "wave.npy")!r}))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = {one["label"]: one["score"] for one in json.loads(done.stdout)}
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("pooling", ["gru", "mean"])
@pytest.mark.parametrize("family", sorted(model_shapes.SPEECH_FAMILIES.keys() - {"modified-cpc", "emotion2vec"}))
def test_every_family_that_transformers_has_is_the_same_in_its_folder(
    tmp_path: Path, family: str, pooling: Any
) -> None:
    shape = model_shapes.SPEECH_FAMILIES[family]
    model = _save(tmp_path / "model", student_config(SPEECH(shape=shape, pooling=pooling, gru_layers=2)))
    assert export_model(str(model), "transformers", tmp_path / "out").largest_difference < 1e-4
