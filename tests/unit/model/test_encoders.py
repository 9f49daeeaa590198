import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoConfig,
    BertConfig,
    BertModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
)

from ccts_dist.config import ModelConfig, SpecAugmentConfig, SpeechConfig, TextConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model import build_model
from ccts_dist.model.encoders import augments, load_speech_encoder
from ccts_dist.model.speech.modified_cpc import ModifiedCpcConfig
from ccts_dist.model.text.encoders import load_text_encoder
from ccts_dist.model.weight_check import check_loaded
from tests.helpers.models.model_shapes import SPEECH, TEXT, VOCABULARY, speech_config, text_config, utterances

HUBERT = {key: value for key, value in SPEECH.items() if key != "model_type"}
BERT = {key: value for key, value in TEXT.items() if key != "model_type"} | {"vocab_size": VOCABULARY}


def _save_hubert(folder, *, cls=HubertModel, do_normalize=True, **shape):
    torch.manual_seed(0)
    model = cls(HubertConfig(**HUBERT, **shape))
    model.save_pretrained(folder)
    if do_normalize is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": do_normalize}))
    return model


def _rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_hubert_from_a_folder_computes_what_transformers_computes(tmp_path):
    theirs = _save_hubert(tmp_path).eval()
    audio, num_samples = utterances([2000])
    config = SpeechConfig(encoder=str(tmp_path), pooling="mean", do_normalize="off")
    model = build_model(ModelConfig(speech=config)).eval()
    with torch.no_grad():
        pooled = model.speech(audio, num_samples)
        torch.testing.assert_close(pooled, theirs(audio).last_hidden_state.mean(dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", [HubertModel, HubertForCTC])
def test_weights_in_the_old_spelling_and_under_a_head_arrive(tmp_path, cls):
    model = _save_hubert(tmp_path, cls=cls)

    def to_old_spelling(tensors):
        for name in [n for n in tensors if "parametrizations" in n]:
            old = name.replace("parametrizations.weight.original0", "weight_g")
            tensors[old.replace("parametrizations.weight.original1", "weight_v")] = tensors.pop(name)

    _rewrite(tmp_path, to_old_spelling)
    loaded = load_speech_encoder(SpeechConfig(encoder=str(tmp_path)))
    inner = model if cls is HubertModel else model.hubert
    expected = inner.encoder.pos_conv_embed.conv.weight
    torch.testing.assert_close(loaded.encoder.pos_conv_embed.conv.weight, expected)


def test_weights_in_a_pytorch_file_arrive(tmp_path):
    model = _save_hubert(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    loaded = load_speech_encoder(SpeechConfig(encoder=str(tmp_path)))
    torch.testing.assert_close(loaded.encoder.pos_conv_embed.conv.weight, model.encoder.pos_conv_embed.conv.weight)


@pytest.mark.parametrize("name", ["encoder.pos_conv_embed.conv", "encoder.layers.1.attention.q_proj"])
def test_an_encoder_whose_file_lacks_weights_is_refused(tmp_path, name):
    _save_hubert(tmp_path)
    _rewrite(tmp_path, lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith(name)])
    with pytest.raises(ConfigError, match=f"weight {name}.* is not in its weight file") as error:
        load_speech_encoder(SpeechConfig(encoder=str(tmp_path)))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_positional_convolution_that_was_not_loaded_is_noticed(tmp_path):
    model = _save_hubert(tmp_path)
    check_loaded(model, str(tmp_path))
    with torch.no_grad():
        model.encoder.pos_conv_embed.conv.parametrizations.weight.original1.add_(1e-3)
    with pytest.raises(ConfigError, match=r"weight encoder.pos_conv_embed.* is not what its weight file holds"):
        check_loaded(model, str(tmp_path))


def test_a_file_without_the_spec_augment_filler_is_sound(tmp_path):
    _save_hubert(tmp_path)
    _rewrite(tmp_path, lambda tensors: tensors.pop("masked_spec_embed"))
    load_speech_encoder(SpeechConfig(encoder=str(tmp_path)))


def test_half_precision_weights_become_float32(tmp_path):
    _save_hubert(tmp_path)
    _rewrite(tmp_path, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))
    encoder = load_speech_encoder(SpeechConfig(encoder=str(tmp_path)))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_layer_drop_and_spec_augment_of_a_folder(tmp_path):
    _save_hubert(tmp_path, layerdrop=0.3, mask_time_prob=0.07)
    config = load_speech_encoder(SpeechConfig(encoder=str(tmp_path))).config
    assert (config.layerdrop, config.apply_spec_augment, config.mask_time_prob) == (0.0, True, 0.07)


def test_spec_augment_is_off_from_scratch_unless_named():
    assert not load_speech_encoder(speech_config()).config.apply_spec_augment
    assert load_speech_encoder(speech_config(shape={"apply_spec_augment": True})).config.apply_spec_augment


def test_spec_augment_of_the_run_file_goes_before_that_of_a_folder_and_of_scratch(tmp_path):
    _save_hubert(tmp_path, mask_time_prob=0.07, mask_feature_prob=0.5, mask_feature_length=4)
    masks = SpecAugmentConfig(mask_time_prob=0.3, mask_time_length=5, mask_feature_prob=0.1, mask_feature_length=7)
    for place in (SpeechConfig(encoder=str(tmp_path), spec_augment=masks), speech_config(spec_augment=masks)):
        config = load_speech_encoder(place).config
        assert config.apply_spec_augment
        assert (config.mask_time_prob, config.mask_time_length) == (0.3, 5)
        assert (config.mask_feature_prob, config.mask_feature_length) == (0.1, 7)
    off = SpecAugmentConfig(mask_time_prob=0.0)
    assert not augments(load_speech_encoder(SpeechConfig(encoder=str(tmp_path), spec_augment=off)).config)
    assert augments(load_speech_encoder(SpeechConfig(encoder=str(tmp_path))).config)


@pytest.mark.parametrize(
    ("do_normalize", "file_states", "expected"),
    [("auto", True, True), ("auto", False, False), ("on", False, True), ("off", True, False), ("off", None, False)],
)
def test_normalising_is_as_the_encoder_was_pretrained_unless_reported(tmp_path, do_normalize, file_states, expected):
    _save_hubert(tmp_path, do_normalize=file_states)
    model = build_model(ModelConfig(speech=SpeechConfig(encoder=str(tmp_path), do_normalize=do_normalize)))
    assert model.speech.do_normalize is expected


def test_normalising_is_off_from_scratch():
    assert build_model(ModelConfig(speech=speech_config())).speech.do_normalize is False


def test_an_encoder_that_does_not_state_whether_it_normalises_is_refused(tmp_path):
    _save_hubert(tmp_path, do_normalize=None)
    with pytest.raises(ConfigError, match=r'do_normalize = "auto".*has no readable preprocessor_config.json'):
        build_model(ModelConfig(speech=SpeechConfig(encoder=str(tmp_path))))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no do_normalize"):
        build_model(ModelConfig(speech=SpeechConfig(encoder=str(tmp_path))))


@pytest.mark.parametrize("place", ["/no/such/folder", "./no-such-folder", "no/such/folder"])
def test_a_folder_that_is_not_there_is_refused(place):
    with pytest.raises(ConfigError, match=rf"model.speech.encoder = '{place}': no such folder"):
        load_speech_encoder(SpeechConfig(encoder=place))
    with pytest.raises(ConfigError, match=rf"model.text.encoder = '{place}': no such folder"):
        load_text_encoder(TextConfig(encoder=place), None)


def test_a_hub_name_that_cannot_be_had_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"'facebook/no-such-model': transformers cannot load it") as error:
        load_speech_encoder(SpeechConfig(encoder="facebook/no-such-model"))
    assert "\n" not in str(error.value)


