import copy

import pytest
import torch

from ccts_dist.config import ModelConfig, SpecAugmentConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model import build_model, describe, parameter_groups
from ccts_dist.process.seeds import seed_everything
from tests.helpers.models.model_shapes import (
    LAYER_NORM,
    VOCABULARY,
    both,
    speech_config,
    text_config,
    transcripts,
    utterances,
)

BATCH_NORM = {"conv_pos_batch_norm": True}
# data2vec has no weight norm but several positional convolutions in a row.
DATA2VEC = {"model_type": "data2vec-audio", "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}
MIXED = [int(n) for n in torch.linspace(3200, 48_000, 50).round()]  # 0.2 .. 3 s


def _speech_model(*, seed=0, **changes):
    torch.manual_seed(seed)
    return build_model(ModelConfig(embedding_dim=8, speech=speech_config(**changes)))


def _both(*, seed=0, **changes):
    torch.manual_seed(seed)
    return build_model(both(**changes), vocabulary_size=VOCABULARY)


def _inputs(lengths, num_tokens):
    return (*utterances(lengths), *transcripts(num_tokens))


def _trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("pooling", ["gru", "statistics"])
@pytest.mark.parametrize("shape", [{}, LAYER_NORM], ids=["group norm", "layer norm"])
def test_fifty_utterances_of_mixed_length_predict_the_same_alone_and_in_one_batch(shape, pooling):
    model = _speech_model(shape=shape, pooling=pooling).eval()
    audio, num_samples = utterances(MIXED)
    with torch.no_grad():
        together = model(audio, num_samples)
        alone = [model(audio[i : i + 1, :n], num_samples[i : i + 1]) for i, n in enumerate(MIXED)]
    torch.testing.assert_close(together.prediction, torch.cat([o.prediction for o in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(together.embedding, torch.cat([o.embedding for o in alone]), atol=1e-5, rtol=0)
    assert together.prediction.std(dim=0).min() > 1e-3  # else equality would state nothing


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's own attention
@pytest.mark.parametrize(
    "shape",
    [{"model_type": "wav2vec2"}, {"model_type": "wavlm"}, DATA2VEC, BATCH_NORM],
    ids=["wav2vec2", "wavlm", "data2vec", "hubert with batch norm"],
)
def test_other_encoders_do_not_see_padding_either(shape):
    model = _speech_model(shape=shape).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()  # so that normalised silence is not zero
    lengths = [1000, 4000, 2500]
    audio, num_samples = utterances(lengths)
    with torch.no_grad():
        together = model(audio, num_samples).prediction
        alone = [model(audio[i : i + 1, :n], num_samples[i : i + 1]).prediction for i, n in enumerate(lengths)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", [{}, LAYER_NORM], ids=["group norm", "layer norm"])
def test_gradients_in_training_do_not_see_padding(shape, checkpointing):
    torch.manual_seed(0)
    speech = speech_config(shape=shape, train_feature_encoder=True, pooling="mean", do_normalize="on")
    model = build_model(ModelConfig(embedding_dim=8, gradient_checkpointing=checkpointing, speech=speech)).double()
    audio, num_samples = utterances([1000, 2500])
    audio = audio.double()
    torch.autograd.backward(model(audio, num_samples).prediction.sum())
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    for i, n in enumerate([1000, 2500]):
        torch.autograd.backward(model(audio[i : i + 1, :n], num_samples[i : i + 1]).prediction.sum())
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(together[name], p.grad, atol=1e-9, rtol=1e-6, msg=name)


def test_checkpointed_layers_are_recomputed_with_the_lengths_of_their_own_pass():
    torch.manual_seed(0)
    speech = speech_config(train_feature_encoder=True)
    plain = build_model(ModelConfig(embedding_dim=8, speech=speech))
    frugal = build_model(ModelConfig(embedding_dim=8, speech=speech, gradient_checkpointing=True))
    frugal.load_state_dict(plain.state_dict())
    first, second = utterances([1000, 2500], seed=1), utterances([3000, 700], seed=2)
    for model in (plain, frugal):
        losses = [model(*batch).prediction.square().sum() for batch in (first, second)]
        losses[0].backward()  # after the second forward pass
        losses[1].backward()
    for (name, expected), (_, p) in zip(plain.named_parameters(), frugal.named_parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected.grad, msg=name)


def test_gradient_reaches_top_layers_under_checkpointing_above_frozen_ones():
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(embedding_dim=8, gradient_checkpointing=True, speech=speech_config(trainable="top:1"))
    )
    model(*utterances([1000, 2500])).prediction.sum().backward()
    layers = model.speech.encoder.encoder.layers
    assert layers[1].feed_forward.output_dense.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in layers[0].parameters())


@pytest.mark.parametrize("num_samples", [0, 1, 184])
def test_an_utterance_shorter_than_the_first_frame_predicts_the_same_alone_and_in_a_batch(num_samples):
    model = _speech_model(do_normalize="on").eval()
    audio, lengths = utterances([num_samples, 2000])
    with torch.no_grad():
        together = model(audio, lengths).prediction
        alone = model(audio[:1, :num_samples], lengths[:1]).prediction
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=0)


def test_what_lies_after_the_last_real_sample_is_not_looked_at():
    model = _both().eval()
    audio, num_samples, tokens, num_tokens = _inputs([1000, 2500], [5, 9])
    dirty, other = audio.clone(), tokens.clone()
    dirty[0, 1000:], other[0, 5:] = 7.0, 6
    with torch.no_grad():
        expected = model(audio, num_samples, tokens, num_tokens).prediction
        torch.testing.assert_close(model(dirty, num_samples, other, num_tokens).prediction, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pooling", ["gru", "mean", "statistics", "attentive-statistics", "self-attention"])
def test_transcripts_predict_the_same_alone_and_in_a_batch(pooling):
    torch.manual_seed(0)
    model = build_model(ModelConfig(text=text_config(pooling=pooling)), vocabulary_size=VOCABULARY).eval()
    lengths = [2, 17, 9, 30]
    audio, num_samples, tokens, num_tokens = _inputs([200] * 4, lengths)
    with torch.no_grad():
        together = model(audio, num_samples, tokens, num_tokens).prediction
        alone = [
            model(audio[i : i + 1], num_samples[i : i + 1], tokens[i : i + 1, :n], num_tokens[i : i + 1]).prediction
            for i, n in enumerate(lengths)
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_a_row_without_tokens_stays_finite():
    model = _both()
    audio, num_samples, tokens, num_tokens = _inputs([1000, 2500], [0, 9])
    output = model(audio, num_samples, tokens, num_tokens)
    output.prediction.sum().backward()
    assert torch.isfinite(output.prediction).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_text_branch_without_tokens_is_refused():
    audio, num_samples = utterances([1000])
    with pytest.raises(ConfigError, match="reads transcripts, and was given none"):
        _both()(audio, num_samples)


def test_every_trained_parameter_gets_a_gradient_and_no_other():
    model = _both()
    model(*_inputs([1000, 2500], [5, 9])).prediction.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == _trained(model)


def test_text_layers_are_recomputed_without_a_word_and_to_the_same_gradient(capfd):
    plain, frugal = _both(), _both(gradient_checkpointing=True)
    for model in (plain, frugal):
        model(*_inputs([1000, 2500], [5, 9])).prediction.sum().backward()
    for (name, expected), (_, p) in zip(plain.named_parameters(), frugal.named_parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected.grad, msg=name)
    assert capfd.readouterr() == ("", "")


def test_every_trained_parameter_gets_a_gradient_with_spec_augment_too():
    model = _speech_model(shape={"apply_spec_augment": True, "mask_time_length": 2, "mask_time_prob": 0.3})
    model(*utterances([1000, 2500])).prediction.sum().backward()
    assert "speech.encoder.masked_spec_embed" in _trained(model)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == _trained(model)


def test_spec_augment_takes_clips_shorter_than_its_mask():
    shape = {"apply_spec_augment": True, "mask_time_length": 40, "mask_time_prob": 0.5}
    model = _speech_model(shape=shape)
    audio, num_samples = utterances([300, 500])  # 1 frame and 2
    assert torch.isfinite(model(audio, num_samples).prediction).all()


def test_spec_augment_is_off_in_evaluation_and_for_a_frozen_encoder():
    shape = {"apply_spec_augment": True, "mask_time_length": 4, "mask_time_prob": 0.9}
    batch = utterances([4000, 3000])
    model = _speech_model(shape=shape)
    assert not torch.equal(model(*batch).prediction, model.eval()(*batch).prediction)
    frozen = _speech_model(shape=shape, trainable="none")
    assert torch.equal(frozen(*batch).prediction, frozen.eval()(*batch).prediction)


@pytest.mark.parametrize(
    "masks", [SpecAugmentConfig(mask_time_prob=0.5), SpecAugmentConfig(mask_time_prob=0.0, mask_feature_prob=0.5)]
)
def test_masks_of_the_run_file_are_drawn_from_the_forwards_own_random_state(masks):
    model, batch = _speech_model(spec_augment=masks), utterances([16_000, 12_000])
    printed = {}
    for seed in (1, 2, 1):
        seed_everything(seed)
        now = model(*batch).prediction
        assert torch.equal(printed.setdefault(seed, now), now)
    assert not torch.equal(printed[1], printed[2])
    plain = _speech_model()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(*batch).prediction, plain.eval()(*batch).prediction)


def test_a_mask_over_more_features_than_there_are_is_refused():
    shape = {"apply_spec_augment": True, "mask_feature_prob": 0.1, "mask_feature_length": 33}
    with pytest.raises(ConfigError, match="mask_feature_length = 33 is longer than hidden_size = 32"):
        _speech_model(shape=shape)


def test_frozen_encoder_stays_in_evaluation_mode_and_its_pooling_does_not():
    model = _speech_model(trainable="none", shape={"hidden_dropout": 0.5}).train()
    assert not any(module.training for module in model.speech.encoder.modules())
    assert not any(module.training for module in model.speech.front_end.modules())
    assert model.speech.pooling.training
    batch = utterances([1000, 2500])
    assert torch.equal(model(*batch).prediction, model(*batch).prediction)
    assert {name.split(".")[1] for name in _trained(model) if name.startswith("speech.")} == {"pooling"}


def test_frozen_text_encoder_stays_in_evaluation_mode():
    model = _both(text=text_config(trainable="none", shape={"hidden_dropout_prob": 0.5})).train()
    assert not any(module.training for module in model.text.encoder.modules())
    assert {name.split(".")[1] for name in _trained(model) if name.startswith("text.")} == {"pooling"}


def test_top_n_trains_the_n_highest_layers_and_nothing_else_of_the_encoders():
    model = _both(speech=speech_config(trainable="top:1"), text=text_config(trainable="top:1"))
    trained = {name for name in _trained(model) if ".encoder." in name}
    assert trained
    assert all(
        name.startswith(("speech.encoder.encoder.layers.1.", "text.encoder.encoder.layer.1.")) for name in trained
    )


def test_top_n_trains_the_norm_at_the_end_of_the_encoder_with_them():
    trained = {name for name in _trained(_speech_model(trainable="top:1", shape=LAYER_NORM)) if ".encoder." in name}
    above = {name for name in trained if not name.startswith("speech.encoder.encoder.layers.1.")}
    assert above == {"speech.encoder.encoder.layer_norm.weight", "speech.encoder.encoder.layer_norm.bias"}


def test_more_top_layers_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"model.speech.trainable = 'top:3': the encoder has 2 layers"):
        _speech_model(trainable="top:3")
    with pytest.raises(ConfigError, match=r"model.text.trainable = 'top:3': the encoder has 2 layers"):
        _both(text=text_config(trainable="top:3"))


def test_front_end_is_frozen_unless_asked():
    assert not any(name.startswith("speech.front_end.") for name in _trained(_speech_model()))
    model = _speech_model(train_feature_encoder=True)
    model(*utterances([1000])).prediction.sum().backward()
    assert all(p.grad is not None for p in model.speech.front_end.parameters())


def test_training_the_front_end_below_frozen_layers_is_refused():
    with pytest.raises(ConfigError, match="train_feature_encoder = true with trainable = 'top:1'"):
        _speech_model(train_feature_encoder=True, trainable="top:1")


def test_layer_drop_is_off_whatever_the_encoder_states():
    model = _speech_model(shape={"layerdrop": 0.9})
    assert model.speech.encoder.config.layerdrop == 0.0


def test_head_computes_in_float32_with_bfloat16_weights_and_under_autocast():
    batch = utterances([1000, 2500])
    model = _speech_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(*batch).prediction.dtype == torch.float32
    output = model.bfloat16()(*batch)
    assert (output.embedding.dtype, output.prediction.dtype) == (torch.float32, torch.float32)
    by_hand = output.embedding @ model.prediction.weight.float().T + model.prediction.bias.float()
    torch.testing.assert_close(output.prediction, by_hand)


def test_parameter_groups_hold_each_trained_parameter_once():
    model = _both(speech=speech_config(trainable="top:1"))
    groups = parameter_groups(model)
    together = [id(p) for group in groups.values() for p in group]
    assert len(together) == len(set(together))
    assert set(together) == {id(p) for p in model.parameters() if p.requires_grad}
    outside = {id(p) for name, p in model.named_parameters() if not name.startswith(("speech.encoder", "text.encoder"))}
    assert {id(p) for p in groups["head"]} == outside - {id(p) for p in model.speech.front_end.parameters()}


def test_encoder_group_is_empty_when_the_encoder_is_frozen():
    groups = parameter_groups(_speech_model(trainable="none"))
    assert (groups["speech"], groups["text"]) == ([], [])


def test_description_counts_by_hand():
    sizes = describe(_both(speech=speech_config(trainable="none")))
    assert sizes["head"].parameters == (32 * 8 + 8) + (8 * 3 + 3)
    gru = 3 * 16 * (32 + 16 + 2) + 3 * 16 * (16 + 16 + 2)
    assert sizes["speech"].trained == gru
    assert sizes["model"].parameters == sum(sizes[part].parameters for part in ("speech", "text", "head"))
    assert sizes["model"].trained == sum(sizes[part].trained for part in ("speech", "text", "head"))


def test_same_seed_builds_the_same_model():
    first, second = _both(seed=3).state_dict(), _both(seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_copied_model_does_not_share_its_masks_with_the_original():
    model = _speech_model(shape=DATA2VEC).eval()
    twin = copy.deepcopy(model)
    batch = utterances([1000, 2500])
    with torch.no_grad():
        model(*utterances([500]))
        assert torch.equal(twin(*batch).prediction, model(*batch).prediction)


def test_targets_of_the_run_are_the_columns_of_the_prediction():
    torch.manual_seed(0)
    model = build_model(ModelConfig(targets=("valence",), embedding_dim=5, speech=speech_config()))
    output = model(*utterances([1000, 2500]))
    assert output.prediction.shape == (2, 1)
    assert output.embedding.shape == (2, 5)
