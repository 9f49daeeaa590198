"""What is reported about a step, by name."""

from typing import Any

import pytest
import torch

from ccts_dist.config import parse_run
from ccts_dist.train.metrics import add_to_epoch, epoch_metrics, step_metrics
from ccts_dist.train.steps.step import StepResult
from ccts_dist.train.zero.engine import Update

RESULT: dict[str, Any] = {
    "loss": 3.0, "ccc_loss": 1.0, "ccc": (0.1, 0.2, 0.3), "category_loss": 0.0, "embedding_loss": 0.5,
    "prediction_loss": 0.25, "num_rows": 10, "num_distilled": 4.0, "num_distilled_per_dim": (), "num_damaged": 0,
    "key_checksum": 7, "update": None, "aside": (),
}  # fmt: skip


def metrics(*, categories: list[str] | None = None, **result: Any) -> dict[str, float]:
    tree = {
        "run_name": "r", "output_dir": "o", "data": {"shards": "s", "teacher_cache": "c"}, "distill": {},
        "model": {"speech": {"encoder": "e"}, "categories": categories or []},
    }  # fmt: skip
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "name": "head"}], lr=0.1)
    return step_metrics(StepResult(**RESULT | result), parse_run(tree), optimizer, 0)


def test_distilled_fraction_is_of_the_utterances_that_count():
    reported = metrics()
    assert reported["distill/fraction"] == 0.4
    assert not any(name.startswith("distill/fraction_") for name in reported)


def test_gate_per_dimension_reports_each_dimensions_share_by_its_name():
    reported = metrics(num_distilled=6.0, num_distilled_per_dim=(9.0, 3.0, 6.0))
    assert reported["distill/fraction"] == 0.6
    shares = [reported[f"distill/fraction_{target}"] for target in ("activation", "valence", "dominance")]
    assert shares == pytest.approx([0.9, 0.3, 0.6])


def test_soft_gate_reports_the_mean_share():
    assert metrics(num_distilled=2.5)["distill/fraction"] == 0.25


def test_loss_of_the_categories_is_reported_where_there_are_any():
    assert "train/loss_category" not in metrics()
    assert metrics(categories=["a", "b"], category_loss=0.7)["train/loss_category"] == 0.7


def test_figures_of_an_epoch_are_means_over_the_steps_that_moved_weights():
    """Three steps of ten rows: losses 3, 1 and one that was omitted; CCC of valence is unknown in the second."""
    sums: dict[str, float] = {}
    moved, skipped = Update(gradient_norm=2.0, skipped=False), Update(gradient_norm=9.0, skipped=True)
    for result, share in (
        ({"loss": 3.0, "ccc": (0.1, 0.2, 0.3), "num_distilled": 4.0, "update": moved}, 0.1),
        ({"loss": 1.0, "ccc": (0.3, float("nan"), 0.3), "num_distilled": 7.0, "update": moved}, 0.3),
        ({"loss": 50.0, "update": skipped}, 0.9),
    ):
        step = StepResult(**RESULT | result)
        add_to_epoch(sums, step, metrics(**result), {"train/padding": share, "train/audio_s": 20.0})
    reported = epoch_metrics(sums, steps_per_s=0.5, largest_batch=10, distils=True)
    assert reported == pytest.approx(
        {
            "epoch/train_loss": 2.0,
            "epoch/train_loss_ccc": 1.0,
            "epoch/train_loss_embedding": 0.5,
            "epoch/train_loss_prediction": 0.25,
            "epoch/train_ccc_activation": 0.2,
            "epoch/train_ccc_valence": 0.2,
            "epoch/train_ccc_dominance": 0.3,
            "epoch/train_grad_norm": 2.0,
            "epoch/padding": 0.2,
            "epoch/skipped_steps": 1.0,
            "epoch/distill_fraction": 0.55,
            "epoch/utterances_per_s": 5.0,
            "epoch/audio_s_per_s": 10.0,
        }
    )


def test_epoch_without_a_step_has_figures_all_the_same():
    reported = epoch_metrics({}, steps_per_s=0.0, largest_batch=10, distils=False)
    assert reported == {"epoch/train_loss": 0.0, "epoch/padding": 0.0, "epoch/skipped_steps": 0.0}
