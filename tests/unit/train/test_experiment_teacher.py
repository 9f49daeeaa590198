"""What set-up makes of a teacher cache: who is distilled, and which caches it refuses."""

import itertools
import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccts_dist.config import read_run
from ccts_dist.config.credentials import public_toml
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError, TeacherError, run_main
from ccts_dist.loader.row_gate import uniform
from ccts_dist.records import DIMENSIONS, Condition, TeacherOutput
from ccts_dist.scoring import gate_from
from ccts_dist.shards import ShardSet, TeacherFacts
from ccts_dist.shards.format.teacher_cache import encode_output
from ccts_dist.shards.teacher_cache_writer import write_cache_manifest
from ccts_dist.teacher.robust import fit_without_outliers
from ccts_dist.train.experiment import Experiment, check_experiment, open_experiment
from ccts_dist.train.resolved import gate_of
from launch import train as command
from tests.helpers.examples.shard_examples import (
    CONDITION,
    EMBEDDING_SIZE,
    example_facts,
    example_output,
    example_shard_set,
    write_example_shards,
)
from tests.helpers.faults import damage
from tests.helpers.processes.small_runs import SPEECH, write_run

NUM_TRAIN = 18


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return example_shard_set(tmp_path_factory.mktemp("set"), count=24)


def plant(root: Path, shard_set: ShardSet, condition: Condition, facts: TeacherFacts | None = None) -> Path:
    """A whole cache with this condition, and these facts or the example's."""
    write_example_shards(root, shard_set)
    splits = list(shard_set.manifest.splits)
    write_cache_manifest(root, shard_set, facts or example_facts(), splits=splits, condition=condition, sums={})
    return root


def write(folder: Path, shard_set: ShardSet, cache: Path, **distill: Any) -> Path:
    """A run file of a student that learns from this cache."""
    data: Mapping[str, Any] = {
        "train_splits": ["Train"], "valid_splits": ["Development"], "test_splits": [], "teacher_cache": str(cache)
    }  # fmt: skip
    return write_run(
        folder / "run.toml", Path(shard_set.root), folder / "run", data=data,
        model={"embedding_dim": EMBEDDING_SIZE, "speech": SPEECH}, batch={"global_batch_size": 6}, distill=distill,
    )  # fmt: skip


