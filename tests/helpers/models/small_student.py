"""A small student of speech, in a folder as training leaves it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ccts_dist.config import ModelConfig, SpeechConfig
from ccts_dist.model import build_model, save_model
from tests.helpers.models.model_shapes import speech_config


def student_config(speech: SpeechConfig | None = None, **changes: Any) -> ModelConfig:
    """Of a small HuBERT from scratch where ``speech`` is not given, and an embedding of 8."""
    return replace(ModelConfig(embedding_dim=8, speech=speech or speech_config()), **changes)


def save_student(
    folder: Path,
    config: ModelConfig | None = None,
    *,
    seed: int = 0,
    large_weights: bool = False,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write a model folder, of a corpus rated 1 to 7; the folder.

    Args:
        config: ``student_config()`` without it.
        large_weights: large enough that a prediction shows what each does.
        extra: what its description has besides.
    """
    torch.manual_seed(seed)
    model = build_model(config or student_config())
    if large_weights:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    encoders = model.encoder_configs
    save_model(folder, model.state_dict(), model.config, encoders=encoders, scale=(1.0, 7.0), extra=extra or {})
    return folder
