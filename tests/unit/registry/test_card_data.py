"""Metadata of model cards: what the hub reads of them is what the run has, and nothing that is not known."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ccts_dist.config import ModelConfig, SpeechConfig, TextConfig
from ccts_dist.registry.card_data import base_models, eval_results, scores_table, with_metadata

STUDENT = ModelConfig(speech=SpeechConfig(encoder="facebook/hubert-large-ll60k"))


def test_a_card_has_what_the_hub_shows() -> None:
    metrics = {
        "valid": {"valence": 0.5, "activation": None},
        "test": {"valence": 0.612345678, "activation": float("nan")},
        "test_scores": {"categories": {"unweighted_accuracy": 0.55, "macro_f1": 0.4}},
    }
    card = ModelCard(
        with_metadata("# emotion\n", name="emotion", config=STUDENT, corpus="MSP-Podcast", metrics=metrics)
    )
    data = card.data.to_dict()
    assert data["base_model"] == ["facebook/hubert-large-ll60k"]
    assert (data["license"], data["license_name"]) == ("other", "see-limits-and-licence")
    assert (data["pipeline_tag"], data["library_name"]) == ("audio-classification", "ccts-dist")
    assert "language" not in data
    (index,) = data["model-index"]
    assert index["name"] == "emotion"
    found = [
        (one["dataset"]["type"], one["dataset"]["split"], metric["type"], metric["name"], metric["value"])
        for one in index["results"]
        for metric in one["metrics"]
    ]
    assert found == [
        ("msp-podcast", "validation", "ccc", "CCC of valence", 0.5),
        ("msp-podcast", "test", "ccc", "CCC of valence", 0.612346),
        ("msp-podcast", "test", "uar", "unweighted accuracy of categories (UAR)", 0.55),
    ]
    assert card.text.strip() == "# emotion"


def test_a_licence_and_languages_that_are_given_are_those_of_the_card() -> None:
    text = with_metadata(
        "", name="a", config=STUDENT, corpus="", metrics=None, license="cc-by-nc-4.0", language=("en", "de")
    )
    data = ModelCard(text).data.to_dict()
    assert (data["license"], data["language"]) == ("cc-by-nc-4.0", ["en", "de"])
    assert "license_name" not in data
    assert "model-index" not in data


@pytest.mark.parametrize("metrics", [{}, {"test": 3}, {"test_scores": None}, {"test": {"valence": True}}])
def test_figures_of_another_form_give_no_results(metrics: dict[str, object]) -> None:
    assert list(eval_results(metrics, "corpus")) == []


def test_folders_and_encoders_from_scratch_are_no_base_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "encoders" / "hubert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def of(*encoders: str) -> list[str]:
        first, *others = [SpeechConfig(encoder=name) for name in encoders]
        return base_models(ModelConfig(speech=first, extra_speech=tuple(others)))

    assert of("scratch", "filterbank", "/models/hubert", "./hubert", "encoders/hubert", "a/b/c") == []
    assert of("microsoft/wavlm-large", "openai/whisper-base", "microsoft/wavlm-large") == [
        "microsoft/wavlm-large",
        "openai/whisper-base",
    ]
    both = ModelConfig(speech=SpeechConfig(encoder="a/speech"), text=TextConfig(encoder="b/text"))
    assert base_models(both) == ["a/speech", "b/text"]


def test_a_model_that_reads_transcripts_is_no_audio_classifier() -> None:
    config = ModelConfig(text=TextConfig(encoder="b/text"))
    assert (
        "pipeline_tag"
        not in ModelCard(with_metadata("", name="a", config=config, corpus="", metrics=None)).data.to_dict()
    )


def test_scores_of_categories_alone_are_not_headed_as_ccc():
    metrics = {"test": {}, "test_scores": {"categories": {"unweighted_accuracy": 0.5}}}
    assert scores_table(metrics, []) == ["| split | UAR |", "| :-- | --: |", "| test | 0.500 |"]
