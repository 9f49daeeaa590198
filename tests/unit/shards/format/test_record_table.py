"""Records kept as columns."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.shards.format.record_table import RecordTable, numbers_of, table_of, texts_of


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    place: int
    digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    count: int
    inner: Inner


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)
records = st.builds(
    Outer,
    name=texts,
    count=st.integers(-(2**60), 2**60),
    inner=st.builds(Inner, place=st.integers(0, 9), digest=st.binary(min_size=32, max_size=32).map(bytes.hex) | texts),
)


def table(some: list[Outer]) -> RecordTable[Outer]:
    made = table_of(Outer, [dataclasses.asdict(one) for one in some])
    assert made is not None
    return made


@given(st.lists(records, max_size=6))
def test_records_come_back_as_they_were(some: list[Outer]):
    kept = table(some)
    assert kept == some
    assert [kept[at - len(some)] for at in range(len(some))] == some
    assert kept[1:] == some[1:]
    assert kept[::-2] == some[::-2]
    assert texts_of(kept, "name") == texts_of(some, "name") == [one.name for one in some]
    assert numbers_of(kept, "count").tolist() == numbers_of(some, "count").tolist()


@given(st.lists(texts, unique=True, max_size=8), texts)
def test_a_record_is_found_by_its_text_and_a_missing_one_is_not(names: list[str], other: str):
    some = [Outer(name=name, count=0, inner=Inner(place=0, digest="")) for name in names]
    kept = table(some)
    assert [kept.find("name", name) for name in names] == list(range(len(names)))
    assert other in names or kept.find("name", other) is None
    assert kept.find("name", other + "x" * 99) is None
    for at, name in enumerate(names):
        assert kept.rows_where("name", name).tolist() == [at]


@pytest.mark.parametrize(
    "tree",
    [
        {"name": "a", "count": 1},
        {"name": "a", "count": True, "inner": {"place": 1, "digest": ""}},
        {"name": "a", "count": 1.0, "inner": {"place": 1, "digest": ""}},
        {"name": "a", "count": 1, "inner": {"place": 1, "digest": "", "more": 1}},
        {"name": None, "count": 1, "inner": {"place": 1, "digest": ""}},
        {"name": "a", "count": 1, "inner": []},
        {"name": "a", "count": 2**63, "inner": {"place": 1, "digest": ""}},
        {"name": "a\0", "count": 1, "inner": {"place": 1, "digest": ""}},
        [],
    ],
)
def test_what_is_not_of_the_form_makes_no_table(tree: object):
    good = {"name": "a", "count": 1, "inner": {"place": 1, "digest": ""}}
    assert table_of(Outer, [good, tree]) is None  # pyright: ignore


def test_a_place_beyond_the_end_is_refused():
    with pytest.raises(IndexError):
        table([])[0]
