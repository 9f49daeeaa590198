"""Candidates that become champions, and those that do not, in a real registry with real models."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError, RegistryError
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.registry import load_student, pull_model, register
from ccts_dist.registry import promote as promoting
from ccts_dist.registry.promote import Outcome, PromotionRequest, promote
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.tracking.mlflow_client import open_client
from launch import evaluate as evaluate_command
from launch import register as command
from tests.helpers.models.small_teacher import save_small_teacher

NUM_SPEAKERS, EACH = 20, 4


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Two models, and utterances that were rated as the first would, but for a little noise."""

    good: Path
    bad: Path
    shards: str


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    folder = tmp_path_factory.mktemp("arena")
    good, bad = (
        save_small_teacher(folder / name, with_text=False, seed=seed, weights={"prediction.bias": 0.5})
        for name, seed in (("good", 1), ("bad", 2))
    )
    generator = np.random.default_rng(0)
    files = [folder / f"{number}.wav" for number in range(NUM_SPEAKERS * EACH)]
    for file in files:
        loudness = generator.uniform(100, 8_000)
        wave = generator.normal(0, loudness, int(generator.integers(1_600, 4_000)))
        soundfile.write(file, wave.clip(-32_000, 32_000).astype(np.int16), 16_000, subtype="PCM_16")
    printed = np.array([list(answer.values()) for answer in load_student(good).predict(files)])
    labels = (printed - 1) / 6
    labels += 0.3 * labels.std(axis=0) * generator.standard_normal(labels.shape)
    low, high = labels.min(), labels.max()
    assert 0 <= low < high <= 1, "the good model's head would have to be moved"
    utterances = [
        Utterance(
            key=file.stem, audio=file, split=("Test1", "Test2")[number % 2],
            labels=dict(zip(DIMENSIONS, map(float, row), strict=True)), scale=(1.0, 7.0),
            speaker=f"speaker {number % NUM_SPEAKERS}",
        )
        for number, (file, row) in enumerate(zip(files, labels, strict=True))
    ]  # fmt: skip
    build_shard_set(
        utterances, folder / "shards", corpus="arena", release="1", scale=(1.0, 7.0), targets=DIMENSIONS, root=folder
    )
    return Arena(good=good, bad=bad, shards=str(folder / "shards"))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One registry; each test has a name of its own in it."""
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"


def request(arena: Arena, name: str, **more) -> PromotionRequest:
    return PromotionRequest(name=name, shards=arena.shards, splits=("Test1", "Test2"), **more)


def run(asked: PromotionRequest, uri: str, cache: Path) -> Outcome:
    return promote(asked, ranks=Ranks(), tracking_uri=uri, cache=cache)


def champion_of(name: str, uri: str) -> str:
    return str(open_client(uri).get_registered_model(name).aliases.get("champion", ""))


def tags_of(name: str, version: str, uri: str) -> dict[str, str]:
    tags = open_client(uri).get_model_version(name, version).tags
    return {key.removeprefix("promotion."): value for key, value in tags.items() if key.startswith("promotion.")}


def stored_weights(name: str, version: str, uri: str) -> Path:
    source = open_client(uri).get_model_version(name, version).source
    assert source is not None
    return Path(source.removeprefix("file://")) / "artifacts" / "package" / "model.safetensors"


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_first_champion_then_a_better_one_and_never_a_worse_one(arena: Arena, uri: str, tmp_path: Path, capsys):
    assert register(arena.bad, "ladder", tracking_uri=uri) == "1"
    first = run(request(arena, "ladder"), uri, tmp_path)
    assert (first.verdict, first.candidate, first.champion) == ("first", "ladder/1", "")
    assert champion_of("ladder", uri) == "1"
    assert tags_of("ladder", "1", uri)["verdict"] == "first"
    assert "the first: there was none to compare it with" in first.words()

    assert register(arena.good, "ladder", tracking_uri=uri) == "2"
    better = run(request(arena, "ladder", margin=0.1), uri, tmp_path)
    assert (better.verdict, better.champion, champion_of("ladder", uri)) == ("better", "ladder/1", "2")
    assert (better.num_utterances, better.num_speakers) == (80, 20)
    tags = tags_of("ladder", "2", uri)
    assert (tags["champion"], tags["splits"], tags["speakers"], tags["margin"]) == (
        "ladder/1",
        "Test1,Test2",
        "20",
        "0.1",
    )
    assert float(tags["gain"]) == pytest.approx(float(tags["ccc"]) - float(tags["champion_ccc"]), abs=2e-6)
    assert 0.1 < float(tags["gain_low"]) < float(tags["gain"]) < float(tags["gain_high"])
    assert "20 speakers, fewer than 150" in better.words()

    again = run(request(arena, "ladder"), uri, tmp_path)
    assert (again.verdict, champion_of("ladder", uri)) == ("champion already", "2")
    assert tags_of("ladder", "2", uri) == tags, "nothing new is recorded"

    assert register(arena.bad, "ladder", tracking_uri=uri) == "3"
    args = ["--promote", "--name", "ladder", "--shards", arena.shards, "--splits", "Test1", "--tracking-uri", uri]
    assert command.main(args) == 1
    printed = capsys.readouterr().out
    assert "models:/ladder/2 stays the champion: the gain in mean over targets may be as low as -" in printed
    assert printed.count("gain -") == 4, "three targets and their mean"
    assert champion_of("ladder", uri) == "2"
    assert tags_of("ladder", "3", uri)["verdict"] == "not better"

    assert command.main([*args, "--force", "the other one overfits", "--target", "valence"]) == 0
    assert "models:/ladder/3 is the champion, by force" in capsys.readouterr().out
    assert champion_of("ladder", uri) == "3"
    tags = tags_of("ladder", "3", uri)
    assert (tags["verdict"], tags["reason"], tags["target"]) == ("forced", "the other one overfits", "valence")


def test_gain_below_the_margin_moves_nothing(arena: Arena, uri: str, tmp_path: Path):
    register(arena.bad, "strict", alias="champion", tracking_uri=uri)
    register(arena.good, "strict", tracking_uri=uri)
    outcome = run(request(arena, "strict", margin=1.9), uri, tmp_path)
    assert outcome.compared is not None
    assert outcome.compared.gain.low > 0
    assert (outcome.verdict, champion_of("strict", uri)) == ("not better", "1")


def test_alias_that_moved_during_the_comparison_is_left_where_it_is(
    arena: Arena, uri: str, tmp_path: Path, monkeypatch
):
    register(arena.bad, "race", alias="champion", tracking_uri=uri)
    register(arena.bad, "race", alias="", tracking_uri=uri)
    register(arena.good, "race", tracking_uri=uri)
    compared = promoting._decided

    def somebody_else_is_faster(*args):
        open_client(uri).set_registered_model_alias("race", "champion", "2")
        return compared(*args)

    monkeypatch.setattr(promoting, "_decided", somebody_else_is_faster)
    with pytest.raises(
        RegistryError, match="models:/race@champion is no longer race/1, which race/3 was compared with"
    ):
        run(request(arena, "race"), uri, tmp_path)
    assert champion_of("race", uri) == "2"
    assert tags_of("race", "3", uri) == {}


def test_promoted_model_that_was_altered_in_the_store_is_refused_with_file_and_digests(
    arena: Arena, uri: str, tmp_path: Path
):
    register(arena.good, "altered", tracking_uri=uri)
    assert run(request(arena, "altered"), uri, tmp_path / "before").verdict == "first"
    true = open_client(uri).get_model_version("altered", "1").tags["weights_sha256"]
    alter(stored_weights("altered", "1", uri))
    refused = (
        rf"^model\.safetensors: its SHA-256 is [0-9a-f]{{64}}, and digests\.json, which the registry's tag of "
        rf"models:/altered/1 vouches for, states {true}"
    )
    with pytest.raises(RegistryError, match=refused):
        pull_model("models:/altered@champion", tracking_uri=uri, cache=tmp_path / "elsewhere")
    # What was fetched before is sound and is used; altered on disk too, it is not.
    pulled = pull_model("models:/altered@champion", tracking_uri=uri, cache=tmp_path / "before")
    alter(pulled.folder / "model.safetensors")
    with pytest.raises(RegistryError, match=refused):
        pull_model("models:/altered@champion", tracking_uri=uri, cache=tmp_path / "before")


@pytest.mark.parametrize("whose", ["candidate", "champion"])
def test_model_that_was_altered_takes_part_in_no_comparison(arena: Arena, uri: str, tmp_path: Path, whose: str):
    name = f"altered {whose}"
    register(arena.bad, name, alias="champion", tracking_uri=uri)
    register(arena.good, name, tracking_uri=uri)
    alter(stored_weights(name, "2" if whose == "candidate" else "1", uri))
    with pytest.raises(RegistryError, match=r"model\.safetensors: its SHA-256 is"):
        run(request(arena, name), uri, tmp_path)
    assert champion_of(name, uri) == "1"


def test_page_of_an_evaluation_goes_into_the_run_of_the_model(arena: Arena, uri: str, tmp_path: Path):
    register(arena.good, "tracked", tracking_uri=uri)
    args = [
        "--shards",
        arena.shards,
        "--splits",
        "Test1",
        "--out",
        str(tmp_path),
        "--tracking-uri",
        uri,
        "--log-to-mlflow",
    ]
    assert evaluate_command.main(["--model", "models:/tracked@candidate", *args]) == 0
    client = open_client(uri)
    run_id = client.get_model_version("tracked", "1").run_id
    assert run_id is not None
    stored = client.download_artifacts(run_id, "evaluation/report.html", str(tmp_path))
    assert Path(stored).read_bytes() == (tmp_path / "report.html").read_bytes()
    assert "Evaluation of tracked/1" in Path(stored).read_text()
    with pytest.raises(ConfigError, match=r"good: the run it comes from was not tracked.*Leave --log-to-mlflow out"):
        evaluate_command.main(["--model", str(arena.good), *args])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"margin": -0.1}, r"--margin -0\.1: must be a CCC of 0 or more"),
        ({"margin": float("nan")}, r"--margin nan: must be a CCC of 0 or more"),
        ({"alias": "a/b"}, r"alias 'a/b': must not be empty"),
    ],
)
def test_contest_that_cannot_be_is_refused_before_the_registry_is_asked(arena: Arena, tmp_path: Path, more, words):
    with pytest.raises(ConfigError, match=words):
        run(request(arena, "none", **more), "http://127.0.0.1:9", tmp_path)


def test_contest_on_no_split_is_refused(arena: Arena):
    with pytest.raises(ConfigError, match="--splits: none is given"):
        PromotionRequest(name="none", shards=arena.shards, splits=()).check()


def test_target_that_the_models_do_not_predict_is_refused(arena: Arena, uri: str, tmp_path: Path):
    register(arena.bad, "untargeted", tracking_uri=uri)
    with pytest.raises(ConfigError, match=r"--target 'arousal': must be predicted by candidate and champion"):
        run(request(arena, "untargeted", target="arousal"), uri, tmp_path)
    assert champion_of("untargeted", uri) == ""
