"""Several shard sets in one plan: each with its share of every batch, read from its own files."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.config import parse_run
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.joined_shards import ExtraSet, JoinedShards
from ccts_dist.loader.loader import Loader
from ccts_dist.records import Utterance
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from ccts_dist.train.inputs.shards import with_extra_shards
from tests.helpers.examples.tones import NUM_TRAIN, build_tones, make_loader, wave

NUM_OTHER = 5


def build_other(folder: Path) -> ShardSet:
    """Five utterances of a corpus that rates valence alone and has a category of its own; names of shards as the
    tones' are."""
    folder.mkdir()
    utterances = []
    for number in range(NUM_OTHER):
        audio = folder / f"{number}.wav"
        soundfile.write(audio, wave(number)[::-1], 16_000, subtype="PCM_16")
        utterances.append(
            Utterance(
                key=f"other.{number}", audio=audio, split="Train", labels={"valence": number / 10}, scale=(1.0, 5.0),
                transcript="", category="Joy",
            )
        )  # fmt: skip
    build_shard_set(
        utterances, folder / "shards", corpus="other", release="1", scale=(1.0, 5.0), targets=("valence",),
        shard_bytes=60_000,
    )  # fmt: skip
    return open_shard_set(folder / "shards")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, ShardSet]:
    folder = tmp_path_factory.mktemp("sets")
    return open_shard_set(build_tones(folder)), build_other(folder / "other")


def joined(sets: tuple[ShardSet, ShardSet], share: float = 0.25) -> JoinedShards:
    return JoinedShards(sets[0], [ExtraSet(shard_set=sets[1], splits=("Train",), share=share)])


def keys_of(loader: Loader, epoch: int) -> list[list[str]]:
    steps = []
    for step in loader.epoch(epoch):
        pairs = [zip(batch.keys, batch.weight.tolist(), strict=True) for batch in step.micro_batches]
        steps.append(sorted(key for pair in pairs for key, weight in pair if weight > 0))
    return steps


def test_each_set_has_its_share_of_every_batch_and_the_first_sets_the_epoch(sets):
    loader = make_loader(joined(sets))
    seen: Counter[str] = Counter()
    for epoch in range(2):
        steps = keys_of(loader, epoch)
        assert len(steps) == 7, "37 of the tones, 6 a step"
        once = Counter(key for step in steps for key in step if key.startswith("u."))
        assert len(once) == NUM_TRAIN
        assert set(once.values()) == {1}
        for step in steps:
            others = [key for key in step if key.startswith("other.")]
            assert 1 <= len(others) <= 2, "5 of them in 3 steps of 2"
            seen.update(others)
    # 14 steps are four times all of them, in 12, and 2 steps of the fifth time.
    assert 4 * NUM_OTHER + 3 <= sum(seen.values()) <= 4 * NUM_OTHER + 4
    assert set(seen.values()) <= {4, 5}


def test_rows_are_read_from_their_own_set_and_lacking_targets_are_unknown(sets):
    loader = make_loader(joined(sets), categories=("Happy", "Joy"))
    found = {}
    for step in loader.epoch(0):
        for batch in step.micro_batches:
            assert batch.categories is not None
            for row, key in enumerate(batch.keys):
                found[key] = (
                    batch.audio[row, : batch.num_samples[row]].numpy(), batch.labels[row].numpy(),
                    int(batch.categories[row]),
                )  # fmt: skip
    for number in range(NUM_OTHER):
        audio, labels, category = found[f"other.{number}"]
        np.testing.assert_allclose(audio, wave(number)[::-1] / 32_768, atol=1e-6)
        np.testing.assert_allclose(labels, [np.nan, number / 10, np.nan], rtol=1e-6)
        assert category == 1
        np.testing.assert_allclose(found[f"u.{number}"][0], wave(number) / 32_768, atol=1e-6)
        assert found[f"u.{number}"][2] == (0 if number % 3 == 0 else -1)


def test_ranks_share_the_batches_and_a_position_needs_nothing_before_it(sets):
    alone = keys_of(make_loader(joined(sets)), 3)
    halves = [keys_of(make_loader(joined(sets), ranks=Ranks(rank=rank, num_ranks=2)), 3) for rank in range(2)]
    assert [sorted(one + other) for one, other in zip(*halves, strict=True)] == alone
    later = [[batch.keys for batch in step.micro_batches] for step in make_loader(joined(sets)).epoch(3, 4)]
    assert [sorted({key for keys in step for key in keys}) for step in later] == alone[4:]


def test_digest_names_the_other_sets_and_their_shares(sets, tmp_path):
    digests = {make_loader(one).plan.digest for one in (sets[0], joined(sets), joined(sets, 0.4))}
    assert len(digests) == 3
    assert make_loader(joined(sets)).plan.digest in digests


def test_evaluation_has_the_first_set_alone(sets):
    assert make_loader(joined(sets).main, splits=("Test1",), shuffle=False).num_utterances == 5


def test_share_without_an_utterance_is_refused(sets):
    with pytest.raises(ConfigError, match=r"shares 0\.05 of batch.global_batch_size = 8 are 0 utterances, and leave 8"):
        make_loader(joined(sets, 0.05))
    with pytest.raises(ConfigError, match=r"are 8 utterances, and leave 0 to data\.shards"):
        make_loader(joined(sets, 0.99))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"splits": ["Dev"]}, "no split 'Dev' in these shards"),
        (
            {"targets": ["activation"]},
            r"data\.extra_shards\[0\]\.shards = .*: has labels of valence, and the model learns",
        ),
    ],
)
def test_set_that_gives_nothing_is_refused(sets, changes, words):
    extra = {"shards": str(sets[1].root), "share": 0.25} | {k: v for k, v in changes.items() if k == "splits"}
    run = parse_run(
        {
            "run_name": "r", "output_dir": "o", "data": {"shards": str(sets[0].root), "extra_shards": [extra]},
            "model": {"speech": {"encoder": "e"}, "targets": changes.get("targets", ["valence"])},
        }
    )  # fmt: skip
    with pytest.raises(ConfigError, match=words):
        with_extra_shards(run, sets[0])
    plain = replace(run, data=replace(run.data, extra_shards=()))
    assert with_extra_shards(plain, sets[0]) is sets[0]