def test_folders_without_config_or_weights_and_with_damaged_ones_are_refused(tmp_path):
    place = SpeechConfig(encoder=str(tmp_path))
    with pytest.raises(ConfigError, match="transformers cannot load it"):
        load_speech_encoder(place)
    HubertConfig(**HUBERT).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"transformers cannot load it.*model.safetensors"):
        load_speech_encoder(place)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ConfigError, match="transformers cannot load it") as error:
        load_speech_encoder(place)
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_are_refused(tmp_path):
    _save_hubert(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.intermediate_size = 48
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="transformers cannot load it") as error:
        load_speech_encoder(SpeechConfig(encoder=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_encoders_that_are_no_speech_encoders_are_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"has no preprocessor_config.json .*: only encoders of type hubert, wav2vec2"
    ):
        load_speech_encoder(SpeechConfig(encoder=str(tmp_path)))


def test_an_adapter_whose_strides_mix_padding_in_is_refused():
    with pytest.raises(ConfigError, match="add_adapter = true"):
        load_speech_encoder(speech_config(shape={"model_type": "wav2vec2", "add_adapter": True}))


@pytest.mark.parametrize(
    ("scratch", "words"),
    [
        ({"model_type": "huberd"}, r"model_type = 'huberd'.*Did you mean 'hubert'\?"),
        ({"hidden_size": 32}, "model_type = ''.*Write for example 'hubert'"),
        ({"model_type": "hubert", "hiden_size": 32}, r"unknown key hiden_size = 32. Did you mean 'hidden_size'\?"),
        ({"model_type": "hubert", "zzzz": 1}, "unknown key zzzz = 1. See transformers' HubertConfig"),
        ({"model_type": "hubert", "hidden_size": "x"}, "transformers refuses it: .*hidden_size"),
        ({"model_type": "hubert", "conv_dim": [4, 4]}, "transformers refuses it: .*conv_dim"),
        ({"model_type": "hubert", "hidden_size": 30}, "no hubert can have this shape"),
    ],
)
def test_wrong_scratch_tables_are_refused_in_one_line(scratch, words):
    with pytest.raises(ConfigError, match=words) as error:
        load_speech_encoder(SpeechConfig(encoder="scratch", scratch=scratch))
    assert "\n" not in str(error.value)


_IMPOSSIBLE = [
    ({"hidden_act": "gelo"}, "can have this shape: it knows no 'gelo'"),
    ({"num_attention_heads": 0}, r"scratch.num_attention_heads = 0: must be 1 or more"),
    ({"hidden_size": 0}, r"scratch.hidden_size = 0: must be 1 or more"),
    ({"num_hidden_layers": 0}, r"scratch.num_hidden_layers = 0: must be 1 or more"),
    ({"num_hidden_layers": -1}, r"scratch.num_hidden_layers = -1: must be 1 or more"),
    ({"intermediate_size": 0}, r"scratch.intermediate_size = 0: must be 1 or more"),
]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        *_IMPOSSIBLE,
        ({"feat_extract_activation": "gelo"}, "no hubert can have this shape: it knows no 'gelo'"),
        ({"num_conv_pos_embedding_groups": 0}, "no hubert can have this shape"),
        ({"conv_dim": [], "conv_kernel": [], "conv_stride": []}, r"scratch.conv_\w+ = \[\]: .*must not be empty"),
        ({"conv_stride": [5, 0, 8]}, r"scratch.conv_stride = \[5, 0, 8\]: must be 1 or more"),
        ({"conv_kernel": [10, -8, 8]}, r"scratch.conv_kernel = \[10, -8, 8\]: must be 1 or more"),
    ],
)
def test_speech_encoders_of_an_impossible_shape_are_refused_in_one_line(shape, words):
    with pytest.raises(ConfigError, match=words) as error:
        load_speech_encoder(speech_config(shape=shape))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "words"), [*_IMPOSSIBLE, ({"max_position_embeddings": 0}, "max_position_embeddings = 0: must be 1")]
)
def test_text_encoders_of_an_impossible_shape_are_refused_in_one_line(shape, words):
    with pytest.raises(ConfigError, match=words) as error:
        load_text_encoder(text_config(shape=shape), VOCABULARY)
    assert "\n" not in str(error.value)


