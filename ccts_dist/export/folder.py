"""A student as a folder that transformers opens, with transformers' own classes where they compute the same."""

import copy
import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

from ccts_dist.config import FilterbankConfig, SpeechConfig
from ccts_dist.errors import ConfigError, ExportError
from ccts_dist.export.answers import Answers, Exported, scale_of
from ccts_dist.limits import parse_json, read_limited
from ccts_dist.model import LoadedModel
from ccts_dist.model.branches import SpeechBranch
from ccts_dist.model.description import model_files
from ccts_dist.model.encoders import BATCHED_TYPES, quiet_transformers
from ccts_dist.model.pooling import VARIANCE_FLOOR
from ccts_dist.model.speech.emotion2vec import MODEL_TYPE as EMOTION2VEC
from ccts_dist.model.speech.feature_extractor_branch import ExtractedBranch
from ccts_dist.model.speech.filterbank import ENERGY_FLOOR, FilterbankBranch
from ccts_dist.model.speech.modified_cpc import MODEL_TYPE as MODIFIED_CPC
from ccts_dist.records import SAMPLE_RATE_HZ

CODE = "modeling_ccts.py"
"""Copied into folders whose model transformers has no class for; needs torch and transformers, and not this library."""

_CLASSES = {
    "AutoConfig": "CctsConfig",
    "AutoModel": "EmotionForAudioClassification",
    "AutoModelForAudioClassification": "EmotionForAudioClassification",
}

_PREPROCESSOR = "preprocessor_config.json"

_Branch = SpeechBranch | ExtractedBranch | FilterbankBranch


def labels_of(loaded: LoadedModel) -> dict[int, str]:
    """Names of the numbers that an export gives, as ``Predictor.predict`` has them; of categories alone their names."""
    targets, categories = loaded.config.targets, loaded.config.categories
    names = (*targets, *(f"p({one})" for one in categories)) if targets else categories
    return dict(enumerate(names))


def is_of_transformers(loaded: LoadedModel) -> bool:
    """True for a model that a class of transformers computes: frames projected, averaged, and one linear layer."""
    config, branch = loaded.config, loaded.model.speech
    return (
        isinstance(branch, SpeechBranch)
        and branch.encoder.config.model_type in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES
        and not hasattr(branch.encoder.config, "squeeze_factor")
        and not isinstance(getattr(branch.encoder.encoder, "layer_norm", None), nn.Identity)
        and (config.speech is not None and config.speech.pooling == "mean" and branch.mixture is None)
        and not config.extra_speech
        and (config.embedding_norm, config.embedding_activation) == ("none", "none")
        and (config.heads == "shared" or not config.targets)
        and bool(config.targets) != bool(config.categories)
    )


def write_own_class(loaded: LoadedModel, folder: Path) -> Exported:
    """Write config.json, model.safetensors and preprocessor_config.json of transformers' own class, and open it."""
    branch, config = cast(SpeechBranch, loaded.model.speech), loaded.config
    settings = copy.deepcopy(branch.encoder.config)
    inner: Any = branch.encoder.encoder
    settings.num_hidden_layers = len(inner.layers)
    settings.classifier_proj_size, settings.use_weighted_layer_sum = config.embedding_dim, False
    _name_labels(settings, loaded)
    with quiet_transformers():
        model = cast(PreTrainedModel, AutoModelForAudioClassification.from_config(settings, trust_remote_code=False))
        cast(nn.Module, model.base_model).load_state_dict(_encoder_state(branch), strict=True)
        cast(nn.Module, model.projector).load_state_dict(loaded.model.embedding.state_dict())
        cast(nn.Module, model.classifier).load_state_dict(_classifier_state(loaded))
        model.save_pretrained(folder)
        _feature_extractor(
            do_normalize=branch.do_normalize, masks=getattr(settings, "feat_extract_norm", "layer") == "layer"
        ).save_pretrained(folder)
        opened, report = AutoModelForAudioClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    _refuse_unloaded(report)
    return _run(opened, folder, shortest=branch.front_end.samples_for(1), loaded=loaded)


