"""Cross-attention between speech and text: torch's own numbers, no padding, and what it lets a model do."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ccts_dist.batches import FrameBatch
from ccts_dist.config import FilterbankConfig
from ccts_dist.config.reader import parse_model
from ccts_dist.errors import ConfigError
from ccts_dist.model import build_model
from ccts_dist.model.emotion import EmotionModel, describe, rebuild_model
from ccts_dist.model.fusion import CrossAttention, CrossAttentionFusion
from tests.helpers.models.model_shapes import VOCABULARY, both, speech_config, text_config, transcripts, utterances

LENGTHS, NUM_TOKENS = [1_000, 4_000, 2_500], [9, 2, 5]


def built(**changes: object) -> EmotionModel:
    torch.manual_seed(0)
    plain = both(speech=speech_config(pooling="mean"), text=text_config(pooling="mean"))
    return build_model(replace(plain, **changes), vocabulary_size=VOCABULARY).eval()


def test_attention_is_torchs_with_a_residual_connection_and_a_norm():
    torch.manual_seed(0)
    ours, theirs = CrossAttention(12, 8, 3), nn.MultiheadAttention(12, 3, kdim=8, vdim=8, batch_first=True)
    with torch.no_grad():
        for name, linear in (("q", ours.query), ("k", ours.key), ("v", ours.value)):
            getattr(theirs, f"{name}_proj_weight").copy_(linear.weight)
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
        nn.init.normal_(ours.norm.weight)
        frames, others = torch.randn(2, 5, 12), torch.randn(2, 4, 8)
        real = torch.tensor([[True, True, False, False], [True, True, True, True]])
        found, _ = theirs(frames, others, others, key_padding_mask=~real)
        expected = nn.functional.layer_norm(frames + found, (12,), ours.norm.weight, ours.norm.bias)
        torch.testing.assert_close(ours(frames, others, real), expected)


def test_padding_of_any_kind_changes_neither_values_nor_gradients():
    torch.manual_seed(0)
    fusion = CrossAttentionFusion(8, 12, 4)
    speech, text = torch.randn(1, 3, 8), torch.randn(1, 2, 12)
    gradients = []
    for garbage in (None, float("inf")):
        fusion.zero_grad()
        padded = [speech, text]
        if garbage is not None:
            padded = [torch.cat([one, torch.full((1, 4, one.shape[2]), garbage)], dim=1) for one in padded]
        frames, words = fusion(padded[0], torch.tensor([3]), padded[1], torch.tensor([2]))
        assert frames.isfinite().all()
        (frames[:, :3].square().sum() + words[:, :2].sum(dim=-1).square().sum()).backward()
        gradients.append(
            [frames[:, :3], words[:, :2], *(one.grad.clone() for one in fusion.parameters() if one.grad is not None)]
        )
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"speech": speech_config(encoder="filterbank", scratch={}, filterbank=FilterbankConfig())}]
)
def test_utterances_predict_the_same_alone_and_in_one_batch(changes):
    model = built(fusion="cross-attention", **changes)
    audio, num_samples = utterances(LENGTHS)
    tokens, num_tokens = transcripts(NUM_TOKENS)
    with torch.no_grad():
        batch = model(audio, num_samples, tokens, num_tokens).embedding
        alone = [
            model(audio[i : i + 1, :n], num_samples[i : i + 1], tokens[i : i + 1, :m], num_tokens[i : i + 1]).embedding
            for i, (n, m) in enumerate(zip(LENGTHS, NUM_TOKENS, strict=True))
        ]
    torch.testing.assert_close(batch, torch.cat(alone), atol=1e-5, rtol=0)


def interaction(model: EmotionModel) -> float:
    """How far the effect of the words differs between two voices: 0 for what is additive in both."""
    audio, num_samples = utterances([3_000, 3_000])
    tokens, num_tokens = transcripts([6, 6])
    with torch.no_grad():
        (aa, bb), (ab, ba) = (
            model(audio, num_samples, words, num_tokens).prediction for words in (tokens, tokens.flip(0))
        )
    return float((aa - ab - (ba - bb)).abs().max())


def test_words_act_otherwise_with_another_voice_only_under_cross_attention():
    assert interaction(built()) < 1e-6
    assert interaction(built(fusion="cross-attention")) > 1e-4


def test_heads_matter():
    audio, num_samples = utterances(LENGTHS)
    found = [
        built(fusion="cross-attention", fusion_heads=heads)(audio, num_samples, *transcripts(NUM_TOKENS)).embedding
        for heads in (1, 4)
    ]
    assert not torch.allclose(*found)


def test_cached_frames_of_both_encoders_are_fused_as_well():
    model = built(fusion="cross-attention")
    inputs = (*utterances(LENGTHS), *transcripts(NUM_TOKENS))
    assert model.speech is not None
    assert model.text is not None
    with torch.no_grad():
        expected = model(*inputs).prediction
        encoded = (model.speech.encode(*inputs[:2]), model.text.encode(*inputs[2:]))
        speech, text = (FrameBatch(frames=frames, num_frames=number) for frames, number in encoded)
        torch.testing.assert_close(
            model(inputs[0], inputs[1], None, None, {"speech": speech, "text": text}).prediction, expected
        )


def test_model_is_rebuilt_from_its_configuration_and_counted():
    model = built(fusion="cross-attention")
    again = rebuild_model(model.config, model.encoder_configs)
    again.load_state_dict(model.state_dict(), strict=True)
    one_way = 4 * (32 * 32 + 32) + 2 * 32
    assert describe(model)["head"].parameters - describe(built())["head"].parameters == 2 * one_way


def test_heads_that_do_not_divide_the_features_are_refused():
    with pytest.raises(ConfigError, match=r"model\.fusion_heads = 5: must divide the 32 features"):
        built(fusion="cross-attention", fusion_heads=5)


@pytest.mark.parametrize("tables", [("speech",), ("text",), ("speech", "text", "extra_speech")])
def test_other_branches_than_speech_and_text_are_refused(tables):
    branches = {"speech": {"encoder": "e"}, "text": {"encoder": "e"}, "extra_speech": [{"encoder": "e"}]}
    tree = {name: branches[name] for name in tables} | {"fusion": "cross-attention"}
    with pytest.raises(ConfigError, match=r"model\.fusion = 'cross-attention': must stand with"):
        parse_model(tree, source="r.toml")