def test_heads_that_divide_nothing_are_refused_whatever_transformers_calls_them():
    scratch = {"model_type": "distilbert", "dim": 32, "n_heads": 0, "n_layers": 1, "hidden_dim": 16}
    with pytest.raises(ConfigError, match=r"no distilbert can have this shape: .*modulo"):
        load_text_encoder(TextConfig(encoder="scratch", scratch=scratch), VOCABULARY)


@pytest.mark.parametrize(
    ("scratch", "words"),
    [
        ({"model_type": "vit", "num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 8}, "is a vit model"),
        ({"model_type": "t5", "d_model": 16, "num_layers": 1, "d_ff": 8}, "is a t5 model with a decoder"),
        ({"model_type": "clip"}, "is a clip model, which does not read text alone"),
    ],
)
def test_models_that_are_no_text_encoders_are_refused_from_scratch(scratch, words):
    with pytest.raises(ConfigError, match=words):
        load_text_encoder(TextConfig(encoder="scratch", scratch=scratch), VOCABULARY)


def test_a_bert_from_a_folder_computes_what_transformers_computes(tmp_path):
    torch.manual_seed(0)
    theirs = BertModel(BertConfig(**BERT)).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_text_encoder(TextConfig(encoder=str(tmp_path), max_tokens=32), VOCABULARY).eval()
    tokens = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).last_hidden_state, theirs(tokens).last_hidden_state)
    assert ours.pooler is None


