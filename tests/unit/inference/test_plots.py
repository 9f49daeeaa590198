"""Pictures of curves: every kind has a title and a text alternative, and the places make sense."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ccts_dist.errors import ConfigError
from ccts_dist.inference.batches import Answered
from ccts_dist.inference.plots import draw_curve, picture_in, pictures_are_in_folder
from ccts_dist.inference.windows import Curve

TARGETS = ("activation", "valence")


def curve_of(num_windows: int, name: str = "folder/talk & more.wav") -> Curve:
    curve = Curve(TARGETS, (), keep=True)
    for number in range(num_windows):
        answer = {"activation": 4 + np.sin(number / 7), "valence": 3.0 + (number == 2)}
        one = Answered(
            name=name,
            number=0,
            start_s=float(number),
            end_s=number + 2.0,
            answer=answer,
            embedding=np.zeros(1, np.float32),
        )
        curve.add(one)
    return curve


def draw(path: Path, curve: Curve) -> bytes:
    draw_curve(path, curve, targets=TARGETS, scale=(1.0, 7.0))
    return path.read_bytes()


WORDS = (
    "valence has a mean of 3.20, is lowest (3.00) at 1.0 s and highest (4.00) at 3.0 s",
    "Emotion over the 6.0 s of talk & more.wav in 5 windows: activation has a mean of",
)


def test_a_drawing_has_a_title_and_a_text_alternative(tmp_path: Path) -> None:
    root = ElementTree.fromstring(draw(tmp_path / "a.svg", curve_of(5)))
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "talk & more.wav"
    text = "".join(root.itertext())
    assert all(words in text for words in WORDS)


def test_a_png_has_both_in_its_text_chunks(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", curve_of(5))
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Title"] == "talk & more.wav"
        assert all(words in image.info["Description"] for words in WORDS)
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 3, "something is drawn"


def test_a_pdf_has_both_in_its_information(tmp_path: Path) -> None:
    data = draw(tmp_path / "a.pdf", curve_of(5))
    assert b"/Title (talk & more.wav)" in data
    assert b"/Subject (Emotion over the 6.0 s" in data


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
@pytest.mark.parametrize("num_windows", [1, 700])
def test_the_same_curve_gives_the_same_file_of_one_window_and_of_many(
    tmp_path: Path, kind: str, num_windows: int
) -> None:
    assert draw(tmp_path / f"a.{kind}", curve_of(num_windows)) == draw(tmp_path / f"b.{kind}", curve_of(num_windows))


def test_a_place_is_one_picture_or_a_folder_of_them(tmp_path: Path) -> None:
    assert not pictures_are_in_folder(tmp_path / "a.svg", 1)
    assert pictures_are_in_folder(tmp_path / "x" / "y", 1)
    assert (tmp_path / "x" / "y").is_dir()
    (tmp_path / "z.png").mkdir()
    assert pictures_are_in_folder(tmp_path / "z.png", 2)
    with pytest.raises(ConfigError, match=r"a\.svg: is one picture, and there are 2 recordings\. Name a folder"):
        pictures_are_in_folder(tmp_path / "a.svg", 2)
    with pytest.raises(ConfigError, match=r"a\.bmp: pictures are \.png, \.svg, \.pdf files"):
        pictures_are_in_folder(tmp_path / "a.bmp", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/x: cannot be made \(Not a directory\)"):
        pictures_are_in_folder(tmp_path / "file" / "x", 1)


def test_recordings_of_one_name_get_pictures_of_their_own(tmp_path: Path) -> None:
    taken: set[str] = set()
    recordings = ("x/a.wav", "y/a.wav", "z/A.wav", "b.wav")
    names = [picture_in(tmp_path, curve_of(1, name), taken).name for name in recordings]
    assert names == ["a.wav.png", "a.wav-2.png", "A.wav-3.png", "b.wav.png"]


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent/a\.png: cannot be written \(No such file or directory\)"):
        draw(tmp_path / "absent" / "a.png", curve_of(1))
