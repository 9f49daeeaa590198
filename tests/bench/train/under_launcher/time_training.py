"""One side of ``transformers_trainer.py``: SIDE RUN.toml SIZE WARM_UP STEPS OUT.json. Writes audio and seconds."""

import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ccts_dist.batches import StepBatches
from ccts_dist.config import RunConfig, read_run
from ccts_dist.distributed import Ranks
from ccts_dist.loader.decode import read_audio
from ccts_dist.losses.ccc import concordance
from ccts_dist.model.emotion import build_model, parameter_groups
from ccts_dist.process.seeds import derive_seed, seed_everything
from ccts_dist.records import DIMENSIONS, SAMPLE_RATE_HZ
from ccts_dist.shards.shard_set import ShardSet, open_shard_set


class Clock:
    """Wall and CPU time, and the audio that was trained on meanwhile, after so many steps."""

    def __init__(self, warm_up: int) -> None:
        self._to_come, self.num_samples = warm_up, 0
        self._began = (0.0, 0.0)

    def step_ended(self, num_samples: int) -> None:
        """Count a step, unless it warmed up."""
        self._to_come -= 1
        if self._to_come >= 0:
            self._began = (time.perf_counter(), time.process_time())
        else:
            self.num_samples += num_samples

    def reported(self) -> dict[str, float]:
        """Seconds since warming up."""
        wall, cpu = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        return {"audio_s": self.num_samples / SAMPLE_RATE_HZ, "wall_s": wall, "cpu_s": cpu}


def main() -> None:
    """Take the steps, timed."""
    side, config, size, warm_up, steps, out = sys.argv[1:]
    run, clock = read_run(Path(config)), Clock(int(warm_up))
    total = int(warm_up) + int(steps)
    reported = _ours(run, clock, total) if side == "ours" else _trainer(run, clock, int(size), total)
    Path(out).write_text(json.dumps(reported))


def _ours(run: RunConfig, clock: Clock, total: int) -> dict[str, float]:
    from ccts_dist.train.experiment import open_experiment
    from ccts_dist.train.optim import build_optimizer
    from ccts_dist.train.steps.step import train_step
    from ccts_dist.train.zero.engine import Engine

    experiment = open_experiment(run, Ranks())
    optimizer = build_optimizer(parameter_groups(experiment.model), run.optim)
    engine = Engine(experiment.model, optimizer, run, ranks=Ranks())
    engine.train(True)

    def steps() -> Iterator[StepBatches]:
        epoch = 0
        while True:
            yield from experiment.loader.epoch(epoch)
            epoch += 1

    for batches in islice(steps(), total):
        result = train_step(engine, batches, experiment.objective, seed=run.seed)
        assert result.update is not None
        clock.step_ended(sum(int(batch.num_samples[batch.weight > 0].sum()) for batch in batches.micro_batches))
    reported = clock.reported()
    experiment.close()
    return reported


class _Utterances(Dataset[dict[str, Tensor]]):
    """The training split as a map-style dataset, decoded when it is asked for."""

    def __init__(self, shard_set: ShardSet) -> None:
        self._shards = shard_set
        self._places = [
            (entry.name, row)
            for entry in shard_set.shards_of(("Train",))
            for row in range(len(shard_set.rows(entry.name)))
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        name, row = self._places[number]
        rows = self._shards.rows(name)
        audio = np.empty(int(rows.num_samples[row]), np.float32)
        read_audio(self._shards, rows, row, audio)
        labels = torch.tensor([float(rows.labels[target][row]) for target in DIMENSIONS])
        return {"audio": torch.from_numpy(audio), "labels": labels}


def _pad_to_longest(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    audio = nn.utils.rnn.pad_sequence([row["audio"] for row in rows], batch_first=True)
    num_samples = torch.tensor([len(row["audio"]) for row in rows])
    return {"audio": audio, "num_samples": num_samples, "labels": torch.stack([row["labels"] for row in rows])}


class _WithLoss(nn.Module):
    """The same model, with the loss of its batch as the Trainer wants it."""

    def __init__(self, run: RunConfig, clock: Clock) -> None:
        super().__init__()
        seed_everything(derive_seed("model", run.seed))
        self.model, self.clock, self.num_samples = build_model(run.model), clock, 0

    def forward(self, audio: Tensor, num_samples: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.num_samples = int(num_samples.sum())
        output = self.model(audio, num_samples)
        return {"loss": (1 - concordance(output.prediction, labels)).mean()}


def _trainer(run: RunConfig, clock: Clock, size: int, total: int) -> dict[str, float]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model = _WithLoss(run, clock)

    class CountSteps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step_ended(model.num_samples)

    arguments = TrainingArguments(
        output_dir=run.output_dir + "-trainer",
        per_device_train_batch_size=size,
        max_steps=total,
        learning_rate=run.optim.learning_rate,
        max_grad_norm=run.optim.max_grad_norm,
        lr_scheduler_type="constant",
        dataloader_num_workers=1,
        remove_unused_columns=False,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=run.seed,
    )
    dataset = _Utterances(open_shard_set(run.data.shards))
    trainer = Trainer(
        model=model, args=arguments, train_dataset=dataset, data_collator=_pad_to_longest, callbacks=[CountSteps()]
    )
    trainer.train()
    return clock.reported()


if __name__ == "__main__":
    main()