def write_own_code(loaded: LoadedModel, source: Path, folder: Path) -> Exported:
    """Write the model folder again, and next to it what transformers needs to read the same weights; then open it.

    Args:
        source: the model's folder.

    Raises:
        ConfigError: an encoder that transformers does not have.
    """
    branches = (loaded.model.speech, *loaded.model.extra_speech)
    tables = cast(tuple[SpeechConfig, ...], (loaded.config.speech, *loaded.config.extra_speech))
    places = ("speech_encoder", *(f"also_encoder_{number}" for number in range(len(branches) - 1)))
    factor, offset = scale_of(loaded)
    settings = {
        "branches": [
            _settings(cast(_Branch, one), table, source / place)
            for one, table, place in zip(branches, tables, places, strict=True)
        ],
        "targets": list(loaded.config.targets),
        "categories": list(loaded.config.categories),
        "factor": factor.tolist(),
        "offset": offset.tolist(),
        **{
            name: getattr(loaded.config, name)
            for name in (
                "poolings",
                "embedding_dim",
                "embedding_norm",
                "embedding_activation",
                "heads",
                "head_hidden_dim",
            )
        },
    }
    for name in model_files(source):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    shutil.copyfile(Path(__file__).with_name(CODE), folder / CODE)
    module = CODE.removesuffix(".py")
    program: Any = _import(folder / CODE)
    config = program.CctsConfig(**settings)
    _name_labels(config, loaded)
    config.architectures, config.dtype = ["EmotionForAudioClassification"], "float32"
    config.auto_map = {auto: f"{module}.{name}" for auto, name in _CLASSES.items()}
    config.custom_pipelines = {
        "audio-classification": {"impl": f"{module}.EmotionPipeline", "pt": ["AutoModelForAudioClassification"]}
    }
    config.save_pretrained(folder)
    # The model normalizes by itself, since each of its encoders may want it another way.
    _feature_extractor(do_normalize=False, masks=True).save_pretrained(folder)
    with quiet_transformers():
        opened, report = program.EmotionForAudioClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    _refuse_unloaded(report)
    return _run(opened, folder, shortest=0, loaded=loaded)


def _settings(branch: _Branch, table: SpeechConfig, shape_folder: Path) -> dict[str, Any]:
    """A branch as ``CODE`` builds it.

    Args:
        shape_folder: has the encoder's config.json and, where it has a feature extractor, preprocessor_config.json.
    """
    settings: dict[str, Any] = {
        "encoder": None,
        "normalize": getattr(branch, "do_normalize", False),
        "num_states": 0,
        "variance_floor": VARIANCE_FLOOR,
        **{name: getattr(table, name) for name in ("pooling", "gru_hidden", "gru_layers", "attention_hidden")},
    }
    if isinstance(branch, FilterbankBranch):
        shape = asdict(table.filterbank or FilterbankConfig())
        return settings | {"filterbank": {**shape, "channels": list(shape["channels"]), "energy_floor": ENERGY_FLOOR}}
    kind = branch.encoder.config.model_type
    if kind in (MODIFIED_CPC, EMOTION2VEC):
        raise ConfigError(f"--format transformers: a {kind} encoder is not in transformers. Use --format onnx.")
    removed, skipped = _parts_without(branch.encoder)
    shape = parse_json(read_limited(shape_folder / "config.json", "config.json"))
    has_extractor = isinstance(branch, ExtractedBranch)
    extractor = parse_json(read_limited(shape_folder / _PREPROCESSOR, "config.json")) if has_extractor else None
    return settings | {
        "encoder": {key: value for key, value in shape.items() if key not in ("dtype", "torch_dtype")},
        "removed": removed,
        "skipped": skipped,
        "num_states": 0 if branch.mixture is None else len(branch.mixture.scores),
        "extractor": extractor,
        "masked": kind in BATCHED_TYPES,
    }


