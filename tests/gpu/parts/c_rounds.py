"""Part C: a forward pass without gradient and one with it predict the same, dropout and masks on, by every kernel.

The exact CCC with two rounds of forward passes rests on it: the sums come from the first, the gradient from the second.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ccts_dist.batches import Batch
from ccts_dist.process.seeds import derive_seed, seed_everything
from tests.gpu.material import student_speech, write_run
from tests.gpu.outcome import NotApplicable, Outcome, check
from tests.gpu.situation import Situation, run_part
from tests.gpu.steps import Training, training

DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "feat_proj_dropout": 0.1}
MASKS = {"mask_time_prob": 0.3, "mask_time_length": 3}
KERNELS = {
    "as torch chooses": None,
    "math": SDPBackend.MATH,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
TOLERANCES = {"fp32": 1e-5, "bf16": 1e-2}
"""Of a prediction on 0..1, where bit-equal is not to be had: its embedding is of order one and the head float32."""

GRADIENTS = {"fp32": 1e-4, "bf16": 5e-2}
"""Of a gradient's norm with layers recomputed, relative to that without: a mask drawn anew would be off by tenths."""


def rounds(outcome: Outcome, situation: Situation) -> None:
    """Every precision, recomputed or not, and every kernel."""
    for precision in ("fp32", "bf16"):
        norms: dict[str, dict[bool, float]] = {}
        for recomputed in (False, True):
            config = write_run(
                situation.work / f"{precision}-{recomputed}.toml", situation.pack,
                model={"gradient_checkpointing": recomputed, "dropout": 0.1,
                       "speech": student_speech(shape=DROPOUT, spec_augment=MASKS)},
                train={"precision": precision},
            )  # fmt: skip
            with training(config) as ready:
                batch = next(iter(ready.experiment.loader.epoch(0))).micro_batches[0].to(ready.engine.device)
                for kernel, backend in KERNELS.items():
                    with outcome.item(f"{precision}, {kernel}, recomputed {recomputed}") as figures:
                        with _only(backend):
                            figures |= two_rounds(ready, batch)
                        norms.setdefault(kernel, {})[recomputed] = figures["gradient_norm"]
                        check(figures["without masks"] > 1e-4, f"dropout and masks change nothing: {figures}")
                        check(figures["apart"] <= TOLERANCES[precision], f"predictions differ: {figures}")
        for kernel, by_recomputing in norms.items():
            with outcome.item(f"{precision}, {kernel}: gradient of recomputed layers") as figures:
                figures |= _relative(by_recomputing)
                check(figures["apart"] <= GRADIENTS[precision], f"{by_recomputing}")
        outcome.show(f"{precision} kernels", ", ".join(norms))


def two_rounds(ready: Training, batch: Batch) -> dict[str, Any]:
    """The largest difference between the predictions of one seed with and without gradient; and without any masks."""

    def forward() -> Any:
        seed_everything(derive_seed("forward", 3, 0, 0, 0, 0))
        return ready.engine.forward(batch)

    try:
        with torch.no_grad():
            first = forward().prediction.float()
        output = forward()
    except RuntimeError as error:
        if any(words in str(error) for words in ("No available kernel", "No viable backend")):
            raise NotApplicable("this kernel takes no such attention here") from error
        raise
    second = output.prediction.detach().float()
    ready.engine.start_step(1)
    ready.engine.backward(output.prediction.sum() / output.prediction.numel())
    norm = ready.engine.step().gradient_norm
    ready.engine.train(False)
    with torch.no_grad():
        still = forward().prediction.float()
    ready.engine.train(True)
    return {
        "apart": float((first - second).abs().max()),
        "bit-equal": bool(torch.equal(first, second)),
        "without masks": float((first - still).abs().max()),
        "gradient_norm": norm,
    }


@contextmanager
def _only(backend: SDPBackend | None) -> Iterator[None]:
    """Attention by this kernel alone."""
    with nullcontext() if backend is None else sdpa_kernel([backend]):
        yield


def _relative(norms: Mapping[bool, float]) -> dict[str, float]:
    if len(norms) < 2:
        raise NotApplicable("ran without recomputation alone, or with it alone")
    return {"apart": abs(norms[True] - norms[False]) / norms[False]}


if __name__ == "__main__":
    run_part("C", rounds)
