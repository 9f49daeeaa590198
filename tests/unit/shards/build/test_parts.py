"""Parts of a build, as the jobs of an array make them, and joining them: the set that one builder makes."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from ccts_dist.errors import ConfigError, CorpusError, MissingShardsError, ShardError
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.build.builder import build_all, build_part, join_parts, num_to_join, plan_build
from ccts_dist.shards.build.output import BUILDING, FolderOutput
from ccts_dist.shards.build.plan import BuildSettings, PlannedBuild
from ccts_dist.shards.build.plan_shards import Part
from ccts_dist.shards.check.check import check_shard_set
from tests.helpers.examples.shard_examples import build_example, flip_bit, make_utterances
from tests.tiers import examples


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_utterances(folder)
    return folder


@pytest.fixture(scope="module")
def utterances(corpus: Path) -> list[Utterance]:
    """Of which one cannot be used."""
    made = make_utterances(corpus)
    return [*made, dataclasses.replace(made[0], key="gone", audio=corpus / "gone.wav")]


@pytest.fixture(scope="module")
def whole(corpus: Path, utterances: list[Utterance], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one builder makes."""
    root = tmp_path_factory.mktemp("whole")
    build_example(utterances, root, corpus, max_rejected=0.1)
    assert len(list(root.glob("*.tar"))) > 5
    return files_of(root)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def planned(utterances: list[Utterance], out: Path, corpus: Path, **changes: object) -> PlannedBuild:
    options = {"corpus": "example", "release": "1", "scale": (1.0, 7.0), "targets": DIMENSIONS, "shard_bytes": 12_000}
    return plan_build(utterances, out, BuildSettings(root=corpus, **(options | changes)))


def build_parts(build: PlannedBuild, of: int, but: tuple[int, ...] = ()) -> None:
    for number in range(of, 0, -1):
        if number not in but:
            build_part(build, Part(number=number, of=of))


