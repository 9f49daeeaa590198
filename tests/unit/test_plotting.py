"""The style of pictures: ticks, logarithmic axes, smoothing, SVG in the page's ink."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from ccts_dist.errors import ConfigError
from ccts_dist.plotting import color_of, drawing, legend_above, save_picture, scale_ticks, span_decades, to_svg
from ccts_dist.train.curves import smoothed


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(1, 7, [1, 3, 5, 7]), (1, 5, [1, 2, 3, 4, 5]), (0, 1, [0, 0.25, 0.5, 0.75, 1]), (-3, 3, [-3, -1, 1, 3])],
)
def test_ticks_have_both_ends_of_the_scale(low: int, high: int, ticks: list[float]):
    assert scale_ticks(float(low), float(high)) == ticks


def test_axis_is_logarithmic_where_positive_values_span_more_than_a_decade():
    assert span_decades([0.1, 1.1])
    assert not span_decades([0.1, 1.0])
    assert not span_decades([0.0, 100.0])
    assert not span_decades([-1.0, 100.0])
    assert not span_decades([])


def test_smoothing_is_the_mean_of_the_neighbours_and_of_fewer_at_the_ends():
    assert smoothed([1.0, 3.0, 8.0], 3).tolist() == [2.0, 4.0, 5.5]
    assert smoothed([1.0, 3.0, 8.0], 1).tolist() == [1.0, 3.0, 8.0]


def test_known_targets_keep_their_colours_and_others_have_their_own():
    assert len({color_of(name) for name in ("activation", "valence", "dominance")} | {color_of("calm", 0)}) == 4
    assert color_of("valence", 5) == color_of("valence")


def test_svg_is_in_the_pages_ink_and_its_ids_begin_with_its_name():
    with drawing("p0") as figure:
        figure.subplots().plot([0, 1], [0, 1], label="a < b")
        legend_above(figure, figure.axes[0])
        text = to_svg(figure, "p0", 'what "it" shows')
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-label"] == 'what "it" shows'
    assert "currentColor" in text
    assert "#010203" not in text
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert ids
    assert all(one.startswith("p0-") for one in ids)


def test_picture_that_cannot_be_written_is_named(tmp_path: Path):
    with drawing(page=False) as figure, pytest.raises(ConfigError, match=r"none/a\.png: cannot be written \(No such"):
        save_picture(figure, tmp_path / "none" / "a.png")
