"""Padded lengths that are rounded up: few shapes for a GPU to plan for, and no number that changes."""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ccts_dist.batches import Batch
from ccts_dist.config import DataConfig, ModelConfig, SpeechConfig, read_run
from ccts_dist.loader.collate import rounded_up
from ccts_dist.loader.loader import pad_multiple
from ccts_dist.loader.micro_batches import split_global_batch
from ccts_dist.model import build_model
from ccts_dist.train.experiment import check_experiment
from tests.helpers.models.model_shapes import (
    SPEECH_FAMILIES,
    VOCABULARY,
    save_extracted_encoder,
    speech_config,
    text_config,
    transcripts,
    utterances,
)
from tests.helpers.models.plain_engine import train_plainly
from tests.helpers.processes.small_runs import SPEECH as RUN_SPEECH
from tests.helpers.processes.small_runs import build_two_kinds, read_history, write_run
from tests.unit.loader.test_micro_batches import rows_of

LENGTHS = [4_321, 2_900, 150, 4_000]
MASKED = {"apply_spec_augment": True, "mask_time_prob": 0.4, "mask_time_length": 2, "mask_feature_prob": 0.2}
BRANCHES: dict[str, SpeechConfig] = {
    "layer norm, gru": speech_config(shape=SPEECH_FAMILIES["hubert, layer norm"]),
    "group norm, mean": speech_config(pooling="mean"),
    "wav2vec2, statistics": speech_config(shape=SPEECH_FAMILIES["wav2vec2"], pooling="statistics"),
    "wavlm, attentive": speech_config(shape=SPEECH_FAMILIES["wavlm"], pooling="attentive-statistics"),
    "sew, self-attention": speech_config(shape=SPEECH_FAMILIES["sew"], pooling="self-attention"),
    "conformer, weighted layers": speech_config(shape=SPEECH_FAMILIES["conformer"], layers="weighted"),
    "filter bank, gru": SpeechConfig(encoder="filterbank"),
    "normalised": speech_config(do_normalize="on"),
    "masks by width": speech_config(shape=MASKED | {"mask_feature_length": 4}),
    "masks by length": speech_config(shape=MASKED | {"model_type": "wav2vec2", "mask_feature_length": 4}),
}


