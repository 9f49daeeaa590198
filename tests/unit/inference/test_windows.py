"""Windows of long recordings: where they lie, and what is made of their answers."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import ConfigError
from ccts_dist.inference.batches import Answered, Piece
from ccts_dist.inference.windows import Curve, Windows, cut_windows, decoded_windows, windows_of


def cut(num_samples: int, windows: Windows, block: int = 1_000) -> list[tuple[int, np.ndarray]]:
    signal = np.arange(num_samples).astype(np.int16)
    blocks: Iterator[np.ndarray] = (signal[at : at + block] for at in range(0, num_samples, block))
    found = []
    for one in cut_windows(blocks, windows):
        assert not isinstance(one, str)
        found.append(one)
    return found


@pytest.mark.parametrize(
    ("num_samples", "starts"),
    [(100, [0]), (60, [0]), (160, [0, 40, 60]), (180, [0, 40, 80]), (181, [0, 40, 80, 81]), (0, [])],
)
def test_windows_begin_at_multiples_of_the_hop_and_the_last_one_ends_with_the_recording(
    num_samples: int, starts: list[int]
) -> None:
    """By hand, for a window of 100 and a hop of 40."""
    found = cut(num_samples, Windows(100, 40))
    assert [start for start, _ in found] == starts
    assert all(len(whole) == min(100, num_samples) for _, whole in found)


@given(
    num_samples=st.integers(1, 3_000),
    length=st.integers(1, 900),
    hop=st.integers(1, 900),
    block=st.integers(1, 1_000),
)
def test_every_sample_is_read_in_a_window_of_full_length_whatever_the_blocks(
    num_samples: int, length: int, hop: int, block: int
) -> None:
    hop = min(hop, length)
    found = cut(num_samples, Windows(length, hop), block)
    received = np.zeros(num_samples, dtype=bool)
    for start, whole in found:
        np.testing.assert_array_equal(whole, np.arange(start, start + len(whole)).astype(np.int16))
        assert len(whole) == min(length, num_samples)
        received[start : start + len(whole)] = True
    assert received.all()
    starts = [start for start, _ in found]
    assert starts == sorted(set(starts))
    assert starts[:-1] == [hop * number for number in range(len(starts) - 1)]
    assert starts[-1] == max(0, num_samples - length)


def test_a_reason_among_the_blocks_ends_the_windows_before_a_last_one_is_made() -> None:
    blocks = iter([np.zeros(150, dtype=np.int16), "is cut"])
    found = list(cut_windows(blocks, Windows(100, 100)))
    assert [one if isinstance(one, str) else one[0] for one in found] == [0, "is cut"]


def test_windows_of_files_come_with_their_place_and_bad_files_are_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(44_100 * 2, 100, dtype=np.int16), 44_100)
    (tmp_path / "b.wav").write_text("no audio")
    soundfile.write(tmp_path / "c.wav", np.full(4_000, 100, dtype=np.int16), 16_000)
    files = [tmp_path / f"{name}.wav" for name in "abc"]
    found = list(decoded_windows(files, windows_of(1.5, 1.0)))
    assert [
        (one.number, one.start, len(one.pcm16)) if isinstance(one, Piece) else (one.number, one.reason) for one in found
    ] == [(0, 0, 24_000), (0, 8_000, 24_000), (1, "cannot be decoded (Format not recognised)"), (2, 0, 4_000)]
    assert [one.name for one in found] == [str(files[0]), str(files[0]), str(files[1]), str(files[2])]


@pytest.mark.integration
def test_little_of_a_long_recording_is_in_memory(tmp_path: Path) -> None:
    """Ten minutes in stereo, measured by what NumPy and Python allocate."""
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 44_100, 2, subtype="PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros((441_000, 2), dtype=np.int16))
    tracemalloc.start()
    count = sum(isinstance(one, Piece) for one in decoded_windows([path], windows_of(5.0, 2.5)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 239
    assert peak < 30e6, "ten minutes are 420 MB in float64"


@pytest.mark.parametrize(
    ("window", "hop", "words"),
    [
        (0.0249, None, r"--window 0\.0249: must be 0\.025 to 600 s"),
        (601.0, None, r"--window 601: must be 0\.025 to 600 s"),
        (float("nan"), None, r"--window nan: must be"),
        (5.0, 0.0, r"--hop 0: must be above 0 and at most the window of 5 s"),
        (5.0, 5.1, r"--hop 5\.1: must be above 0 and at most the window of 5 s"),
        (5.0, -1.0, r"--hop -1: must be above 0"),
        (5.0, float("inf"), r"--hop inf: must be above 0"),
        (5.0, -7.7e307, r"--hop -7\.7e\+307: must be above 0"),
    ],
)
def test_windows_that_make_no_sense_are_refused(window: float, hop: float | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        windows_of(window, hop)


def test_windows_follow_each_other_without_a_hop() -> None:
    assert windows_of(2.0, None) == Windows(32_000, 32_000)


def _answered(start_s: float, valence: float, calm: float) -> Answered:
    answer = {"valence": valence, "category": "any", "p(calm)": calm, "p(tense)": 1 - calm}
    return Answered(
        name="a", number=0, start_s=start_s, end_s=start_s + 2, answer=answer, embedding=np.zeros(1, dtype=np.float32)
    )


def test_the_mean_of_windows_is_that_of_their_ratings_and_shares() -> None:
    curve = Curve(("valence", "category", "p(calm)", "p(tense)"), ("calm", "tense"), keep=True)
    for one in (_answered(0.0, 1.0, 0.9), _answered(1.0, 2.0, 0.3), _answered(2.0, 6.0, 0.2)):
        curve.add(one)
    mean = curve.mean()
    assert list(mean) == ["valence", "category", "p(calm)", "p(tense)"]
    assert mean["category"] == "tense"
    assert mean["valence"] == pytest.approx(3.0)
    assert (mean["p(calm)"], mean["p(tense)"]) == pytest.approx((1.4 / 3, 1.6 / 3))
    assert (curve.num_windows, curve.end_s, curve.middles_s) == (3, 4, [1, 2, 3])
