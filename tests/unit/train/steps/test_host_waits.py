"""How often the host waits for the GPU in a step and in a validation: counted on a pretended GPU, so that no GPU is
needed. Every such wait leaves the GPU without work for as long as it takes to queue some."""

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccts_dist.batches import Batch
from ccts_dist.config import read_run
from ccts_dist.distributed import Ranks
from ccts_dist.scoring.predict_split import Extras, evaluate
from ccts_dist.train.experiment import Experiment, check_experiment
from ccts_dist.train.steps.step import train_step
from ccts_dist.train.zero.engine import Update
from tests.helpers.models.model_shapes import TEXT
from tests.helpers.models.pretend import CUDA, HostWaits, pretended_gpu
from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.small_runs import SPEECH, build_two_kinds, make_cache, write_run

STUDENT = {"embedding_weight": 3.0, "prediction_weight": 1.0, "standardize": True}
GRU_AND_MASKS = {
    "speech": {**SPEECH, "pooling": "gru", "spec_augment": {"mask_time_prob": 0.3, "mask_feature_prob": 0.2}}
}
WAV2VEC2 = {"speech": {**GRU_AND_MASKS["speech"], "scratch": {**SPEECH["scratch"], "model_type": "wav2vec2"}}}
WORDS = {"text": {"encoder": "scratch", "vocab_size": 24, "scratch": TEXT, "pooling": "mean", "max_tokens": 32}}
RUNS: dict[str, dict[str, Any]] = {
    "cT/S": {"distill": STUDENT},
    "teacher with text": {"model": WORDS},
    "categories": {"distill": STUDENT, "model": {"categories": ["calm", "tense"]}},
    "prediction loss ccc": {"distill": {**STUDENT, "prediction_loss": "ccc"}},
    "gate per dimension": {"distill": {**STUDENT, "gate": "per-dimension"}},
    "soft gate": {"distill": {**STUDENT, "gate": "soft", "embedding_loss": "cosine"}},
    "micro-batch scope": {"distill": STUDENT, "loss": {"scope": "micro-batch"}},
    "SpecAugment": {"distill": STUDENT, "model": GRU_AND_MASKS},
    "SpecAugment by length": {"model": WAV2VEC2},
    "filter bank": {"model": {"speech": {"encoder": "filterbank", "pooling": "attentive-statistics"}}},
    "group norm": {"model": {"speech": {**SPEECH, "scratch": {**SPEECH["scratch"], "feat_extract_norm": "group"}}}},
}


class PlainEngine:
    """Gradients by torch alone, on the pretended GPU."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.ranks, self.device = model, Ranks(), CUDA

    def forward(self, batch: Batch) -> Any:
        return self.model(batch.audio, batch.num_samples, batch.tokens, batch.num_tokens)

    def start_step(self, num_micro_batches: int) -> None:
        pass

    def backward(self, surrogate: Tensor) -> None:
        surrogate.backward()

    def step(self) -> Update:
        return Update(gradient_norm=0.0, skipped=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("waits")
    shard_set = build_two_kinds(place, num_train=16, num_valid=12, beside=True)
    make_cache(save_small_teacher(place / "teacher"), shard_set, place / "cache")
    return place


def experiment_of(place: Path, name: str, *, micro: int) -> Any:
    sections = {key: dict(values) for key, values in RUNS[name].items()}
    data = {"teacher_cache": str(place / "cache")} if "distill" in sections else {}
    sections["batch"] = {"global_batch_size": 16, "micro_batch_size": micro}
    config = write_run(place / "run.toml", place / "shards", place / "run", data=data, **sections)
    return check_experiment(read_run(config), 1)


def on_gpu(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def waits_of_step(experiment: Experiment, graph_samples: int) -> HostWaits:
    """Of the second step: what is made once has been made."""
    engine = PlainEngine(experiment.model.train())
    source = chain.from_iterable(experiment.loader.epoch(epoch) for epoch in range(2))
    with pretended_gpu(on_gpu(experiment.model)) as waits:
        for _ in range(2):
            waits.clear()
            aside = torch.zeros(10, dtype=torch.float64)
            result = train_step(
                engine, next(source), experiment.objective, seed=1, aside=aside, graph_samples=graph_samples
            )
    assert result.update is not None, "the loss is finite"
    assert result.num_rows == 16
    return waits


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    ("micro", "graph_samples", "ceiling"),
    [(16, sys.maxsize, 2), (8, sys.maxsize, 3), (8, 0, 3)],
    ids=["one micro-batch", "two micro-batches", "two micro-batches, two rounds"],
)
def test_host_waits_for_a_step_no_more_often_than_its_sums_need(
    place: Path, name: str, micro: int, graph_samples: int, ceiling: int
):
    """The step of an engine that waits for nothing; DeepSpeed's own norm of the gradient comes on top."""
    with experiment_of(place, name, micro=micro) as experiment:
        assert experiment.loader.cuts().most_micro_batches == 16 // micro
        waits = waits_of_step(experiment, graph_samples)
    assert waits.total() <= ceiling, waits


def test_host_waits_are_counted_at_all(place: Path):
    model = nn.Linear(2, 2)
    with pretended_gpu(on_gpu(model)) as waits:
        output = model(torch.ones(3, 2).to(CUDA, non_blocking=True))
        assert waits.total() == 0
        chosen = output[output > output.mean()]
        assert waits.total() == 1
        float(chosen.detach().sum())
        torch.tensor([1.0], device=CUDA)
        output.cpu()
        assert waits.total() == 4, waits
        with pytest.raises(AssertionError, match="mixes devices"):
            output + torch.ones(3, 2)


@pytest.mark.parametrize("name", ["categories", "teacher with text"])
def test_host_waits_for_a_validation_once_a_step(place: Path, name: str):
    with experiment_of(place, name, micro=4) as experiment:
        model, loader = experiment.model.eval(), experiment.valid_loader
        extras = Extras(bins=(0.25, 0.75), spearman=True, categories=experiment.run.model.categories)

        def forward(batch: Batch) -> Any:
            return model(batch.audio, batch.num_samples, batch.tokens, batch.num_tokens)

        targets, weights = experiment.run.model.targets, experiment.objective.target_weights
        with pretended_gpu(on_gpu(model)) as waits:
            pretended = evaluate(forward, loader, targets, weights, CUDA, extras=extras)
        assert waits.total() <= loader.steps_per_epoch, waits
        real = evaluate(forward, loader, targets, weights, torch.device("cpu"), extras=extras)
    assert pretended == real
