"""The reader of EmoBox's metadata against damaged copies."""

import json
from pathlib import Path

import pytest

from ccts_dist.corpus import read_emobox
from ccts_dist.errors import CorpusError
from ccts_dist.records import Rejected
from tests.helpers.examples import open_examples


@pytest.mark.parametrize(
    ("damage", "words"),
    [("no test", "looked for one .*_test_fold.*jsonl and found"), ("map", "is no map from labels to names"),
     ("broken", "label_map.json: cannot be read"), ("audio", "gone: no such folder"),
     ("lines", "no line in its files")],
)  # fmt: skip
def test_fold_of_emobox_that_is_none_is_refused_in_one_line(damage: str, words: str, tmp_path: Path):
    fold = open_examples.emobox(tmp_path).path
    if damage == "no test":
        (fold / "small_test_fold_2.jsonl").unlink()
    elif damage == "lines":
        for path in fold.glob("*.jsonl"):
            path.write_text("\n")
    elif damage != "audio":
        (fold.parent / "label_map.json").write_text('["a"]' if damage == "map" else "{")
    with pytest.raises(CorpusError, match=words) as caught:
        read_emobox(fold, audio=tmp_path / "gone" if damage == "audio" else tmp_path)
    assert "\n" not in str(caught.value)


def test_lines_of_emobox_with_a_key_twice_or_a_control_character_are_rejected(tmp_path: Path):
    fold = open_examples.emobox(tmp_path).path
    path = fold / "small_test_fold_2.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    path.write_text("\n".join(json.dumps(one) for one in (row, row, row | {"key": "other", "emo": "a\x01"})))
    reasons = [one.reason for one in read_emobox(fold, audio=tmp_path).utterances if isinstance(one, Rejected)]
    assert reasons[-2:] == [
        "small_test_fold_2.jsonl line 2: duplicate of small_test_fold_2.jsonl line 1, which comes first",
        "small_test_fold_2.jsonl line 3: emo holds a control character",
    ]


def test_one_line_of_emobox_that_cannot_be_read_does_not_end_the_build(tmp_path: Path):
    fold = open_examples.emobox(tmp_path).path
    path = fold / "small_test_fold_2.jsonl"
    line = path.read_text().splitlines()[0]
    long = line.replace('"end_time": 0.1', f'"end_time": 1{"0" * 400}')
    twice = line.replace('"emo": "a"', '"emo": "a", "emo": "h"')
    folder = line.replace("downloads/", f"downloads/{'x' * 300}/").replace("test-0", "test-8")
    assert len({line, long, twice, folder}) == 4
    path.write_text("\n".join((long, twice, folder, line.replace("test-0", "test-9"))))
    found = [one for one in read_emobox(fold, audio=tmp_path).utterances if one.key != "small-train-1"][-4:]
    where = "small_test_fold_2.jsonl line"
    assert [one.reason if isinstance(one, Rejected) else one.key for one in found][:2] == [
        f"{where} 1: start_time and end_time are no numbers of seconds",
        f"{where} 2: not a JSON object: 'emo' comes twice",
    ]
    assert isinstance(found[2], Rejected)
    assert "cannot be listed (File name too long)" in found[2].reason
    assert found[3].key == "small-test-9"