LEAKS = {
    "fitted on held-out rows alone": (
        replace(CONDITION, splits=("Development",)),
        r"its condition was fitted on 'Development', which is not in data.train_splits = \['Train'\]",
    ),
    "fitted on training and held-out rows": (
        replace(CONDITION, splits=("Train", "Development")),
        r"its condition was fitted on 'Development', which is not in data.train_splits = \['Train'\]",
    ),
    "fitted on more rows than the splits have that it names": (
        replace(CONDITION, num_rows=(24, 16, 24)),
        rf"fitted on 24 labels of 'activation', and Train has {NUM_TRAIN} utterances: others are in it",
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_condition_that_knows_labels_outside_the_training_splits_is_refused(shard_set, tmp_path, capsys, leak: str):
    condition, words = LEAKS[leak]
    path = write(tmp_path, shard_set, plant(tmp_path / "cache", shard_set, condition))
    with pytest.raises(TeacherError, match=words):
        open_experiment(read_run(path), Ranks())
    assert run_main(command.main, ["--config", str(path), "--check"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1


def test_an_output_that_is_not_finite_ends_set_up_before_a_step_is_taken(shard_set, tmp_path):
    """Sealed, so that no checksum reports: it would open the gate, or end one rank within a step."""
    cache = plant(tmp_path / "cache", shard_set, CONDITION)
    shard = shard_set.manifest.shards_of("Train")[-1].name
    vector = np.full(EMBEDDING_SIZE + 3, np.nan, np.float32)
    output = TeacherOutput(embedding=vector[:EMBEDDING_SIZE], prediction=vector[EMBEDDING_SIZE:])
    damage.replace_payload(cache, shard, 0, "teacher.npy", encode_output(output))
    damage.bless_crc(cache, shard)
    words = rf"{shard}: teacher.npy of '{shard_set.rows(shard).keys[0]}' in {cache} holds numbers that are not finite"
    with pytest.raises(TeacherError, match=words):
        open_experiment(read_run(write(tmp_path, shard_set, cache)), Ranks())


def test_condition_of_some_of_the_training_splits_is_taken(shard_set, tmp_path):
    path = write(tmp_path, shard_set, plant(tmp_path / "cache", shard_set, replace(CONDITION, num_rows=(18, 15, 18))))
    with check_experiment(read_run(path), 1) as experiment:
        assert experiment.teacher is not None


def test_every_setting_of_the_run_file_reaches_the_terms(shard_set, tmp_path):
    cache = plant(tmp_path / "cache", shard_set, CONDITION)
    settings = {
        "embedding_weight": 2.0, "embedding_loss": "cosine", "prediction_weight": 3.0, "prediction_loss": "ccc",
        "gate": "per-dimension", "threshold": 1.5,
    }  # fmt: skip
    with check_experiment(read_run(write(tmp_path, shard_set, cache, **settings)), 1) as experiment:
        terms = experiment.objective.distill
    assert terms is not None
    assert {name: getattr(terms, name) for name in settings} == settings
    assert (terms.embedding_mean, terms.embedding_std) == (None, None)


def test_standardised_embeddings_are_in_the_units_of_the_cache(shard_set, tmp_path):
    facts = replace(example_facts(), embedding_std=(1.0, 2.0, 3.0, 4.0, 5.0))
    cache = plant(tmp_path / "cache", shard_set, CONDITION, facts)
    with check_experiment(read_run(write(tmp_path, shard_set, cache, standardize=True)), 1) as experiment:
        terms = experiment.objective.distill
    assert terms is not None
    units = [one.tolist() for one in (terms.embedding_mean, terms.embedding_std) if one is not None]
    assert units == [list(facts.embedding_mean), list(facts.embedding_std)]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 9), (0.1, 1), (0.75, 13)])
def test_share_to_leave_out_is_left_out_of_an_epoch(shard_set, tmp_path, share: float, expected: int):
    cache = plant(tmp_path / "cache", shard_set, CONDITION)
    with check_experiment(read_run(write(tmp_path, shard_set, cache, reject_fraction=share)), 2) as experiment:
        distill = experiment.objective.distill
        assert distill is not None
        assert f"to leave out {share:.1%}" in experiment.derived()["threshold"]
    with closing(
        open_experiment(read_run(write(tmp_path, shard_set, cache, reject_fraction=share)), Ranks())
    ) as experiment:
        assert experiment.objective.distill == distill
        batches = itertools.chain.from_iterable(step.micro_batches for step in experiment.loader.epoch(0))
        gate_mask = [distill.gate_mask(batch.teacher, batch.labels, batch.weight) for batch in batches if batch.teacher]
    assert sum(len(one) for one in gate_mask) == NUM_TRAIN
    assert sum(int((~one).sum()) for one in gate_mask) == expected


def test_without_a_share_nothing_of_the_cache_is_read_before_training(shard_set, tmp_path, monkeypatch):
    path = write(tmp_path, shard_set, plant(tmp_path / "cache", shard_set, CONDITION))
    monkeypatch.setattr("ccts_dist.train.resolved.threshold_rejecting", lambda *_, **__: pytest.fail("was read"))
    with check_experiment(read_run(path), 1) as experiment:
        assert experiment.objective.distill is not None
        assert experiment.objective.distill.threshold == 2.0
        assert experiment.derived()["threshold"] == "2.0000 standard deviations (any-dimension)"


def test_threshold_that_a_share_gives_stands_in_the_resolved_run_which_can_be_run_again(shard_set, tmp_path):
    cache = plant(tmp_path / "cache", shard_set, CONDITION)
    with check_experiment(read_run(write(tmp_path, shard_set, cache, reject_fraction=0.5)), 2) as experiment:
        assert experiment.run.distill is not None
        assert experiment.objective.distill is not None
        found = experiment.run.distill.threshold
        assert found == experiment.objective.distill.threshold
        assert found not in (None, 2.0)
        (tmp_path / "again.toml").write_text(public_toml(experiment.run))
    with check_experiment(read_run(tmp_path / "again.toml"), 2) as again:
        assert again.run == experiment.run


@pytest.mark.parametrize("given", [2.0, 3.0])
def test_another_threshold_beside_a_share_to_leave_out_is_refused_with_both(shard_set, tmp_path, capsys, given: float):
    cache = plant(tmp_path / "cache", shard_set, CONDITION)
    path = write(tmp_path, shard_set, cache, reject_fraction=0.5, threshold=given)
    with pytest.raises(
        ConfigError, match=rf"reject_fraction = 0\.5 gives the threshold [\d.]+, and .* = {given:g} is another"
    ):
        open_experiment(read_run(path), Ranks())
    assert run_main(command.main, ["--config", str(path), "--check"]) == 2
    assert "is another one" in capsys.readouterr().err


@pytest.mark.parametrize("gate", ["none", "soft"])
def test_gate_without_a_threshold_has_none_in_the_resolved_run(shard_set, tmp_path, gate: str):
    # As in the run files of earlier versions, which have the default in any case.
    path = write(tmp_path, shard_set, plant(tmp_path / "cache", shard_set, CONDITION), gate=gate, threshold=2.0)
    with check_experiment(read_run(path), 1) as experiment:
        assert experiment.run.distill is not None
        assert experiment.run.distill.threshold is None
        assert "threshold" not in experiment.derived()


def decisions(experiment: Experiment) -> dict[str, bool]:
    """By key of an epoch's utterances: whether they are distilled."""
    distill = experiment.objective.distill
    assert distill is not None
    found = {}
    for step in experiment.loader.epoch(0):
        for batch in step.micro_batches:
            assert batch.teacher is not None
            gate_mask = distill.gate_mask(batch.teacher, batch.labels, batch.weight)
            found.update(zip(batch.keys, gate_mask.tolist(), strict=True))
    return found


def opened(path: Path) -> dict[str, bool]:
    """The decisions of the run that a file describes."""
    with closing(open_experiment(read_run(path), Ranks())) as experiment:
        return decisions(experiment)


def test_random_gate_takes_the_share_of_the_condition_and_its_resolved_run_takes_the_same_utterances(
    shard_set, tmp_path
):
    cache = plant(tmp_path / "cache", shard_set, CONDITION)
    by_condition = opened(write(tmp_path, shard_set, cache, threshold=8.0))
    share = 1 - sum(by_condition.values()) / NUM_TRAIN
    assert 0.1 < share < 0.9
    path = write(tmp_path, shard_set, cache, gate="random", threshold=8.0)
    with closing(open_experiment(read_run(path), Ranks())) as experiment:
        assert experiment.run.distill is not None
        assert experiment.run.distill.reject_fraction == pytest.approx(share)
        assert experiment.derived()["gate"] == f"random: each utterance rejected with probability {share:.4f}"
        assert gate_of(experiment.run, experiment.condition) == {
            "gate": "random", "threshold": None, "reject_fraction": experiment.run.distill.reject_fraction, "seed": 3
        }  # fmt: skip
        first = decisions(experiment)
        (tmp_path / "again.toml").write_text(public_toml(experiment.run))
    assert first == {key: uniform(3, key) >= experiment.run.distill.reject_fraction for key in first}
    assert first != by_condition
    assert opened(tmp_path / "again.toml") == first


def test_gate_on_one_target_rejects_for_that_one_alone(shard_set, tmp_path):
    cache = plant(tmp_path / "cache", shard_set, CONDITION)
    each = {
        target: opened(write(tmp_path, shard_set, cache, threshold=8.0, gate_targets=[target])) for target in DIMENSIONS
    }
    together = opened(write(tmp_path, shard_set, cache, threshold=8.0))
    assert together == {key: all(found[key] for found in each.values()) for key in together}
    assert len({tuple(sorted(found.items())) for found in each.values()}) == 3


def test_robust_condition_is_found_from_the_cache_and_recorded(shard_set, tmp_path):
    cache = plant(tmp_path / "cache", shard_set, CONDITION)
    label, prediction = [], []
    for shard in shard_set.shards_of(("Train",)):
        rows = shard_set.rows(shard.name)
        label.append(np.stack([rows.labels[target] for target in DIMENSIONS], axis=1))
        prediction += [example_output(key).prediction for key in rows.keys]
    expected = fit_without_outliers(
        torch.from_numpy(np.stack(prediction)), torch.from_numpy(np.concatenate(label)), DIMENSIONS, ("Train",)
    )
    path = write(tmp_path, shard_set, cache, residual_scale="robust", threshold=0.5, gate_targets=["valence"])
    with closing(open_experiment(read_run(path), Ranks())) as experiment:
        condition = experiment.condition
        assert condition is not None
        assert condition.w == pytest.approx(expected.w)
        assert condition.residual_std == (np.inf, pytest.approx(expected.residual_std[1]), np.inf)
        words = "0.5000 robust standard deviations of valence (any-dimension)"
        assert experiment.derived()["threshold"] == words
        recorded = gate_of(experiment.run, condition)
        assert recorded is not None
        assert recorded["fit"]["residual_std"] == [None, pytest.approx(expected.residual_std[1]), None]
        assert not all(decisions(experiment).values())
        gate = gate_from(json.loads(json.dumps({"distill": recorded, "teacher_cache": experiment.teacher.digest})))
        assert gate.in_words() == "any-dimension at 0.5 robust standard deviations of valence"
        known = gate.on(experiment.teacher)[1]
        assert (known.w, known.b, known.residual_std) == (condition.w, condition.b, condition.residual_std)


def test_gate_by_keys_distils_those_alone_and_refuses_a_file_without_any(shard_set, tmp_path):
    cache = plant(tmp_path / "cache", shard_set, CONDITION)
    names = tmp_path / "keys.txt"
    names.write_text("MSP/ü 0.wav\nMSP/ü 4.wav\nMSP/ü 3.wav\n", encoding="utf-8")  # the last one is in Development
    path = write(tmp_path, shard_set, cache, gate="keys", gate_keys=str(names))
    with closing(open_experiment(read_run(path), Ranks())) as experiment:
        assert {key for key, gate_mask in decisions(experiment).items() if gate_mask} == {"MSP/ü 0.wav", "MSP/ü 4.wav"}
        assert experiment.derived()["gate"] == "keys: 2 of 18 utterances of Train are distilled"
        digest = experiment.plan_digest
    names.write_text("MSP/ü 0.wav\n", encoding="utf-8")
    with closing(open_experiment(read_run(path), Ranks())) as experiment:
        assert experiment.plan_digest != digest, "a resume with other keys is refused"
    names.write_text("MSP/ü 3.wav\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"none of its 1 keys is one of the 18 utterances of Train"):
        open_experiment(read_run(path), Ranks())
