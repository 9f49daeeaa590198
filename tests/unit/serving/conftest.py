"""A small student, and servers of it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ccts_dist.inference.predictor import Predictor, load_student
from tests.helpers.models.small_student import save_student
from tests.helpers.processes.running_server import LIMITS, Running


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load_student(save_student(tmp_path_factory.mktemp("student") / "best"))


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