def test_a_sentence_piece_encoder_with_shared_layers_trains_as_a_whole(tmp_path):
    torch.manual_seed(0)
    AlbertModel(AlbertConfig(**BERT, embedding_size=16)).save_pretrained(tmp_path)
    config = ModelConfig(text=TextConfig(encoder=str(tmp_path), max_tokens=32))
    model = build_model(config, vocabulary_size=VOCABULARY)
    tokens = torch.tensor([[2, 7, 9, 3]])
    model(torch.zeros(1, 1), torch.tensor([1]), tokens, torch.tensor([4])).prediction.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ConfigError, match="the encoder has 0 layers of its own"):
        build_model(ModelConfig(text=TextConfig(encoder=str(tmp_path), max_tokens=32, trainable="top:1")))


def test_text_encoder_from_scratch_has_as_many_pieces_as_the_tokenizer():
    assert load_text_encoder(text_config(), 77).get_input_embeddings().num_embeddings == 77
    with pytest.raises(ConfigError, match="needs a trained tokenizer"):
        load_text_encoder(text_config(), None)
    with pytest.raises(ConfigError, match="vocab_size = 9: the tokenizer decides it"):
        load_text_encoder(text_config(shape={"vocab_size": 9}), 77)


def test_a_tokenizer_with_more_pieces_than_the_encoder_is_refused(tmp_path):
    BertModel(BertConfig(**BERT)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="knows 50 pieces, the tokenizer has 51"):
        load_text_encoder(TextConfig(encoder=str(tmp_path), max_tokens=32), 51)


def test_longer_transcripts_than_the_encoder_reads_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"max_tokens = 65: encoder 'scratch' reads at most 64"):
        load_text_encoder(text_config(max_tokens=65), VOCABULARY)
    RobertaModel(RobertaConfig(**BERT)).save_pretrained(tmp_path)
    load_text_encoder(TextConfig(encoder=str(tmp_path), max_tokens=62), VOCABULARY)
    with pytest.raises(ConfigError, match="reads at most 62"):  # positions begin at 2
        load_text_encoder(TextConfig(encoder=str(tmp_path), max_tokens=63), VOCABULARY)


def test_a_text_model_with_a_decoder_is_refused(tmp_path):
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a t5 model with a decoder: must be an encoder"):
        load_text_encoder(TextConfig(encoder=str(tmp_path)), None)


def test_loading_prints_nothing(tmp_path, capfd):
    _save_hubert(tmp_path)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_speech_encoder(SpeechConfig(encoder=str(tmp_path)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8"])
def test_a_quantized_encoder_is_refused_in_one_line(tmp_path, method):
    _save_hubert(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(ConfigError, match=rf"is quantized \({method}\), and encoders are read in float32") as error:
        load_speech_encoder(SpeechConfig(encoder=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_library_that_an_encoder_lacks_is_named_in_one_line(tmp_path, monkeypatch):
    """As transformers states it, of the model types that need more than torch."""
    _save_hubert(tmp_path)

    def lacking(*_, **__):
        raise ImportError("This model needs the package natten.\nInstall it.")

    monkeypatch.setattr("transformers.AutoModel.from_pretrained", lacking)
    with pytest.raises(
        ConfigError, match=r"transformers cannot load it: This model needs the package natten\. Install"
    ):
        load_speech_encoder(SpeechConfig(encoder=str(tmp_path)))


def test_encoder_dropout_replaces_every_dropout_of_the_encoder(tmp_path):
    path = tmp_path / "config.json"
    _save_hubert(tmp_path)
    settings = {"hidden_dropout": 0.1, "feat_proj_dropout": 0.2, "layerdrop": 0.0, "apply_spec_augment": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    plain = load_speech_encoder(SpeechConfig(encoder=str(tmp_path)))
    assert (plain.config.hidden_dropout, plain.config.feat_proj_dropout) == (0.1, 0.2), "absent: the encoder's own"
    encoder = load_speech_encoder(SpeechConfig(encoder=str(tmp_path), encoder_dropout=0.35))
    shares = {module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout)}
    assert shares == {0.35}
    assert encoder.encoder.layers[0].attention.dropout == 0.35
    off = load_speech_encoder(SpeechConfig(encoder=str(tmp_path), encoder_dropout=0.0))
    audio, _ = utterances([2000])
    torch.testing.assert_close(off.train()(audio).last_hidden_state, off.eval()(audio).last_hidden_state)


def test_dropout_of_an_encoder_that_has_none_is_refused(tmp_path):
    config = ModifiedCpcConfig()
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"encoder_dropout = 0\.1: an encoder of type 'modified-cpc' has none of"):
        load_speech_encoder(SpeechConfig(encoder=str(tmp_path), encoder_dropout=0.1))
