"""Gates that decide by key or by the transcript's confidence: on each utterance by itself, whatever reads it."""

from dataclasses import replace
from pathlib import Path

import pytest

from ccts_dist.config.schema import BatchConfig, DataConfig, DistillConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.loader import Loader
from ccts_dist.loader.row_gate import (
    ConfidenceGate,
    KeysGate,
    RandomGate,
    RowGate,
    read_keys_gate,
    row_gate_of,
    uniform,
)
from ccts_dist.records import DIMENSIONS
from ccts_dist.shards import ShardSet, open_shard_set
from ccts_dist.shards.format.schema import transcript_confidence_of
from tests.helpers.examples.shard_examples import build_example, example_cache, make_utterances

CONFIDENCES = {0: 0.2, 1: 0.5, 2: 0.51, 4: 1.0, 5: 0.0}
"""By number of the utterance; others have the corpus's own words."""


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("set")
    utterances = [
        replace(one, transcript_confidence=CONFIDENCES.get(number))
        for number, one in enumerate(make_utterances(folder, 12))
    ]
    build_example(utterances, folder / "shards", folder)
    return open_shard_set(folder / "shards")


def admitted(shard_set: ShardSet, gate: RowGate, tmp_path: Path, *, micro: int = 4, num_ranks: int = 1) -> set[str]:
    """Keys that are distilled in two epochs over all ranks, which must agree."""
    cache = example_cache(tmp_path / "cache", shard_set) if not (tmp_path / "cache").exists() else None
    epochs: list[dict[str, bool]] = [{}, {}]
    for rank in range(num_ranks):
        loader = Loader(
            shard_set, ("Train",), batch=BatchConfig(global_batch_size=6, micro_batch_size=micro),
            data=DataConfig(shards=str(shard_set.root), num_workers=0), targets=DIMENSIONS, seed=1,
            ranks=Ranks(rank=rank, num_ranks=num_ranks), teacher=cache, gate=gate,
        )  # fmt: skip
        for number, found in enumerate(epochs):
            for step in loader.epoch(number):
                for batch in step.micro_batches:
                    assert batch.teacher is not None
                    assert batch.teacher.admitted is not None
                    decisions = zip(batch.keys, batch.weight.tolist(), batch.teacher.admitted.tolist(), strict=True)
                    found.update({key: decision for key, weight, decision in decisions if weight > 0})
        loader.close()
    assert epochs[0] == epochs[1]
    assert len(epochs[0]) == 9
    return {key for key, decision in epochs[0].items() if decision}


def keys_of(numbers: list[int]) -> set[str]:
    return {f"MSP/ü {number}.wav" for number in numbers}


def test_random_gate_rejects_its_share_and_others_with_another_seed():
    keys = [f"key {number}" for number in range(20_000)]
    low = [uniform(7, key) < 0.3 for key in keys]
    assert sum(low) / len(low) == pytest.approx(0.3, abs=0.01)
    both = sum(one and uniform(8, key) < 0.3 for one, key in zip(low, keys, strict=True))
    assert both / len(keys) == pytest.approx(0.09, abs=0.01), "seeds are independent"
    # Frozen: another value would reject others in every existing run.
    assert uniform(17, "MSP-PODCAST_0001.wav") == pytest.approx(0.5830, abs=1e-4)


@pytest.mark.parametrize(("micro", "num_ranks"), [(6, 1), (2, 1), (2, 2)])
def test_decisions_are_the_same_on_any_ranks_and_micro_batches(shard_set, tmp_path, micro, num_ranks):
    gate = RandomGate(share=0.5, seed=3)
    expected = {key for key in keys_of([*range(12)]) if uniform(3, key) >= 0.5} - keys_of([3, 7, 11])
    assert 2 <= len(expected) <= 7
    assert admitted(shard_set, gate, tmp_path, micro=micro, num_ranks=num_ranks) == expected


def test_keys_gate_admits_what_its_file_lists(shard_set, tmp_path):
    path = tmp_path / "keys.txt"
    path.write_bytes("\ufeffMSP/ü 0.wav\r\n\nMSP/ü 9.wav\nelsewhere\n".encode())
    gate = read_keys_gate(str(path))
    assert admitted(shard_set, gate, tmp_path) == keys_of([0, 9])
    path.write_text("elsewhere\nMSP/ü 9.wav\nMSP/ü 0.wav\nMSP/ü 0.wav", encoding="utf-8")
    assert read_keys_gate(str(path)) == gate


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"\n\r\n", "has no key"),
        (b"a\n\xff\xfe", "cannot be read: it is not UTF-8"),
    ],
)
def test_file_of_keys_that_is_none_is_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "keys.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"distill\.gate_keys = '{path}': {words}") as caught:
        read_keys_gate(str(path))
    assert "\n" not in str(caught.value)


def test_confidence_gate_admits_confident_transcripts_and_those_of_no_recognizer(shard_set, tmp_path):
    found = admitted(shard_set, ConfidenceGate(least=0.51), tmp_path)
    assert found == keys_of([2, 4, 6, 8, 9, 10])


@pytest.mark.parametrize("value", ["1.5", "true", '"high"', "[]"])
def test_confidence_that_is_none_is_refused(value: str):
    with pytest.raises(ValueError, match="its transcript_confidence is"):
        transcript_confidence_of(f'{{"transcript_confidence": {value}}}'.encode())
    with pytest.raises(ValueError, match="no transcript_confidence in it"):
        transcript_confidence_of(b"[1]")


def test_run_file_names_the_gate(tmp_path):
    (tmp_path / "keys").write_text("a")
    assert row_gate_of(DistillConfig(gate="random", reject_fraction=0.2), 5) == RandomGate(share=0.2, seed=5)
    assert row_gate_of(DistillConfig(gate="confidence", min_confidence=0.4), 5) == ConfidenceGate(least=0.4)
    assert isinstance(row_gate_of(DistillConfig(gate="keys", gate_keys=str(tmp_path / "keys")), 5), KeysGate)
    assert row_gate_of(DistillConfig(), 5) is None
    assert row_gate_of(None, 5) is None
