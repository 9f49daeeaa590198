"""A probe of all layers: it finds the layer that knows, fits on training rows alone, and processes each utterance
once."""

import json
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from ccts_dist.batches import Batch
from ccts_dist.config import ModelConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError
from ccts_dist.model import build_model
from ccts_dist.probe import FrozenEncoders, Layer, ProbeSplits, open_encoders, probe_layers
from ccts_dist.probe import layer_probe as probing
from ccts_dist.probe.ridge import STRENGTHS
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.report.layer_report import NAMES, layers_in_words, make_folder, write_layers
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.shard_set import open_shard_set
from tests.helpers.models.model_shapes import save_speech_encoder, speech_config, utterances
from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.small_runs import SPEECH

SPLITS = ProbeSplits(train=("Train",), valid=("Development",), test=("Test1",))
COUNTS = {"Train": 60, "Development": 30, "Test1": 30}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Noise whose loudness states the activation; valence and dominance are drawn, every fifth has no valence."""
    folder = tmp_path_factory.mktemp("shards")
    generator = np.random.default_rng(1)
    made = []
    for split, count in COUNTS.items():
        for number in range(count):
            activation = float(generator.random())
            audio = folder / f"{split}-{number}.wav"
            samples = 1_600 + int(generator.integers(0, 3_200))
            soundfile.write(audio, (0.05 + 0.4 * activation) * generator.choice([-1.0, 1.0], samples), 16_000)
            labels = {"activation": activation, "dominance": float(generator.random())}
            if number % 5:
                labels["valence"] = float(generator.random())
            made.append(
                Utterance(
                    key=f"{split}_{number}", audio=audio, split=split, labels=labels, scale=(1.0, 7.0),
                    transcript="good rain", speaker=f"speaker {number % 6}" if number else None,
                )
            )  # fmt: skip
    build_shard_set(
        made, folder / "shards", corpus="loud", release="1", scale=(1.0, 7.0), targets=DIMENSIONS, root=folder,
        shard_bytes=60_000,
    )  # fmt: skip
    return open_shard_set(folder / "shards")


class Planted:
    """Four layers, of which only the ``knowing`` one carries the loudness, among noise; all of them are of one size."""

    encode_text = None

    def __init__(self, knowing):
        self.knowing, self.received = knowing, []

    def vectors(self, batch):
        self.received += batch.keys
        loudness = batch.audio.abs().sum(dim=1) / batch.num_samples
        vectors = {}
        for number in range(4):
            # Of the utterance alone, as a real encoder's are.
            noise = [torch.Generator().manual_seed(zlib.crc32(f"{key} {number}".encode())) for key in batch.keys]
            frames = torch.stack([torch.randn(5, generator=one) for one in noise])
            if number == self.knowing:
                frames[:, 2] = 3 * loudness + 0.01 * frames[:, 2] + 10
            vectors[Layer(encoder="speech", number=number)] = frames
        return vectors


def probe(encoders, shards, splits=SPLITS, targets=(), **options):
    return probe_layers(encoders, shards, splits, targets, ranks=Ranks(), device=torch.device("cpu"), **options)


def by_layer(result, target):
    return [score for score in result.scores if score.target == target]


@pytest.mark.parametrize("knowing", [0, 2, 3])
def test_layer_that_alone_carries_the_label_wins(shards, knowing):
    result = probe(Planted(knowing), shards)
    scores = [score.ccc for score in by_layer(result, "activation")]
    assert scores[knowing] > 0.95
    assert max(score for number, score in enumerate(scores) if number != knowing) < 0.5
    # Nothing carries the others.
    assert max(score.ccc for target in ("valence", "dominance") for score in by_layer(result, target)) < 0.6
    words = layers_in_words(result)
    assert f"activation: best on Development at speech layer {knowing} (" in words


def test_every_utterance_is_read_once(shards):
    planted = Planted(1)
    probe(planted, shards, micro=7)
    assert len(planted.received) == len(set(planted.received)) == sum(COUNTS.values())


def test_scores_are_those_of_least_squares_over_the_rows_themselves(shards):
    planted = Planted(1)
    result = probe(planted, shards)
    rows = {split: _rows_of(planted, shards, split) for split in COUNTS}
    for score in result.scores:
        place, layer = DIMENSIONS.index(score.target), score.layer
        best = (-math.inf, 0.0, 0.0)
        for strength in STRENGTHS:
            weights, intercept = _least_squares(*_labelled(rows["Train"], layer, place), strength)
            valid, test = (
                _concordance(features @ weights + intercept, labels)
                for features, labels in (_labelled(rows[split], layer, place) for split in ("Development", "Test1"))
            )
            if valid > best[0]:
                best = (valid, strength, test)
        assert (score.valid_ccc, score.ccc) == pytest.approx((best[0], best[2]), abs=1e-6)
        assert score.strength == pytest.approx(best[1])
        assert score.num_features == 5


def _rows_of(planted, shards, split):
    """(vectors by layer, labels), all rows of a split in one batch."""
    loader = probing.Loader(
        shards, (split,), batch=probing.BatchConfig(global_batch_size=100, micro_batch_size=100),
        data=probing.DataConfig(shards=str(shards.root), num_workers=0), targets=DIMENSIONS, seed=0, ranks=Ranks(),
        shuffle=False,
    )  # fmt: skip
    ((batch,),) = (step.micro_batches for step in loader.epoch(0))
    return planted.vectors(batch), batch.labels.double().numpy()


def _labelled(rows, layer, place):
    labels = rows[1][:, place]
    there = ~np.isnan(labels)
    return rows[0][layer].double().numpy()[there], labels[there]


def _least_squares(x, y, strength):
    mean, std = x.mean(0), x.std(0)
    above = np.concatenate([(x - mean) / std, np.sqrt(len(x) * strength) * np.eye(x.shape[1])])
    weights = np.linalg.lstsq(above, np.concatenate([y - y.mean(), np.zeros(x.shape[1])]), rcond=None)[0] / std
    return weights, y.mean() - mean @ weights


def _concordance(p, y):
    return 2 * np.cov(p, y, bias=True)[0, 1] / (p.var() + y.var() + (p.mean() - y.mean()) ** 2)


def test_utterances_without_a_label_are_left_out_for_that_target_alone(shards):
    result = probe(Planted(1), shards)
    assert result.num_labels["train"] == {"activation": 60, "valence": 48, "dominance": 60}
    assert result.num_labels["test"] == {"activation": 30, "valence": 24, "dominance": 30}
    alone = probe(Planted(1), shards, targets=("valence",))
    together = by_layer(result, "valence")
    assert [one.ccc for one in alone.scores] == pytest.approx([one.ccc for one in together], abs=1e-9)


def test_cut_into_batches_plays_no_part(shards):
    fine, coarse = (probe(Planted(2), shards, micro=micro) for micro in (3, 50))
    for one, other in zip(fine.scores, coarse.scores, strict=True):
        assert one.strength == other.strength
        assert (one.ccc, one.valid_ccc, *one.interval) == pytest.approx(
            (other.ccc, other.valid_ccc, *other.interval), abs=1e-5
        )


def test_interval_holds_the_score(shards):
    for score in probe(Planted(2), shards).scores:
        assert score.interval[0] < score.ccc < score.interval[1]


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (replace(SPLITS, test=("Train",)), "split 'Train' is in --train and in --test"),
        (replace(SPLITS, valid=("Test1",)), "split 'Test1' is in --valid and in --test"),
        (replace(SPLITS, valid=("Dev",)), "no split 'Dev'"),
    ],
)
def test_splits_that_would_not_do_are_refused(shards, splits, words):
    with pytest.raises(ConfigError, match=words):
        probe(Planted(1), shards, splits)


def test_what_would_not_do_is_refused(shards):
    with pytest.raises(ConfigError, match="target 'warmth' is not a label"):
        probe(Planted(1), shards, targets=("warmth",))
    with pytest.raises(ConfigError, match="--batch-size 0: must be at least 1"):
        probe(Planted(1), shards, micro=0)


def test_frames_that_are_not_finite_are_refused(shards):
    class Broken(Planted):
        def vectors(self, batch):
            vectors = super().vectors(batch)
            vectors[Layer(encoder="speech", number=3)][0, 0] = torch.nan
            return vectors

    with pytest.raises(ConfigError, match="layer 3 of the speech encoder gives frames that are not finite"):
        probe(Broken(1), shards)


def test_real_encoders_of_a_model_with_words(shards, tmp_path):
    teacher = save_small_teacher(tmp_path / "teacher")
    result = probe(open_encoders(teacher), shards)
    layers = list(dict.fromkeys((score.layer.encoder, score.layer.number) for score in result.scores))
    assert layers == [(name, number) for name in ("speech", "text") for number in range(3)]
    # Loudness is in the lower layers of any encoder that does not normalise it away; "good rain" states nothing.
    scores = {(score.layer.encoder, score.layer.number): score.ccc for score in by_layer(result, "activation")}
    assert all(abs(value) < 1e-6 for (name, _), value in scores.items() if name == "text")


def test_statistics_are_mean_and_deviation(tmp_path):
    save_speech_encoder(tmp_path / "e", "hubert, group norm")
    audio, num_samples = utterances([3_000, 1_500])
    batch = Batch(keys=("a", "b"), audio=audio, num_samples=num_samples, labels=torch.zeros(2, 3), weight=torch.ones(2))
    mean, both = (open_encoders(tmp_path / "e", pooling=pooling) for pooling in ("mean", "statistics"))
    frames = mean._model.speech.layer_frames(audio, num_samples)
    for one, (layer, vector) in zip(frames, both.vectors(batch).items(), strict=True):
        shorter = one.frames[1, : one.num_frames[1]]
        torch.testing.assert_close(vector[1, :32], shorter.mean(dim=0))
        torch.testing.assert_close(vector[1, 32:], shorter.std(dim=0, correction=0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(mean.vectors(batch)[layer], vector[:, :32])


def test_folder_of_an_encoder_is_read_as_a_run_file_would_read_it(tmp_path):
    save_speech_encoder(tmp_path / "e", "hubert, group norm", do_normalize=True)
    opened = [open_encoders(tmp_path / "e", do_normalize=how) for how in ("auto", "on", "off")]
    assert [one._model.speech.do_normalize for one in opened] == [True, True, False]


def test_run_file_gives_its_encoders_as_training_would_begin(tmp_path):
    run = tmp_path / "run.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in SPEECH["scratch"].items()]
    run.write_text(
        'name = "r"\noutput = "o"\nseed = 3\n[data]\nshards = "s"\n[model.speech]\nencoder = "scratch"\n'
        'layers = "layer:0"\n[model.speech.scratch]\n' + "\n".join(lines) + "\n"
    )
    first, second = (open_encoders(run)._model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any("encoder.layers.0" in name for name in first)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("./nowhere", "--model './nowhere': no such folder"),
        ("scratch", "--model scratch: an encoder from scratch has its shape in a run file"),
    ],
)
def test_encoder_that_is_not_there_is_refused(place, words):
    with pytest.raises(ConfigError, match=words):
        open_encoders(place)


def test_text_encoder_from_scratch_is_refused_before_it_is_trained(tmp_path):
    run = tmp_path / "run.toml"
    run.write_text(
        'name = "r"\noutput = "o"\n[data]\nshards = "s"\n[model.text]\nencoder = "scratch"\n'
        '[model.text.scratch]\nmodel_type = "bert"\n'
    )
    with pytest.raises(ConfigError, match="has no tokenizer before it is trained"):
        open_encoders(run)


def test_further_encoders_are_read_beside(shards):
    torch.manual_seed(0)
    model = build_model(ModelConfig(embedding_dim=8, speech=speech_config(), extra_speech=(speech_config(),)))
    result = probe(FrozenEncoders(model, None), shards, targets=("activation",))
    assert [(score.layer.encoder, score.layer.number) for score in result.scores] == [
        (name, number) for name in ("speech", "extra speech 0") for number in range(3)
    ]


def test_files_state_the_same(shards, tmp_path):
    result = probe(Planted(2), shards)
    make_folder(tmp_path / "out")
    words = write_layers(tmp_path / "out", result, model="planted", shards="abc")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(NAMES)
    tree = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert (tree["model"], tree["shards"], tree["splits"]["test"]) == ("planted", "abc", ["Test1"])
    assert [score["ccc"] for score in tree["scores"]] == [score.ccc for score in result.scores]
    table = (tmp_path / "out" / "layers.csv").read_text().splitlines()
    assert table[0].startswith("encoder,layer,target,ccc,low,high")
    assert len(table) == 1 + len(result.scores)
    assert words in (tmp_path / "out" / "layers.md").read_text()
    assert "| speech  |     2 |" in words
    assert (tmp_path / "out" / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        make_folder(tmp_path / "file")
