"""Part G: our step beside a loop of bare torch, the same with compiled layers, and the transformers Trainer, on the
same batches."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccts_dist.batches import Batch
from ccts_dist.losses.ccc import concordance
from ccts_dist.model import build_model
from tests.gpu.large import first_batch, make_seconds, size_for, step, with_rows, write_large_run
from tests.gpu.outcome import Outcome, check
from tests.gpu.situation import Situation, run_part
from tests.gpu.steps import forget_engines, training

LEAST = 0.9
"""Of the bare loop's speed, on a GPU; on a CPU that others share no time is asserted."""

LEARNING_RATE = 1e-5


def peers(outcome: Outcome, situation: Situation) -> None:
    """Each of them by itself: two models of this size and their optimizers need not fit together."""
    make_seconds(situation)
    config = write_large_run(situation, "peers", pooling="mean")
    size = size_for(situation)
    rates: dict[str, float] = {}
    with training(config) as ready:
        largest, model_config = first_batch(ready), ready.run.model
    forget_engines()
    batches = [with_rows(largest, size.rows[-2])] * (size.warm_up + size.steps)
    model = build_model(model_config).train()

    def measured(name: str, seconds_of: Callable[[], float]) -> None:
        with outcome.item(name) as figures:
            seconds = seconds_of()
            rates[name] = figures["utterances/s"] = len(batches[0].keys) * size.steps / seconds
            figures["ms a step"] = 1000 * seconds / size.steps
            outcome.show(name, f"{rates[name]:.0f}/s")

    measured("bare torch", lambda: _bare(copy.deepcopy(model), batches, situation))
    measured("transformers Trainer", lambda: _trainer(copy.deepcopy(model), batches, situation))
    measured(
        "bare torch, compiled layers", lambda: _bare(_compiled(copy.deepcopy(model), situation), batches, situation)
    )
    forget_engines()
    with training(config) as ready:
        measured("ours", lambda: _timed(lambda batch: step(ready, batch), batches, situation))
    with outcome.item("ours over the bare loop") as figures:
        figures |= {name: rates["ours"] / rate for name, rate in rates.items() if name != "ours"}
        check("bare torch" in figures, "there is no bare loop to compare with")
        outcome.show("ours over bare torch", figures["bare torch"])
        check(figures["bare torch"] >= LEAST or not situation.on_gpu, f"less than {LEAST}: {figures}")


def _timed(one_step: Callable[[Batch], Any], batches: Sequence[Batch], situation: Situation) -> float:
    """Seconds of all steps but those that warm up."""
    warm_up = size_for(situation).warm_up
    for batch in batches[:warm_up]:
        one_step(batch)
    situation.synchronize()
    began = time.perf_counter()
    for batch in batches[warm_up:]:
        one_step(batch)
    situation.synchronize()
    return time.perf_counter() - began


def _loss(prediction: Tensor, labels: Tensor) -> Tensor:
    """The mean over targets of 1 - CCC of this batch, by autograd."""
    return (1 - concordance(prediction.float(), labels)).mean()


def _bare(model: nn.Module, batches: Sequence[Batch], situation: Situation) -> float:
    """Autocast, float32 weights, fused AdamW, clipping: as one writes it by hand."""
    model.to(situation.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=situation.on_gpu)

    def one_step(batch: Batch) -> None:
        moved = batch.to(situation.device)
        with torch.autocast(situation.device.type, torch.bfloat16, enabled=situation.on_gpu):
            output = model(moved.audio, moved.num_samples, None, None)
        _loss(output.prediction, moved.labels).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return _timed(one_step, batches, situation)


def _compiled(model: nn.Module, situation: Situation) -> nn.Module:
    """Each encoder layer compiled, for any length; a rehearsal traces it and leaves out the compiler."""
    lists = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.ModuleList)]
    layers = [one for name, one in lists if name.endswith("encoder.layers")]
    check(len(layers) == 1, f"the encoder's layers cannot be found among {[name for name, _ in lists]}")
    for layer in layers[0]:
        layer.compile(dynamic=True, backend="inductor" if situation.on_gpu else "aot_eager")
    return model


class _WithLoss(nn.Module):
    """As the Trainer wants a model: it gives its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, audio: Tensor, num_samples: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": _loss(self.model(audio, num_samples, None, None).prediction, labels)}


def _trainer(model: nn.Module, batches: Sequence[Batch], situation: Situation) -> float:
    """The Trainer's own loop over the batches, timed from the end of the last step that warms up."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    rows = [{"audio": b.audio, "num_samples": b.num_samples, "labels": b.labels} for b in batches]
    warm_up, times = size_for(situation).warm_up, list[float]()

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (warm_up, len(rows)):
                situation.synchronize()
                times.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=str(situation.work / "trainer"), max_steps=len(rows), per_device_train_batch_size=1,
        learning_rate=LEARNING_RATE, optim="adamw_torch_fused" if situation.on_gpu else "adamw_torch",
        bf16=situation.on_gpu, use_cpu=not situation.on_gpu, report_to=[], save_strategy="no", logging_strategy="no",
        disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=situation.on_gpu,
    )  # fmt: skip
    Trainer(
        model=_WithLoss(model), args=arguments, train_dataset=rows, data_collator=lambda picked: picked[0],
        callbacks=[Clock()],
    ).train()  # fmt: skip
    check(len(times) == 2, f"{len(times)} times of two")
    return times[1] - times[0]


if __name__ == "__main__":
    run_part("G", peers)
