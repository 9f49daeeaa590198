"""The parts of a training under way, and saving its model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from ccts_dist.config import RunConfig
from ccts_dist.distributed import run_on_all_ranks
from ccts_dist.model.adapters import merged_weights
from ccts_dist.model.folder import save_model
from ccts_dist.tracking.protocol import Tracking
from ccts_dist.train.checkpoints.checkpoint import TrainState
from ccts_dist.train.experiment import Experiment
from ccts_dist.train.optim import Schedule
from ccts_dist.train.resilience.storage_errors import writing
from ccts_dist.train.resilience.watchdog import Watchdog
from ccts_dist.train.resolved import gate_of
from ccts_dist.train.run_folder import RunFolder
from ccts_dist.train.speed.flops import RowFlops
from ccts_dist.train.zero.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainContext:
    """A training's parts on one rank; ``state`` is moved on by whoever trains and validates."""

    experiment: Experiment
    engine: Engine
    schedule: Schedule
    folder: RunFolder
    tracking: Tracking
    state: TrainState
    watchdog: Watchdog
    graph_samples: int
    """See ``train_step``."""
    flops: RowFlops | None = None
    """Model FLOPs of a row, on rank 0 where they are logged; None elsewhere, and where they cannot be counted."""
    resolved: Mapping[str, Any] = field(default_factory=dict)
    """See ``resolved_values``."""

    @property
    def run(self) -> RunConfig:
        """The resolved run file."""
        return self.experiment.run

    @property
    def is_first(self) -> bool:
        """True if this is rank 0."""
        return self.experiment.ranks.is_first


def save_trained(context: TrainContext, name: str, valid: Mapping[str, float]) -> None:
    """Write the model as it is now to the folder ``name`` of the run. Every rank must call it.

    Args:
        valid: its CCC on the validation splits by target; empty where it is not known.

    Raises:
        OutputError: on all ranks alike: rank 0 could not write.
    """
    experiment, run = context.experiment, context.run
    context.watchdog.at(f"saving the {name} model")
    weights = merged_weights(context.engine.full_state())
    manifest = experiment.shard_set.manifest
    extra = {
        "run": run.run_name,
        "seed": run.seed,
        "step": context.state.step,
        "epoch": context.state.epoch + (context.state.step_in_epoch > 0),  # counted from 1, as in the summary
        "valid_ccc": {target: value if isfinite(value) else None for target, value in valid.items()},
        "train_splits": list(run.data.train_splits),
        "shards": experiment.shard_set.digest,
        "extra_shards": [one.digest for one in experiment.extra_shards],
        "corpus": manifest.corpus,
        "teacher_cache": experiment.teacher.digest if experiment.teacher else "",
        "teacher_version": experiment.teacher.facts.registry_version if experiment.teacher else "",
        "teacher_weights_sha256": experiment.teacher.facts.weight_digest if experiment.teacher else "",
        "distill": gate_of(run, experiment.condition),
        "resolved": dict(context.resolved),
    }

    def save() -> None:
        context.folder.check_there()
        with writing(context.folder.path / name):
            save_model(
                context.folder.path / name,
                weights,
                run.model,
                encoders=experiment.model.encoder_configs,
                tokenizer=experiment.tokenizer,
                scale=(manifest.scale[0], manifest.scale[1]),
                extra=extra,
            )

    run_on_all_ranks(lambda: save() if context.is_first else None)
