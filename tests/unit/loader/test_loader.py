"""Reading what the plan states: real shards, decoded, padded, in this thread and in others."""

import io
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError, FetchError, ShardError, TeacherError
from ccts_dist.loader.collate import pad_tokens, vote_labels, vote_shares
from ccts_dist.loader.loader import Loader
from ccts_dist.records import DIMENSIONS
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from ccts_dist.shards.teacher_cache import TeacherCache
from tests.helpers.examples.shard_examples import flip_bit
from tests.helpers.examples.tones import (
    NUM_TRAIN,
    Words,
    build_tones,
    labels_of,
    make_loader,
    number_teacher,
    same_steps,
    wave,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return build_tones(tmp_path_factory.mktemp("loader"))


@pytest.fixture
def shard_set(root: Path) -> ShardSet:
    return open_shard_set(root)


@pytest.fixture(scope="module")
def cache(root: Path, tmp_path_factory) -> TeacherCache:
    return number_teacher(tmp_path_factory.mktemp("cache"), open_shard_set(root))


@pytest.fixture(scope="module")
def with_workers(root: Path, cache: TeacherCache) -> Iterator[Loader]:
    loader = make_loader(open_shard_set(root), workers=2, encode_text=Words(), teacher=cache)
    yield loader
    loader.close()


def test_batches_are_the_same_in_this_thread_and_in_two_others_over_epochs_and_starts(shard_set, cache, with_workers):
    inline = make_loader(shard_set, encode_text=Words(), teacher=cache)
    for epoch, start in ((0, 0), (1, 3), (0, 4)):
        ours, theirs = list(inline.epoch(epoch, start)), list(with_workers.epoch(epoch, start))
        assert ours[0].step == start
        assert same_steps(ours, theirs)


def test_threads_stay_over_epochs_and_after_an_epoch_that_was_left_early(with_workers):
    names = []
    for _ in range(2):
        steps = with_workers.epoch(0)
        assert next(steps).step == 0
        names.append(sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("loader")))
    assert len(names[0]) == 2
    assert names[0] == names[1]


def test_two_epochs_can_be_read_side_by_side(shard_set, cache, with_workers):
    inline = make_loader(shard_set, encode_text=Words(), teacher=cache)
    one, other = with_workers.epoch(0), with_workers.epoch(1)
    mixed = [step for pair in zip(one, other, strict=True) for step in pair]
    assert same_steps(mixed[0::2], list(inline.epoch(0)))
    assert same_steps(mixed[1::2], list(inline.epoch(1)))


