"""What training is given of utterances: windows of the long ones, changed audio; the same on any ranks and threads."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.audio.augment import Augmenter
from ccts_dist.batches import StepBatches
from ccts_dist.config import AugmentConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ShardError
from ccts_dist.loader.loader import Loader
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from ccts_dist.shards.teacher_cache import TeacherCache
from tests.helpers.examples.tones import NUM_TRAIN, build_tones, make_loader, number_teacher, wave
from tests.helpers.faults.damage import flip
from tests.tiers import examples

CAP_S = 0.2
CAP = 3_200
"""Samples; utterances have 1,600 to 6,399."""

ALL = AugmentConfig(
    noises=("white", "pink", "babble"), noise_probability=0.7, snr_db=(5.0, 15.0), speed=(0.9, 1.0, 1.1)
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return build_tones(tmp_path_factory.mktemp("hearing"))


@pytest.fixture(scope="module")
def shard_set(root: Path) -> ShardSet:
    return open_shard_set(root)


@pytest.fixture(scope="module")
def cache(shard_set: ShardSet, tmp_path_factory) -> TeacherCache:
    return number_teacher(tmp_path_factory.mktemp("cache"), shard_set)


def received(steps: list[StepBatches]) -> dict[str, np.ndarray]:
    """The audio of each utterance, by key; what comes twice, beside an empty part, must be the same."""
    found: dict[str, np.ndarray] = {}
    for step in steps:
        for batch in step.micro_batches:
            for row, key in enumerate(batch.keys):
                size = int(batch.num_samples[row])
                assert not batch.audio[row, size:].any()
                own = batch.audio[row, :size].numpy().copy()
                assert key not in found or np.array_equal(found[key], own)
                found[key] = own
    return found


def clean(key: str) -> np.ndarray:
    return wave(int(key.removeprefix("u."))) / np.float32(32_768)


def place_of(window: np.ndarray, whole: np.ndarray) -> int:
    """Where a window lies in the whole; tones repeat, so the first place that fits."""
    for start in range(len(whole) - len(window) + 1):
        if np.array_equal(whole[start : start + len(window)], window):
            return start
    raise AssertionError("no window of it")


def test_long_utterances_are_cut_to_windows_whose_place_changes_with_the_epoch(shard_set):
    loader = make_loader(shard_set, max_duration_s=CAP_S)
    epochs = [received(list(loader.epoch(epoch))) for epoch in range(3)]
    moved = 0
    for key in epochs[0]:
        whole = clean(key)
        for epoch in epochs:
            assert len(epoch[key]) == min(CAP, len(whole))
        places = [place_of(epoch[key], whole) for epoch in epochs]
        moved += len(set(places)) > 1
    assert len(epochs[0]) == NUM_TRAIN
    num_long = sum(len(clean(key)) > CAP for key in epochs[0])
    assert num_long > 10
    assert moved > 0.9 * num_long


def test_windows_may_lie_anywhere(shard_set):
    loader = make_loader(shard_set, max_duration_s=CAP_S)
    row = next(row for row in loader.plan.global_batch(0, 0) if int(row.table.num_samples[row.row]) > CAP + 100)
    whole = int(row.table.num_samples[row.row])
    waveform_reader = loader._spec.waveform_reader
    assert waveform_reader is not None
    starts = [waveform_reader.crop(row, epoch).start / (whole - CAP) for epoch in range(300)]
    assert min(starts) < 0.05
    assert max(starts) > 0.95
    assert np.mean(starts) == pytest.approx(0.5, abs=0.07)


def test_plan_and_padding_go_by_what_is_read(shard_set):
    whole, capped = make_loader(shard_set), make_loader(shard_set, max_duration_s=CAP_S)
    assert whole.plan.digest != capped.plan.digest
    assert max(row.num_samples for step in range(5) for row in capped.plan.global_batch(0, step)) == CAP
    padded = real = 0
    one_window = make_loader(shard_set, max_duration_s=CAP_S, shuffle_buffer_size=99)
    for step in one_window.epoch(0):
        for batch in step.micro_batches:
            padded += batch.audio.numel()
            real += int((batch.num_samples * batch.weight.long()).sum())
    assert one_window.padding(0) == pytest.approx(1 - real / padded)
    assert capped.largest_part(3).padded_samples <= 3 * CAP < whole.largest_part(3).padded_samples


def test_a_plan_without_a_cap_is_the_one_it_was(shard_set):
    assert make_loader(shard_set).plan.digest == make_loader(shard_set, max_duration_s=0.0).plan.digest


def test_evaluation_reads_utterances_whole(shard_set):
    loader = make_loader(shard_set, max_duration_s=CAP_S, shuffle=False)
    for key, audio in received(list(loader.epoch(0))).items():
        np.testing.assert_array_equal(audio, clean(key))


def augmented(shard_set: ShardSet, config: AugmentConfig = ALL, **settings) -> Loader:
    return make_loader(shard_set, augmenter=Augmenter(config, seed=5), **settings)


@pytest.mark.parametrize("cap", [0.0, CAP_S])
def test_speed_changes_the_length_within_the_cap(shard_set, cap):
    loader = augmented(shard_set, AugmentConfig(speed=(0.8, 1.25)), max_duration_s=cap)
    lengths = set()
    for key, audio in received(list(loader.epoch(0))).items():
        whole = len(clean(key))
        possible = {-(-whole * 5 // 4), -(-whole * 4 // 5)}
        if cap:
            # Of what lasts longer at its speed as much is read as fills the cap: 2,560 samples, or 4,000.
            possible = {-(-min(whole, 2_560) * 5 // 4), -(-min(whole, 4_000) * 4 // 5)}
            assert len(audio) <= CAP
        assert len(audio) in possible
        lengths.add(len(audio) < whole)
    assert lengths == {True, False}


def test_the_longest_a_part_may_be_is_foreseen(shard_set):
    for cap, most in ((0.0, Fraction(10, 8)), (CAP_S, None)):
        loader = augmented(shard_set, AugmentConfig(speed=(0.8, 1.25)), max_duration_s=cap, shuffle_buffer_size=99)
        part = loader.largest_part(3)
        longest = loader.longest(part)
        assert longest == (CAP if most is None else -(-part.rows[0].num_samples * 10 // 8))
        largest = max(batch.audio.numel() for step in loader.epoch(0) for batch in step.micro_batches)
        assert largest <= len(part.rows) * longest + 3, "lengths are rounded up"
    assert make_loader(shard_set).longest(part) == part.rows[0].num_samples


@examples(12)
@given(num_ranks=st.integers(1, 4), workers=st.integers(0, 2), epoch=st.integers(0, 3), start=st.integers(0, 4))
def test_an_utterance_sounds_the_same_on_any_ranks_threads_and_after_a_resume(
    shard_set, num_ranks, workers, epoch, start
):
    alone = received(list(augmented(shard_set, max_duration_s=CAP_S).epoch(epoch)))
    together: dict[str, np.ndarray] = {}
    for rank in range(num_ranks):
        loader = augmented(
            shard_set, max_duration_s=CAP_S, workers=workers, ranks=Ranks(rank=rank, num_ranks=num_ranks),
            micro_batch_size=8,
        )  # fmt: skip
        together |= received(list(loader.epoch(epoch, start)))
        loader.close()
    assert len(together) > 0
    if start == 0:
        assert together.keys() == alone.keys()
    for key, audio in together.items():
        np.testing.assert_array_equal(audio, alone[key])


def test_epochs_differ_and_the_teachers_outputs_are_those_of_the_whole_clean_utterance(shard_set, cache):
    changed = augmented(shard_set, teacher=cache, max_duration_s=CAP_S)
    plain = make_loader(shard_set, teacher=cache)
    one, two = received(list(changed.epoch(0))), received(list(changed.epoch(1)))
    assert sum(not np.array_equal(one[key], two[key]) for key in one) > 0.8 * NUM_TRAIN
    for loader in (changed, plain):
        for step in loader.epoch(0):
            for batch in step.micro_batches:
                numbers = [float(key.removeprefix("u.")) for key in batch.keys]
                assert torch.equal(batch.teacher.embedding[:, 0], torch.tensor(numbers))


def test_noise_comes_at_its_ratio_in_the_batch(shard_set):
    loader = augmented(shard_set, AugmentConfig(noises=("babble",), snr_db=(6.0, 6.0)))
    for key, audio in received(list(loader.epoch(0))).items():
        own = clean(key)
        ratio = 10 * np.log10(np.mean(own**2) / np.mean((audio - own) ** 2))
        assert ratio == pytest.approx(6.0, abs=0.1)


def test_reading_changed_audio_draws_nothing_from_the_global_generators(shard_set):
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(augmented(shard_set).epoch(0))
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)


def test_a_damaged_talker_stops_the_run_or_is_left_out_of_the_babble(root, tmp_path):
    for file in root.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard_set = open_shard_set(tmp_path)
    shard = shard_set.manifest.shards[0].name
    table = shard_set.rows(shard)
    bad = table.keys[0]
    flip(tmp_path / shard, int(table.members["flac"].offset[0]) + 50, bit=1)
    config = AugmentConfig(noises=("babble",))
    with pytest.raises(ShardError, match=f"'{bad}' is damaged"):
        list(augmented(shard_set, config).epoch(0))
    damaged = [
        words
        for step in augmented(shard_set, config, damaged="skip").epoch(0)
        for batch in step.micro_batches
        for words in batch.damaged
    ]
    assert len(damaged) == 1, "the utterance itself, and none of those that it was to talk over"
