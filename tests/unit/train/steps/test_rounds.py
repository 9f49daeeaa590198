"""One round of forward passes or two, from what graphs take of a rank's memory; worked by hand."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ccts_dist.config import BatchConfig, parse_run
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.micro_batches import Cuts, SecondsLimit, choose_num_micro_batches, split_global_batch, sum_up
from ccts_dist.train.steps import rounds
from ccts_dist.train.steps.rounds import (
    GraphMemory,
    decide_rounds,
    describe_micro_batches,
    most_graph_samples,
    warn_of_sorted_batches,
)
from tests.unit.loader.test_micro_batches import rows_of

MEMORY = GraphMemory(graph_bytes=400, graph_samples=200, other_bytes=1_000, on_gpu=False)
"""Two bytes of graph for a sample."""

CUTS = sum_up([split_global_batch(rows_of(*[100] * 8), 1, 4, 2), split_global_batch(rows_of(90, 80), 1, 1, 2)])
"""At most four micro-batches of 200 samples; one of 180 in the other step."""


def decided(asked="auto", cuts: Cuts = CUTS, **settings) -> rounds.Rounds:
    known = {"stage": 2, "memory": MEMORY, "rank_bytes": 10_000}
    return decide_rounds(asked, cuts, **known | settings)


def test_samples_whose_graphs_fit_beside_all_else():
    # A tenth of 2,000 stays free; beside the 1,000 there is room for 800 bytes more, that is 400 samples.
    assert most_graph_samples(MEMORY, 2_000) == 200 + 400
    assert most_graph_samples(MEMORY, 1_112) == 200, "the one graph is within the 1,000"
    assert most_graph_samples(MEMORY, 1_100) == 0
    assert most_graph_samples(replace(MEMORY, graph_bytes=0), 2_000) == sys.maxsize


def test_one_round_where_the_graphs_of_the_largest_step_fit():
    # Its four micro-batches have 800 samples: three graphs of 400 bytes beside the first.
    fits, just_not = decided(rank_bytes=2_445), decided(rank_bytes=2_440)
    assert fits.graph_samples == 800
    assert fits.extra_bytes == 1_200
    assert fits.words == "one round: graphs of 4 micro-batches, 0.00 GB more (0.0 GB a rank)"
    assert just_not.graph_samples == 798
    assert just_not.words.startswith("one round, and two in steps of more than")
    assert just_not.extra_bytes == 598 * 2
    assert decided(rank_bytes=1_112).words.startswith("two rounds: graphs of 4 micro-batches")
    assert decided(rank_bytes=1_112).extra_bytes == 0


def test_zero_3_takes_two_rounds_and_what_is_asked_for_is_done():
    assert decided(stage=3).graph_samples == 0
    assert decided("two").graph_samples == 0
    forced = decided("one", rank_bytes=1)
    assert (forced.graph_samples, forced.extra_bytes, forced.recorded) == (sys.maxsize, 1_200, None)
    assert decided(memory=None).graph_samples == 0
    assert decided("one", memory=None).graph_samples == sys.maxsize


def test_what_a_checkpoint_has_recorded_holds_whatever_memory_is_free_now():
    began = decided(rank_bytes=2_440)
    assert began.recorded == 798
    assert decided(rank_bytes=10**9, recorded=began.recorded).graph_samples == 798
    on_gpu = replace(MEMORY, on_gpu=True)
    assert decided(memory=on_gpu).recorded is None, "a GPU has the same memory at every start"


def test_a_container_has_what_its_limit_leaves(monkeypatch, tmp_path):
    monkeypatch.setattr(rounds, "CGROUP", tmp_path)
    whole = rounds.memory_of_a_rank(Ranks(), on_gpu=False)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    limited = rounds.memory_of_a_rank(Ranks(), on_gpu=False)
    assert limited < whole
    (tmp_path / "memory.max").write_text("max\n")
    assert rounds.memory_of_a_rank(Ranks(), on_gpu=False) > limited


def test_micro_batches_in_words():
    assert describe_micro_batches(BatchConfig(micro_batch_size=2), CUTS) == "1 to 4 of at most 2 utterances"
    seconds = BatchConfig(micro_batch_size=2, micro_batch_seconds=7.5)
    one = sum_up([split_global_batch(rows_of(5, 5), 1, 1, 2)])
    assert describe_micro_batches(seconds, one) == "1 of at most 2 utterances and 7.5 s"


def msp_like_durations(count: int) -> Sequence[int]:
    """In samples: log-normal around 5.2 s, 2.75 to 11 s."""
    drawn = np.random.default_rng(1).lognormal(1.65, 0.42, 4 * count)
    return [int(seconds * 16_000) for seconds in drawn[(drawn >= 2.75) & (drawn <= 11)][:count]]


def test_no_step_of_msp_like_durations_on_8_ranks_needs_a_second_round_on_80_gb():
    """HuBERT-large in bf16 by the forecast: 18.9 GB with a micro-batch of 32 x 11 s, 14 GB of them its graph."""
    memory = GraphMemory(graph_bytes=14 * 10**9, graph_samples=32 * 176_000, other_bytes=19 * 10**9, on_gpu=True)
    limit = SecondsLimit(micro=32, max_samples=120 * 16_000, overhead_samples=10 * 16_000)
    durations = msp_like_durations(10 * 256)
    steps = []
    for first in range(0, len(durations), 256):
        rows = rows_of(*durations[first : first + 256])
        steps.append(split_global_batch(rows, 8, choose_num_micro_batches([rows], 8, limit), 32))
    cuts = sum_up(steps)
    assert cuts.most_micro_batches > 1, "with one micro-batch there is nothing to decide"
    decision = decide_rounds("auto", cuts, stage=1, memory=memory, rank_bytes=80 * 10**9)
    heaviest = sum(part.padded_samples for part in cuts.largest_step)
    assert heaviest <= decision.graph_samples
    assert decision.words.startswith("one round: ")
    assert decision.extra_bytes < 14 * 10**9
    tight = decide_rounds("auto", cuts, stage=1, memory=memory, rank_bytes=21 * 10**9)
    assert heaviest > tight.graph_samples


def run_with(**sections):
    data = {"shards": "s"}
    return parse_run(
        {"run_name": "r", "output_dir": "o", "data": data, "model": {"speech": {"encoder": "e"}}, **sections}
    )


def test_settings_that_nothing_would_come_of_are_refused():
    with pytest.raises(ConfigError, match=r"micro_batch_overhead_seconds = 9.* cut by batch.micro_batch_seconds"):
        run_with(batch={"micro_batch_overhead_seconds": 9.0})
    with pytest.raises(ConfigError, match=r"forward_rounds = 'two': loss.scope = 'micro-batch' takes one round"):
        run_with(batch={"forward_rounds": "two"}, loss={"scope": "micro-batch"})
    run_with(batch={"micro_batch_overhead_seconds": 9.0, "micro_batch_seconds": 60.0, "forward_rounds": "one"})


def test_one_round_is_refused_under_zero_3():
    from ccts_dist.train.zero.ds_config import open_ds_config

    asked = {"batch": {"forward_rounds": "one"}}
    open_ds_config(run_with(**asked, train={"deepspeed": "ds_configs/zero2.json"}))
    with pytest.raises(ConfigError, match=r"'one' with ds_configs/zero3.json: ZeRO-3 takes .* use stage 2 or lower"):
        open_ds_config(run_with(**asked, train={"deepspeed": "ds_configs/zero3.json"}))
    assert Path("ds_configs/zero3.json").is_file()


def test_batches_of_one_duration_are_warned_of_loudest_beside_a_text_branch():
    assert run_with().data.bucket_batches == 1, "the default"
    assert warn_of_sorted_batches(run_with()) == {}
    data = {"shards": "s", "bucket_batches": 2}
    speech = warn_of_sorted_batches(run_with(data=data))["warning"]
    assert "data.bucket_batches = 2" in speech
    assert "Set it to 1" in speech
    assert "transcripts" not in speech
    text = {"text": {"encoder": "scratch", "scratch": {"model_type": "bert"}}}
    assert "the number of letters" in warn_of_sorted_batches(run_with(data=data, model=text))["warning"]
    alone = {"targets": [], "categories": ["calm", "tense"], "speech": {"encoder": "e"}}
    assert warn_of_sorted_batches(run_with(data=data, model=alone)) == {}, "a cross-entropy is a sum over utterances"