def _parts_without(encoder: PreTrainedModel) -> tuple[list[str], list[str]]:
    """Paths of what transformers builds and the model has no more, the last first, and of what it passes through.

    The front end is no such part: it runs before the encoder.
    """
    with torch.device("meta"):
        built = dict(AutoModel.from_config(encoder.config, trust_remote_code=False).named_modules())
    if encoder.config.is_encoder_decoder:
        built = dict(cast(PreTrainedModel, built[""]).get_encoder().named_modules())
    own = dict(encoder.named_modules())
    gone = [path for path in built if path not in own and not path.startswith("feature_extractor.")]
    removed = [path for path in gone if path.rpartition(".")[0] in own]
    passed = [
        path
        for path, module in own.items()
        if isinstance(module, nn.Identity) and not isinstance(built.get(path), nn.Identity)
    ]
    return removed[::-1], [path for path in passed if path != "feature_extractor"]


def _encoder_state(branch: SpeechBranch) -> dict[str, Tensor]:
    """Weights of the encoder by transformers' names: the front end is its feature extractor."""
    own, front = "encoder.", "front_end."
    names = {own: "", front: "feature_extractor."}
    return {
        names[part] + key.removeprefix(part): value
        for key, value in branch.state_dict().items()
        for part in (own, front)
        if key.startswith(part)
    }


def _classifier_state(loaded: LoadedModel) -> dict[str, Tensor]:
    """One linear layer from the embedding to ratings on the corpus's scale, or to scores of categories."""
    if loaded.model.categories is not None:
        return loaded.model.categories.state_dict()
    factor, offset = scale_of(loaded)
    state = loaded.model.prediction.state_dict()
    return {"weight": state["weight"] * factor[:, None], "bias": state["bias"] * factor + offset}


def _name_labels(config: PreTrainedConfig, loaded: LoadedModel) -> None:
    """Labels, and the kind of problem by which ``pipeline`` knows what to do with the numbers."""
    config.id2label = labels_of(loaded)
    config.label2id = {name: number for number, name in config.id2label.items()}
    config.problem_type = "regression" if loaded.config.targets else "single_label_classification"


def _feature_extractor(*, do_normalize: bool, masks: bool) -> Wav2Vec2FeatureExtractor:
    return Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=SAMPLE_RATE_HZ,
        padding_value=0.0,
        do_normalize=do_normalize,
        return_attention_mask=masks,
    )


def _refuse_unloaded(report: Mapping[str, Any]) -> None:
    """Refuse weights that did not arrive, in whose place transformers draws others at random.

    Raises:
        ExportError: names the first of them.
    """
    lost = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in sorted(report[kind])]
    if lost:
        raise ExportError(
            f"--format transformers: transformers does not load {lost[0]} of the folder. It is not kept: use "
            "--format onnx, and report it with the encoder's configuration."
        )


def _import(path: Path) -> Any:
    """The module in a file, without compiled code next to it: the folder is a model's, which may hold nothing more."""
    spec = importlib.util.spec_from_file_location("exported_emotion", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), module.__dict__)
    return module


def _run(model: PreTrainedModel, folder: Path, *, shortest: int, loaded: LoadedModel) -> Exported:
    """The folder at work, each row predicted alone.

    Args:
        shortest: samples to which shorter rows are filled up, as the user of such a folder has to.
    """
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    num_targets = len(loaded.config.targets)

    @torch.inference_mode()
    def run(audio: Tensor, num_samples: Tensor) -> Answers:
        rows = []
        for row, count in zip(audio, num_samples.tolist(), strict=True):
            given = extractor(row[:count].numpy(), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")["input_values"]
            padded = nn.functional.pad(given, (0, max(0, shortest - given.shape[1])))
            rows.append(model(input_values=padded))
        logits = torch.cat([row.logits for row in rows])
        rating, scores = logits[:, :num_targets], logits[:, num_targets:]
        answers = {"rating": rating}
        if scores.shape[1]:
            answers["probability"] = scores if num_targets else scores.softmax(dim=1)
        if getattr(rows[0], "embedding", None) is not None:
            answers["embedding"] = torch.cat([row.embedding for row in rows])
        return answers

    return run
