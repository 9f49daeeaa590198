"""A pooling for each target: what each reads, what is distilled, and where it is refused."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ccts_dist.config import ModelConfig, SpeechConfig, parse_model
from ccts_dist.errors import ConfigError
from ccts_dist.model import EmotionModel, build_model, describe, load_model, save_model
from ccts_dist.model.pooling import PerTargetPooling, SelfAttentionPooling
from tests.helpers.models.model_shapes import VOCABULARY, speech_config, text_config, transcripts, utterances

LENGTHS = [1000, 4000, 2500]
TARGETS = ("activation", "valence")
EMOTIONS = ("sad", "happy", "calm")
SHARED = ModelConfig(embedding_dim=8, targets=TARGETS, speech=speech_config())
PER_TARGET = replace(SHARED, poolings="per-target")


def built(config: ModelConfig) -> EmotionModel:
    """In evaluation mode, with queries that no longer start at zero."""
    torch.manual_seed(0)
    model = build_model(config, vocabulary_size=VOCABULARY if config.text else None).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("query.weight"):
            torch.nn.init.normal_(parameter)
    return model


def shared_with(model: EmotionModel, number: int) -> EmotionModel:
    """The model of shared poolings with the weights of ``model`` and, in each branch, its pooling of that number."""
    shared = built(replace(model.config, poolings="shared"))
    own = f".pooling.poolings.{number}."
    state = {name.replace(own, ".pooling."): value for name, value in model.state_dict().items()}
    shared.load_state_dict({name: value for name, value in state.items() if ".poolings." not in name}, strict=True)
    return shared


def test_two_queries_weigh_the_same_frames_by_hand():
    one, other = SelfAttentionPooling(1), SelfAttentionPooling(1)
    with torch.no_grad():
        one.query.weight.fill_(0.0)
        other.query.weight.fill_(1.0)
    pooling = PerTargetPooling([one, other])
    frames = torch.tensor([[0.0, 1.0986123, 7.0]])[:, :, None]  # 0, ln 3, padding
    pooled = pooling(frames, torch.tensor([2]))
    assert pooled.shape == (1, 2, 1)
    # Weights 1/2 and 1/2; 1/4 and 3/4.
    assert pooled.flatten().tolist() == pytest.approx([0.5493061, 0.8239592])
    assert pooling.size == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heads": "per-target", "embedding_norm": "layer", "embedding_activation": "gelu"},
        {"categories": EMOTIONS, "speech": speech_config(pooling="attentive-statistics")},
        {
            "speech": speech_config(pooling="self-attention"),
            "extra_speech": (SpeechConfig(encoder="filterbank", gru_hidden=5),),
            "text": text_config(pooling="attentive-statistics"),
        },
        {
            "speech": speech_config(pooling="self-attention"),
            "text": text_config(),
            "fusion": "cross-attention",
            "fusion_heads": 2,
        },
    ],
    ids=["gru", "heads of their own", "categories", "three branches", "fusion"],
)
def test_each_target_is_what_a_model_with_its_pooling_alone_predicts(changes):
    model = built(replace(PER_TARGET, **changes))
    batch = (*utterances(LENGTHS), *transcripts([5, 9, 2])) if model.text is not None else utterances(LENGTHS)
    with torch.no_grad():
        found = model(*batch)
        alone = [shared_with(model, number)(*batch) for number in range(len(TARGETS) + bool(model.config.categories))]
    own = torch.stack([alone[number].prediction[:, number] for number in range(len(TARGETS))], dim=1)
    torch.testing.assert_close(found.prediction, own, atol=1e-6, rtol=1e-5)
    mean = torch.stack([one.embedding for one in alone]).mean(0)
    torch.testing.assert_close(found.embedding, mean, atol=1e-6, rtol=1e-5)
    if model.categories is not None:
        torch.testing.assert_close(found.categories, alone[-1].categories, atol=1e-6, rtol=1e-5)
    other = torch.stack([alone[number].prediction[:, 1 - number] for number in range(2)], dim=1).flip(1)
    assert (own - other).abs().max() > 1e-4, "all poolings give the same: nothing was compared"


def test_a_target_reaches_its_own_pooling_and_the_embedding_reaches_all():
    model = built(replace(PER_TARGET, categories=EMOTIONS)).train()
    poolings = model.get_submodule("speech.pooling.poolings")

    def reached(column: str) -> list[bool]:
        model.zero_grad()
        output = model(*utterances(LENGTHS))
        parts = {"valence": output.prediction[:, 1], "categories": output.categories, "embedding": output.embedding}
        parts[column].square().sum().backward()
        return [any(p.grad is not None and bool(p.grad.any()) for p in one.parameters()) for one in poolings]

    assert reached("valence") == [False, True, False]
    assert reached("categories") == [False, False, True]
    assert reached("embedding") == [True, True, True]


def test_predictions_are_the_same_alone_and_in_a_batch():
    model = built(PER_TARGET)
    audio, num_samples = utterances(LENGTHS)
    with torch.no_grad():
        together = model(audio, num_samples).prediction
        alone = [model(audio[i : i + 1, :n], num_samples[i : i + 1]).prediction for i, n in enumerate(LENGTHS)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_it_costs_a_pooling_for_each_further_target_and_comes_back_from_its_folder(tmp_path):
    model = built(PER_TARGET)
    gru = sum(parameter.numel() for parameter in built(SHARED).get_submodule("speech.pooling").parameters())
    assert describe(model)["model"].parameters - describe(built(SHARED))["model"].parameters == gru
    save_model(
        tmp_path / "m", model.state_dict(), model.config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={}
    )
    batch = utterances(LENGTHS)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "m").model(*batch).prediction, model(*batch).prediction)


def test_embedding_is_made_of_each_pooled_vector_by_the_same_layer():
    model = built(PER_TARGET)
    with torch.no_grad():
        pooled = model.get_submodule("speech")(*utterances(LENGTHS))
        expected = F.linear(pooled.mean(1), model.embedding.weight, model.embedding.bias)
        torch.testing.assert_close(model(*utterances(LENGTHS)).embedding, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"speech": {"encoder": "e", "pooling": "mean"}}, r"model\.speech\.pooling = 'mean' with model\.poolings"),
        (
            {"speech": {"encoder": "e"}, "text": {"encoder": "t", "pooling": "first"}},
            r"model\.text\.pooling = 'first' .*must be one with weights \('gru', 'attentive-statistics', 'self-att",
        ),
        ({"targets": ["valence"], "speech": {"encoder": "e"}}, "must stand with two targets, or with a target and"),
    ],
)
def test_poolings_that_would_all_be_the_same_are_refused(tree, words):
    with pytest.raises(ConfigError, match=words) as refused:
        parse_model(tree | {"poolings": "per-target"}, source="r.toml")
    assert refused.value.exit_code == 2
