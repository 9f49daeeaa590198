"""The page of all keys is the one that the dataclasses give, and says something of each of them."""

from pathlib import Path

from ccts_dist.config.reference import page

PAGE = Path("launch/runs/README.md")


def test_page_is_that_of_the_dataclasses():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m ccts_dist.config.reference > launch/runs/README.md"


def test_every_key_stands_there_with_its_range_its_default_and_a_meaning():
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    for row in rows:
        key, value, default, meaning = (cell.strip() for cell in row.strip("|").replace("\\|", "/").split("|"))
        assert key.startswith("`")
        assert value
        assert default
        assert meaning, f"{key} has no meaning"
    by_key = {row.split("`")[1]: row for row in rows}
    assert '| `"squared"`, `"norm"`, `"cosine"` | `"squared"` |' in by_key["distance"]
    assert "| whole number, at least 3 | `128` |" in by_key["max_tokens"]
    assert "| list: number | `[]` |" in by_key["target_weights"]
    assert "| **needed** |" in by_key["shards"]
    assert "| number, at least 0 or absent | absent |" in by_key["speech_factor"]
    assert "| list: whole number, at least 1 | `[64, 64]` |" in by_key["channels"]
    assert "## `[[model.also]]`" in page()