def test_reading_with_threads_draws_nothing_from_the_global_generators(with_workers):
    before = torch.get_rng_state()
    list(with_workers.epoch(0, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_audio_labels_and_teacher_of_a_row_are_those_of_its_key(shard_set, cache):
    loader = make_loader(shard_set, encode_text=Words(), teacher=cache)
    for step in loader.epoch(0):
        for batch in step.micro_batches:
            for row, key in enumerate(batch.keys):
                number = int(key.removeprefix("u."))
                expected, size = wave(number), int(batch.num_samples[row])
                assert size == len(expected)
                np.testing.assert_array_equal(batch.audio[row, :size].numpy(), expected / np.float32(32_768))
                assert not batch.audio[row, size:].any()
                expected_labels = [labels_of(number).get(d, np.nan) for d in DIMENSIONS]
                np.testing.assert_allclose(batch.labels[row].numpy(), expected_labels, rtol=1e-6)
                assert batch.teacher.embedding[row].tolist() == [number] * 4
                assert batch.tokens[row, : batch.num_tokens[row]].tolist() == [1] + [4] * (number % 4)


def test_columns_of_labels_are_the_targets_in_their_order(shard_set):
    batch = next(make_loader(shard_set, targets=("dominance", "activation")).epoch(0)).micro_batches[0]
    number = int(batch.keys[0].removeprefix("u."))
    assert batch.labels[0].tolist() == pytest.approx([(number + 2) / 60, number / 60])


def test_categories_are_numbered_as_asked_and_unknown_ones_are_minus_one(shard_set):
    loader = make_loader(shard_set, categories=("Sad", "Happy"))
    for step in loader.epoch(0):
        for batch in step.micro_batches:
            wanted = [{0: 1, 1: 0, 2: -1}[int(key.removeprefix("u.")) % 3] for key in batch.keys]
            assert batch.categories.tolist() == wanted


@pytest.mark.parametrize(
    ("categories", "category_map", "numbers"),
    [
        (("calm", "Sad"), {"Happy": "calm"}, (0, 1, -1)),
        (("Sad", "Happy"), {"Happy": "Sad", "Sad": "Happy"}, (0, 1, -1)),
        (("Sad",), {"Happy": "Sad"}, (0, 0, -1)),
        (("Happy",), {"Sad": ""}, (0, -1, -1)),
    ],
)
def test_categories_of_the_shards_are_renamed_merged_and_dropped_by_the_map(
    shard_set, categories, category_map, numbers
):
    loader = make_loader(
        shard_set, categories=categories, category_map=category_map, global_batch_size=64, micro_batch_size=64
    )
    (batch,) = next(loader.epoch(0)).micro_batches
    assert batch.categories.tolist() == [numbers[int(key.removeprefix("u.")) % 3] for key in batch.keys]


def test_map_of_a_category_that_the_shards_lack_is_refused(shard_set):
    with pytest.raises(ConfigError, match=r"model\.category_map: 'Bored' is not a category .*It has: Happy, Sad"):
        make_loader(shard_set, categories=("Happy", "Sad"), category_map={"Bored": "Sad"})
    with pytest.raises(ConfigError, match="category 'Sad' is not a category"):
        make_loader(shard_set, categories=("Happy", "Sad"), category_map={"Sad": "Happy"})


def test_unknown_category_is_refused_with_the_known_ones(shard_set):
    with pytest.raises(ConfigError, match=r"category 'Bored' is not a category .*It has: Happy, Sad"):
        make_loader(shard_set, categories=("Bored",))


def test_labels_named_as_categories_are_read_as_shares_of_votes(shard_set):
    with pytest.raises(ConfigError, match=r'model.categories, with "\.share" or without: .Happy. is not a label'):
        make_loader(shard_set, categories=("Happy", "Sad"), votes=True)
    assert vote_labels(("Happy", "Sad"), {"Happy", "Sad", "Sad.share"}) == ["Happy", "Sad.share"]
    rows = np.array([[1.0, 3.0], [0.0, 0.0], [0.5, np.nan]])
    np.testing.assert_array_equal(vote_shares(rows), [[0.25, 0.75], [np.nan] * 2, [np.nan] * 2])


def test_without_text_branch_and_teacher_a_batch_has_neither(shard_set):
    batch = next(make_loader(shard_set).epoch(0)).micro_batches[0]
    assert batch.tokens is None
    assert batch.num_tokens is None
    assert batch.teacher is None


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_ranks_share_every_global_batch_in_equally_many_micro_batches(shard_set, num_ranks):
    loaders = [make_loader(shard_set, ranks=Ranks(rank=rank, num_ranks=num_ranks)) for rank in range(num_ranks)]
    assert len({loader.cuts().most_micro_batches for loader in loaders}) == 1
    assert len({loader.plan.digest for loader in loaders}) == 1
    for steps in zip(*(loader.epoch(2) for loader in loaders), strict=True):
        assert {len(step.micro_batches) for step in steps} == {loaders[0].cuts().most_micro_batches}
        batches = [batch for step in steps for batch in step.micro_batches]
        assert all(len(batch.keys) <= 3 for batch in batches)
        counted = [key for batch in batches for key, weight in zip(batch.keys, batch.weight, strict=True) if weight]
        assert sorted(counted) == sorted(row.key for row in loaders[0].plan.global_batch(2, steps[0].step))


@pytest.mark.parametrize(("num_nodes", "per_node", "partitions"), [(2, 1, 2), (2, 2, 4), (3, 1, 6), (4, 2, 4)])
def test_a_node_reads_its_own_partitions_and_all_nodes_together_the_global_batch(
    shard_set, num_nodes, per_node, partitions
):
    num_ranks = num_nodes * per_node
    loaders = [
        make_loader(
            shard_set,
            ranks=Ranks(rank=rank, num_ranks=num_ranks, num_nodes=num_nodes),
            partitions=partitions,
            workers=rank % 2,
        )
        for rank in range(num_ranks)
    ]
    keys_of_node: list[set[str]] = [set() for _ in range(num_nodes)]
    for steps in zip(*(loader.epoch(1) for loader in loaders), strict=True):
        counted = []
        for rank, step in enumerate(steps):
            assert len(step.micro_batches) == loaders[0].cuts().most_micro_batches
            for batch in step.micro_batches:
                assert len(batch.keys) <= 3
                own = [key for key, weight in zip(batch.keys, batch.weight, strict=True) if weight]
                counted += own
                keys_of_node[rank // per_node] |= set(own)
        assert sorted(counted) == sorted(row.key for row in loaders[0].plan.global_batch(1, steps[0].step))
    again = [set() for _ in range(num_nodes)]
    for rank, loader in enumerate(loaders):
        for step in loader.epoch(5):
            again[rank // per_node] |= {
                key
                for batch in step.micro_batches
                for key, weight in zip(batch.keys, batch.weight, strict=True)
                if weight
            }
    assert again == keys_of_node  # in every epoch the same ones
    assert sum(map(len, keys_of_node)) == NUM_TRAIN


def test_streams_that_the_nodes_do_not_divide_are_read_by_all(shard_set):
    loader = make_loader(shard_set, ranks=Ranks(rank=1, num_ranks=2, num_nodes=2), partitions=3)
    assert loader.partitions == range(3)


def test_empty_part_is_one_row_of_weight_zero(shard_set):
    loader = make_loader(shard_set, splits=("Test1",), ranks=Ranks(rank=7, num_ranks=8))  # five utterances, eight ranks
    (step,) = loader.epoch(0)
    assert [(len(batch.keys), batch.weight.tolist()) for batch in step.micro_batches] == [(1, [0.0])]


def test_padding_is_that_of_the_batches_of_all_ranks(shard_set):
    loaders = [
        make_loader(shard_set, ranks=Ranks(rank=rank, num_ranks=2), shuffle_buffer_size=99, shuffle=False)
        for rank in (0, 1)
    ]
    batches = [batch for loader in loaders for step in loader.epoch(1) for batch in step.micro_batches]
    padded = sum(batch.audio.numel() for batch in batches)
    real = sum(int((batch.num_samples * batch.weight.long()).sum()) for batch in batches)
    assert loaders[0].padding(1) == loaders[1].padding(1) == pytest.approx(1 - real / padded)


def test_epoch_that_starts_at_its_end_is_empty(shard_set):
    loader = make_loader(shard_set)
    assert list(loader.epoch(0, loader.steps_per_epoch)) == []


def test_start_outside_the_epoch_is_refused(shard_set):
    with pytest.raises(ConfigError, match=r"cannot start at epoch 0, step 6.*have 5 steps"):
        make_loader(shard_set).epoch(0, 6)


def test_unknown_target_is_refused_with_the_known_ones(shard_set):
    with pytest.raises(ConfigError, match=r"target 'surprise' is not a label .*activation, valence, dominance"):
        make_loader(shard_set, targets=("surprise",))


def test_more_ranks_than_utterances_in_a_batch_are_refused(shard_set):
    with pytest.raises(ConfigError, match="global_batch_size=8 leaves some of 9 ranks"):
        make_loader(shard_set, ranks=Ranks(num_ranks=9))


def damaged_copy(root: Path, tmp_path: Path, damage) -> tuple[ShardSet, str, str]:
    """The shard set with the flac member of one utterance changed; its shard's name and its key too."""
    for file in root.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard_set = open_shard_set(tmp_path)
    shard = shard_set.manifest.shards[1].name
    table = shard_set.rows(shard)
    places = table.members["flac"]
    data = bytearray((tmp_path / shard).read_bytes())
    low = int(places.offset[0])
    data[low : low + int(places.size[0])] = damage(bytes(data[low : low + int(places.size[0])]), places)
    (tmp_path / shard).write_bytes(data)
    return shard_set, shard, table.keys[0]


def test_flipped_bit_is_one_line_at_the_step_it_belongs_to(root, tmp_path):
    shard_set, shard, key = damaged_copy(root, tmp_path, lambda payload, _: payload[:-1] + bytes([payload[-1] ^ 1]))
    loader = make_loader(shard_set)
    bad = next(k for k in range(5) if key in [row.key for row in loader.plan.global_batch(0, k)])
    steps = loader.epoch(0)
    assert [next(steps).step for _ in range(bad)] == list(range(bad))
    with pytest.raises(ShardError, match=f"{shard}: flac of '{key}' is damaged") as caught:
        next(steps)
    assert "\n" not in str(caught.value)


def test_skipping_gives_a_damaged_utterance_weight_zero_and_silence_and_reports_so(root, tmp_path, cache):
    shard_set, shard, key = damaged_copy(root, tmp_path, lambda payload, _: payload[:-1] + bytes([payload[-1] ^ 1]))
    sound = make_loader(open_shard_set(root), encode_text=Words(), teacher=cache)
    skipping = make_loader(shard_set, encode_text=Words(), teacher=cache, damaged="skip", workers=1)
    words = []
    for ours, theirs in zip(skipping.epoch(0), sound.epoch(0), strict=True):
        for batch, whole in zip(ours.micro_batches, theirs.micro_batches, strict=True):
            assert batch.keys == whole.keys
            bad = [number for number, one in enumerate(batch.keys) if one == key]
            good = [number for number, one in enumerate(batch.keys) if one != key]
            assert batch.weight[good].tolist() == [1.0] * len(good)
            assert torch.equal(batch.audio[good], whole.audio[good])
            assert torch.equal(batch.teacher.embedding[good], whole.teacher.embedding[good])
            assert batch.weight[bad].tolist() == [0.0] * len(bad)
            assert not batch.audio[bad].any()
            assert not batch.teacher.embedding[bad].any()
            assert batch.num_tokens[bad].tolist() == [1] * len(bad)
            words += batch.damaged
    assert len(words) == 1
    assert words[0].startswith(f"{shard}: flac of '{key}' is damaged")


def test_damaged_utterance_is_reported_once_and_not_by_the_copies_in_empty_parts(root, tmp_path):
    for file in root.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard_set = open_shard_set(tmp_path)
    (entry,) = shard_set.shards_of(("Test1",))  # five utterances, eight ranks
    table = shard_set.rows(entry.name)
    shortest = int(table.num_samples.argmin())
    flip_bit(tmp_path / entry.name, int((table.members["flac"].offset + table.members["flac"].size)[shortest]) - 1)
    batches = []
    for rank in range(8):
        loader = make_loader(shard_set, splits=("Test1",), ranks=Ranks(rank=rank, num_ranks=8), damaged="skip")
        batches += next(loader.epoch(0)).micro_batches
    assert sum(batch.keys == (table.keys[shortest],) for batch in batches) == 4
    assert sorted(len(batch.damaged) for batch in batches) == [0] * 7 + [1]


def test_a_store_that_cannot_be_reached_is_no_damage_to_skip(shard_set):
    class Away(ShardSet):
        def member(self, *_) -> bytes:
            raise FetchError("the store is away")

    away = Away(shard_set.store, shard_set.manifest, shard_set.digest)
    with pytest.raises(FetchError, match="the store is away"):
        next(make_loader(away, damaged="skip").epoch(0))


def flac_of(samples: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"no flac at all", r"cannot be decoded"),
        (flac_of(np.zeros(100, dtype=np.int16), 16_000), r"has 100 samples at 16000 Hz in 1 channel.*the index states"),
        (flac_of(np.zeros(100, dtype=np.int16), 8_000), r"has 100 samples at 8000 Hz in 1 channel"),
        (flac_of(np.zeros((100, 2), dtype=np.int16), 16_000), r"has 100 samples at 16000 Hz in 2 channel"),
    ],
)
def test_audio_that_is_not_what_the_index_states_is_refused(root, tmp_path, payload, words):
    def replace(old: bytes, places) -> bytes:
        new = payload.ljust(len(old), b"\0")
        checksums = places.crc32.copy()
        checksums[0] = zlib.crc32(new)  # as if it had been built so
        object.__setattr__(places, "crc32", checksums)
        return new

    shard_set, shard, key = damaged_copy(root, tmp_path, replace)
    with pytest.raises(ShardError, match=f"{shard}: utterance '{key}'.*{words}"):
        list(make_loader(shard_set).epoch(0))


def test_error_of_a_thread_keeps_its_kind_and_words_and_closing_leaves_no_thread(shard_set, cache):
    for entry in shard_set.shards_of(("Train",)):
        (cache.root / entry.name).unlink()
    before = threading.active_count()
    loader = make_loader(shard_set, workers=1, teacher=cache)
    with pytest.raises(TeacherError, match=r"Train-00000\d.tar.*'u\.\d+'"):
        next(loader.epoch(0))
    loader.close()
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_tokens_are_padded_with_zeros():
    tokens, num_tokens = pad_tokens([[5, 6], [], [7]])
    assert tokens.tolist() == [[5, 6], [0, 0], [7, 0]]
    assert num_tokens.tolist() == [2, 0, 1]
