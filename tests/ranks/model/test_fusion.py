"""A model whose speech and text attend to each other: the same on any ranks, micro-batches and stages."""

import numpy as np
from safetensors.numpy import load_file

from tests.helpers.processes.launching import ROOT
from tests.helpers.processes.small_runs import build_two_kinds, read_history, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

RUNS = {1: ("zero0", 12), 2: ("zero3", 3)}
"""By ranks: stage, and utterances of a micro-batch."""

TEXT = {
    "encoder": "scratch", "vocab_size": 60, "pooling": "mean", "max_tokens": 16,
    "scratch": {"model_type": "bert", "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}  # fmt: skip


def test_losses_and_weights_agree_on_any_ranks_micro_batches_and_stage(tmp_path):
    build_two_kinds(tmp_path, num_train=24)
    outputs = []
    for num_ranks, (stage, micro) in RUNS.items():
        outputs.append(tmp_path / "runs" / str(num_ranks))
        config = write_run(
            tmp_path / f"{num_ranks}.toml", tmp_path / "shards", outputs[-1],
            model={"fusion": "cross-attention", "fusion_heads": 2, "text": TEXT},
            batch={"global_batch_size": 12, "micro_batch_size": micro}, optim={"learning_rate": 0.1},
            train={"max_steps": 8, "deepspeed": str(ROOT / "ds_configs" / f"{stage}.json")},
        )  # fmt: skip
        run_on_ranks(run_trainings, num_ranks, [Job(config=config)], timeout_s=300)
    one, two = ([step["train/loss"] for step in read_history(output)] for output in outputs)
    assert np.ptp(one) > 0.01, "nothing was learnt, so nothing was compared"
    np.testing.assert_allclose(two, one, atol=1e-5)
    first, second = (load_file(output / "last" / "model.safetensors") for output in outputs)
    assert {"fusion.speech.query.weight", "fusion.text.norm.bias"} <= first.keys() == second.keys()
    assert max(np.abs(first[name] - second[name]).max() for name in first) <= 1e-5
