"""A student as a folder that transformers opens: the encoder for ``AutoModel``, and beside it the head."""

import copy
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, Wav2Vec2FeatureExtractor

from ccts_dist.config import SpeechConfig
from ccts_dist.errors import ConfigError
from ccts_dist.export.answers import Answers, Exported, scale_of
from ccts_dist.model import LoadedModel
from ccts_dist.model.branches import SpeechBranch
from ccts_dist.model.encoders import quiet_transformers
from ccts_dist.model.pooling import VARIANCE_FLOOR
from ccts_dist.model.speech.feature_extractor_branch import ExtractedBranch
from ccts_dist.model.speech.filterbank import FilterbankBranch
from ccts_dist.model.speech.modified_cpc import MODEL_TYPE as MODIFIED_CPC
from ccts_dist.records import SAMPLE_RATE_HZ

PROGRAM = "emotion.py"
"""Copied into the folder; needs torch, transformers and safetensors, and not this library."""

LOST = (
    "One recording at a time: transformers' own encoders may let padding into their frames.",
    "No resampling, mixing of channels or rounding to 16 bit, and no refusal of bad audio.",
    "No pipeline: transformers' classes with a head refuse the folder, since the head is in emotion.py.",
)

HEADS = ("classifier.weight", "lm_head.weight")
"""Weights of the heads that transformers would draw at random over an encoder without one. Of another shape than any
head's, they make ``pipeline`` and the classes with a head refuse the folder; ``AutoModel`` has no use for them."""

_README = """\
# A speech emotion model for transformers

`python emotion.py a.wav` rates a recording (16 kHz, mono); `Emotion(folder).answer(samples)` does so in a program.

The encoder is `AutoModel.from_pretrained(folder)`. Its head, which pools frames and rates them, is in
`head.safetensors`, `head.json` and `emotion.py`: transformers has no class for it. So
`pipeline("audio-classification", folder)` and `AutoModelForAudioClassification.from_pretrained(folder)` end with an
error (a size mismatch, then missing logits), in place of ratings from a random head. `AutoModel` reports the weights
that are there for this as unexpected: {heads}.
"""


def write_transformers(loaded: LoadedModel, folder: Path) -> Exported:
    """Write config.json and model.safetensors of the encoder, its preprocessor_config.json, head.json,
    head.safetensors and a program that puts them together; then open them with that program.

    Raises:
        ConfigError: a model of several encoders, or one whose encoder transformers alone could not repeat.
    """
    config, branch = loaded.config.speech, loaded.model.speech
    assert config is not None
    if loaded.config.extra_speech:
        raise ConfigError("--format transformers: several speech encoders are no one model. Use --format onnx.")
    if not isinstance(branch, SpeechBranch) or branch.encoder.config.model_type == MODIFIED_CPC:
        kind = "filterbank" if isinstance(branch, FilterbankBranch) else cast(Any, branch).encoder.config.model_type
        why = (
            "takes input from a feature extractor" if isinstance(branch, ExtractedBranch) else "is not in transformers"
        )
        raise ConfigError(f"--format transformers: a {kind} encoder {why}. Use ccts_dist.")
    if hasattr(branch.encoder.config, "squeeze_factor"):
        raise ConfigError(
            f"--format transformers: of a {branch.encoder.config.model_type} encoder transformers alone processes "
            "frames that are left out here. Use --format onnx."
        )
    encoder = _whole_encoder(branch)
    with quiet_transformers():
        encoder.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=SAMPLE_RATE_HZ,
        padding_value=0.0,
        do_normalize=branch.do_normalize,
        return_attention_mask=False,
    ).save_pretrained(folder)
    _refuse_other_heads(folder)
    (folder / "README.md").write_text(_README.format(heads=", ".join(HEADS)), encoding="utf-8")
    _write_head(loaded, config, branch, folder)
    shutil.copyfile(Path(__file__).with_name("exported_program.py"), folder / PROGRAM)
    return _open(folder)


def _whole_encoder(branch: SpeechBranch) -> PreTrainedModel:
    """The encoder as transformers builds it, with its front end and the layers that are left."""
    settings = copy.deepcopy(branch.encoder.config)
    inner: Any = branch.encoder.encoder
    if isinstance(getattr(inner, "layer_norm", None), nn.Identity):
        raise ConfigError(
            "--format transformers: layers = 'layer:N' leaves out the norm at the end of this encoder, which "
            "transformers would not. Use --format onnx."
        )
    settings.num_hidden_layers = len(inner.layers)
    encoder = cast(PreTrainedModel, AutoModel.from_config(settings, trust_remote_code=False)).eval()
    state = branch.state_dict()
    own = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    front = {
        f"feature_extractor.{key.removeprefix('front_end.')}": value
        for key, value in state.items()
        if key.startswith("front_end.")
    }
    encoder.load_state_dict(own | front, strict=True)
    return encoder


def _refuse_other_heads(folder: Path) -> None:
    """Add ``HEADS`` to the encoder's weights.

    Raises:
        ConfigError: an encoder of several files.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ConfigError("--format transformers: the encoder's weights do not fit one file. Use --format onnx.")
    weights = load_file(path)
    save_file({**weights, **{name: torch.zeros(1) for name in HEADS}}, path, metadata={"format": "pt"})


def _write_head(loaded: LoadedModel, config: SpeechConfig, branch: SpeechBranch, folder: Path) -> None:
    head = {f"pooling.{key}": value for key, value in branch.pooling.state_dict().items()}
    if branch.mixture is not None:
        head["mixture"] = branch.mixture.scores.detach().float().softmax(dim=0)
    for name in ("embedding", "prediction", "categories"):
        part = cast(nn.Module | None, getattr(loaded.model, name))
        if part is not None:
            head |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    save_file({key: value.detach().float().contiguous() for key, value in head.items()}, folder / "head.safetensors")
    factor, offset = scale_of(loaded)
    facts = {
        "targets": list(loaded.config.targets),
        "categories": list(loaded.config.categories),
        "factor": factor.tolist(),
        "offset": offset.tolist(),
        "pooling": config.pooling,
        "gru_hidden": config.gru_hidden,
        "gru_layers": config.gru_layers,
        "variance_floor": VARIANCE_FLOOR,
        # Of the encoder's first frame: shorter recordings are filled up with zeros.
        "fewest_samples": branch.front_end.samples_for(1),
    }
    (folder / "head.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _open(folder: Path) -> Exported:
    """The folder's own program, each row asked alone."""
    spec = importlib.util.spec_from_file_location("exported_emotion", folder / PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    with quiet_transformers():
        model = program.Emotion(folder)

    def run(audio: Tensor, num_samples: Tensor) -> Answers:
        rows = [model.answer(row[:count].numpy()) for row, count in zip(audio, num_samples.tolist(), strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    return run