def outputs(config: ModelConfig, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding and prediction in training mode, without dropout."""
    torch.manual_seed(0)
    model = build_model(config, vocabulary_size=VOCABULARY if config.text is not None else None)
    words = transcripts([5, 3, 0, 5]) if config.text is not None else (None, None)
    torch.manual_seed(1)
    np.random.seed(1)  # which SpecAugment draws from
    with torch.no_grad():
        output = model.train()(audio, lengths, *words)
    return output.embedding, output.prediction


def check_the_same(config: ModelConfig) -> None:
    audio, lengths = utterances(LENGTHS)
    rounded = torch.zeros(len(audio), rounded_up(audio.shape[1], 4_000))
    assert rounded.shape[1] == 8_000
    rounded[:, : audio.shape[1]] = audio
    for exact, padded in zip(outputs(config, audio, lengths), outputs(config, rounded, lengths), strict=True):
        torch.testing.assert_close(padded, exact, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's own attention
@pytest.mark.parametrize("name", BRANCHES)
def test_rounding_the_length_changes_no_output(name: str):
    check_the_same(ModelConfig(embedding_dim=8, speech=BRANCHES[name]))


def test_rounding_the_length_changes_no_output_beside_words():
    check_the_same(ModelConfig(embedding_dim=8, speech=speech_config(), text=text_config()))


@pytest.mark.parametrize("family", ["whisper", "w2v-bert"])
def test_rounding_the_length_changes_no_output_of_an_encoder_with_a_feature_extractor(tmp_path: Path, family: str):
    save_extracted_encoder(tmp_path / "encoder", family)
    check_the_same(ModelConfig(embedding_dim=8, speech=SpeechConfig(encoder=str(tmp_path / "encoder"), gru_hidden=16)))


def test_losses_of_a_run_are_those_of_exact_lengths(tmp_path: Path):
    build_two_kinds(tmp_path, num_train=32)
    masked = {"speech": {**RUN_SPEECH, "spec_augment": {"mask_time_prob": 0.3, "mask_time_length": 2}}}
    losses: list[list[float]] = []
    for multiple_s in (0.0, 0.3):  # four steps of two micro-batches
        config = write_run(
            tmp_path / f"by-{multiple_s}.toml",
            tmp_path / "shards",
            tmp_path / f"by-{multiple_s}",
            data={"pad_multiple_s": multiple_s},
            model=masked,
            train={"max_steps": 4},
            batch={"micro_batch_size": 8},
        )
        losses.append([step["train/loss"] for step in read_history(train_plainly(config))])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def test_batches_are_padded_to_the_multiple(tmp_path: Path):
    build_two_kinds(tmp_path, num_train=16, num_valid=2)
    lengths: dict[float, list[int]] = {}
    for multiple_s in (0.0, 0.25):
        data = {"pad_multiple_s": multiple_s}
        config = write_run(tmp_path / "run.toml", tmp_path / "shards", tmp_path / "run", data=data)
        with check_experiment(read_run(config, ["batch.micro_batch_size=4"]), 1) as session:
            batches = [batch for step in session.loader.epoch(0) for batch in step.micro_batches]
            lengths[multiple_s] = [batch.audio.shape[1] for batch in batches]
            longest = session.loader.longest(session.loader.largest_part(4))
            assert longest == max(lengths[multiple_s])
            assert all(real_samples_alone(batch) for batch in batches)
    assert lengths[0.25] == [rounded_up(length, 4_000) for length in lengths[0.0]]
    assert lengths[0.25] != lengths[0.0]


def real_samples_alone(batch: Batch) -> bool:
    return all(not row[count:].any() for row, count in zip(batch.audio, batch.num_samples.tolist(), strict=True))


def test_lengths_are_rounded_on_gpus_unless_the_run_file_states_otherwise(monkeypatch: pytest.MonkeyPatch):
    data = DataConfig(shards="s")
    assert pad_multiple(data) == 1
    assert pad_multiple(replace(data, pad_multiple_s=0.1)) == 1_600
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pad_multiple(data) == 8_000
    assert pad_multiple(replace(data, pad_multiple_s=0.0)) == 1


def frames_of(num_samples: int) -> int:
    """Of HuBERT."""
    for kernel, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples


def shapes_of_an_epoch(micro: int, multiple: int) -> tuple[int, int]:
    """Most shapes (rows, samples) and (rows, frames) that a rank of 8 meets in an epoch of 256 utterances a step."""
    draws = random.Random(1)
    durations = [draws.lognormvariate(1.65, 0.42) for _ in range(21_000)]
    # MSP-Podcast's are 2.75 to 11 s. The plan sorts them within groups of 32 batches.
    samples = [int(duration * 16_000) for duration in durations if 2.75 <= duration <= 11]
    audio: list[set[tuple[int, int]]] = [set() for _ in range(8)]
    attention: list[set[tuple[int, int]]] = [set() for _ in range(8)]
    for start in range(0, len(samples) - 32 * 256 + 1, 32 * 256):
        group = sorted(samples[start : start + 32 * 256])
        for batch in range(0, len(group), 256):
            rows = rows_of(*group[batch : batch + 256])
            for parts in split_global_batch(rows, 8, math.ceil(256 / (micro * 8)), micro):
                for rank, part in enumerate(parts):
                    length = rounded_up(part.rows[0].num_samples, multiple)
                    audio[rank].add((len(part.rows), length))
                    attention[rank].add((len(part.rows), frames_of(length)))
    return max(map(len, audio)), max(map(len, attention))


@pytest.mark.parametrize("micro", [16, 32])
def test_an_epoch_of_msp_like_durations_has_few_shapes(micro: int):
    assert max(shapes_of_an_epoch(micro, 8_000)) <= 30
    assert shapes_of_an_epoch(micro, 1)[0] > 60, "exact lengths give a shape to nearly every pass"