@examples(8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(of=st.integers(1, 12), twice=st.integers(1, 12))
def test_parts_in_any_order_give_the_bytes_of_one_builder(
    corpus: Path, utterances: list[Utterance], whole: dict[str, bytes], tmp_path_factory, of: int, twice: int
):
    out = tmp_path_factory.mktemp("parts")
    build = planned(utterances, out, corpus)
    if twice <= of:
        build_part(build, Part(number=twice, of=of))
    build_parts(build, of)
    assert not (out / "manifest.json").exists()
    summary = join_parts(out, max_rejected=0.1)
    assert files_of(out) == whole
    assert not (out / BUILDING).exists()
    assert (summary.rejected, summary.was_there) == (1, False)


def test_a_part_states_what_it_did_and_is_kept_when_it_is_built_again(
    corpus: Path, utterances: list[Utterance], tmp_path: Path
):
    build = planned(utterances, tmp_path / "s", corpus)
    seen: list[int] = []
    first = build_part(build, Part(number=1, of=2), progress=seen.append)
    assert sum(seen) == build.num_utterances(Part(number=1, of=2)) == first.num_utterances + first.rejected
    assert (first.num_reused, first.num_shards) == (0, len(build.shards[::2]))
    assert "python shards/build.py join" in first.in_words(tmp_path / "s")
    again = build_part(build, Part(number=1, of=2))
    assert again.num_reused == first.num_shards
    assert again.made_s == 0 < first.made_s


def test_a_join_names_the_shards_and_the_parts_that_are_missing(
    corpus: Path, utterances: list[Utterance], whole: dict[str, bytes], tmp_path: Path
):
    build = planned(utterances, tmp_path / "s", corpus)
    build_parts(build, 4, but=(2,))
    missing = [shard.name for shard in build.shards[1::4]]
    with pytest.raises(MissingShardsError, match=rf"{missing[0]}, {missing[1]}\. Run again: --part 2/4; then join"):
        join_parts(tmp_path / "s", max_rejected=0.1)
    assert not (tmp_path / "s" / "manifest.json").exists()
    build_part(build, Part(number=2, of=4))
    assert num_to_join(tmp_path / "s") == len(build.shards)
    join_parts(tmp_path / "s", max_rejected=0.1)
    assert files_of(tmp_path / "s") == whole
    assert num_to_join(tmp_path / "s") == 0
    assert join_parts(tmp_path / "s").was_there


def test_a_join_takes_a_damaged_shard_for_missing(corpus: Path, utterances: list[Utterance], tmp_path: Path):
    build = planned(utterances, tmp_path / "s", corpus)
    build_parts(build, 2)
    flip_bit(tmp_path / "s" / build.shards[2].name, 700)
    with pytest.raises(MissingShardsError, match=rf"1 of \d+ shards are missing.*{build.shards[2].name}.*--part 1/2"):
        join_parts(tmp_path / "s", max_rejected=0.1)
    build_part(build, Part(number=1, of=2))
    join_parts(tmp_path / "s", max_rejected=0.1)
    assert check_shard_set(tmp_path / "s") == []


def test_numbers_of_parts_may_be_mixed(
    corpus: Path, utterances: list[Utterance], whole: dict[str, bytes], tmp_path: Path
):
    build = planned(utterances, tmp_path / "s", corpus)
    build_part(build, Part(number=1, of=2))
    build_part(build, Part(number=2, of=4))
    with pytest.raises(MissingShardsError, match="Run the parts that are missing, with the same corpus and options"):
        join_parts(tmp_path / "s", max_rejected=0.1)
    build_part(build, Part(number=4, of=4))
    join_parts(tmp_path / "s", max_rejected=0.1)
    assert files_of(tmp_path / "s") == whole


def test_a_part_of_other_input_or_settings_is_refused(corpus: Path, utterances: list[Utterance], tmp_path: Path):
    build_part(planned(utterances, tmp_path / "s", corpus), Part(number=1, of=2))
    for other in (
        planned(utterances[1:], tmp_path / "s", corpus),
        planned(utterances, tmp_path / "s", corpus, shard_bytes=9000),
        planned(utterances, tmp_path / "s", corpus, release="2"),
    ):
        with pytest.raises(ConfigError, match=r"holds parts of another build .* same corpus and options"):
            build_part(other, Part(number=2, of=2))


def test_a_copy_of_the_corpus_on_another_machine_may_make_a_part(
    corpus: Path, utterances: list[Utterance], whole: dict[str, bytes], tmp_path: Path
):
    copied = make_utterances(tmp_path / "copy")
    copied.append(dataclasses.replace(copied[0], key="gone", audio=tmp_path / "copy" / "gone.wav"))
    build_part(planned(utterances, tmp_path / "s", corpus), Part(number=1, of=2))
    build_part(planned(copied, tmp_path / "s", tmp_path / "copy"), Part(number=2, of=2))
    join_parts(tmp_path / "s", max_rejected=0.1)
    assert files_of(tmp_path / "s") == whole


def test_too_many_rejected_are_compared_when_the_parts_are_joined(
    corpus: Path, utterances: list[Utterance], tmp_path: Path
):
    build_parts(planned(utterances, tmp_path / "s", corpus), 2)
    with pytest.raises(CorpusError, match=r"example: 1 of 13 utterances rejected \(7\.7%\)"):
        join_parts(tmp_path / "s")
    with pytest.raises(ConfigError, match=r"max_rejected=1\.5: must be between 0 and 1"):
        join_parts(tmp_path / "s", max_rejected=1.5)
    assert join_parts(tmp_path / "s", max_rejected=0.1).reasons == {"the audio file is missing": 1}


def test_nothing_to_join_is_reported(tmp_path: Path):
    for ask in (join_parts, num_to_join):
        with pytest.raises(MissingShardsError, match="no parts to join here"):
            ask(tmp_path)


def test_whole_builds_and_joins_wait_for_parts_but_other_parts_do_not(
    corpus: Path, utterances: list[Utterance], tmp_path: Path
):
    build = planned(utterances, tmp_path / "s", corpus)
    build_part(build, Part(number=1, of=2))
    with FolderOutput(tmp_path / "s").claim(Part(number=2, of=2)):
        with pytest.raises(ConfigError, match="another builder is at work here"):
            join_parts(tmp_path / "s")
        with pytest.raises(ConfigError, match="another builder is at work here"):
            build_example(utterances, tmp_path / "s", corpus)
        with pytest.raises(ConfigError, match="another builder of part 2/2 is at work here"):
            build_part(build, Part(number=2, of=2))
        build_part(build, Part(number=1, of=2))


def test_a_part_of_a_finished_set_has_nothing_to_do(corpus: Path, utterances: list[Utterance], tmp_path: Path):
    build = planned(utterances, tmp_path / "s", corpus)
    build_parts(build, 2)
    join_parts(tmp_path / "s", max_rejected=0.1)
    before = files_of(tmp_path / "s")
    late = build_part(build, Part(number=2, of=2))
    assert late.num_reused == late.num_shards
    assert files_of(tmp_path / "s") == before
    with pytest.raises(ConfigError, match="holds a shard set of other input or settings"):
        build_part(planned(utterances[1:], tmp_path / "s", corpus), Part(number=1, of=2))


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"no JSON\n", b"{}\n", b"", None])
def test_a_finished_set_whose_list_of_the_rejected_has_changed_is_refused_with_what_to_run(
    corpus: Path, utterances: list[Utterance], tmp_path: Path, damage: bytes | None
):
    build = planned(utterances, tmp_path / "s", corpus)
    build_all(build, max_rejected=0.1)
    (tmp_path / "s" / "rejected.jsonl").unlink()
    if damage is not None:
        (tmp_path / "s" / "rejected.jsonl").write_bytes(damage)
    asked = (
        lambda: build_all(build, max_rejected=0.1),
        lambda: build_part(build, Part(number=1, of=2)),
        lambda: num_to_join(tmp_path / "s"),
        lambda: join_parts(tmp_path / "s"),
    )
    for ask in asked:
        with pytest.raises(ShardError, match=r"rejected\.jsonl: is not .* the manifest.* python shards/check\.py .*/s"):
            ask()


def test_more_parts_than_shards_leave_some_without_work(corpus: Path, utterances: list[Utterance], tmp_path: Path):
    build = planned(utterances, tmp_path / "s", corpus)
    assert build_part(build, Part(number=50, of=50)).num_shards == 0
