"""A small student, and servers of it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from ccts_dist.config import ModelConfig
from ccts_dist.inference.predictor import Predictor, load_student
from ccts_dist.model import build_model, save_model
from tests.helpers.models import model_shapes
from tests.helpers.processes.running_server import LIMITS, Running


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("student") / "best"
    torch.manual_seed(0)
    config = ModelConfig(embedding_dim=8, speech=model_shapes.speech_config())
    model = build_model(config)
    save_model(folder, model.state_dict(), config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={})
    return load_student(folder)


@pytest.fixture
def start(student: Predictor) -> Iterator[Callable[..., Running]]:
    """Starts a server with limits of its own."""
    running: list[Running] = []

    def begin(**limits: Any) -> Running:
        running.append(Running(student, replace(LIMITS, **limits)))
        return running[-1]

    yield begin
    for one in running:
        one.end()
