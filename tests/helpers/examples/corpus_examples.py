"""Corpora as they lie on disk, in the layouts of their releases, small and with planted faults.

Each maker writes a folder and states what has to come of it: the utterances, in the terms of the source, and the faults
with their reasons. Nothing here is read by the readers' own code, so that the two can disagree.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

NUM_SAMPLES = 800
"""Of each good recording at 16 kHz: two frames of HuBERT, and not much to encode."""

MAX_DURATION_S = 0.5
"""What the examples are built with; one recording of each lasts longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceUtterance:
    """One utterance in the terms of the source, ratings on its own scale."""

    split: str
    ratings: Mapping[str, float] = field(default_factory=dict)
    transcript: str = ""
    speaker: str | None = None
    gender: str | None = None
    category: str | None = None
    raters: int | None = None
    variance: Mapping[str, float] = field(default_factory=dict)
    """On the source's scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A corpus on disk, and what has to come of it."""

    path: Path
    """What its reader is given."""

    root: Path
    """What audio is named relative to."""

    utterances: Mapping[str, SourceUtterance]
    rejected: Mapping[str, str]
    """By key: a part of the reason."""

    scale: tuple[float, float] = (1.0, 7.0)
    resampled: int = 0
    mixed_down: int = 0


FAULTY_AUDIO = {
    "gone": "missing",
    "cut": "is cut",
    "empty": "is an empty file",
    "text": "cannot be decoded",
    "short": "fewer than an encoder's first frame",
    "long": "more than 0.5 s",
    "nan": "not finite",
}
"""Names of recordings that cannot be used, and why not."""


def write_recording(path: Path, seed: int, *, rate: int = 16_000, channels: int = 1) -> None:
    """Quiet noise of ``NUM_SAMPLES`` at 16 kHz, in the format that the name's ending states."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (NUM_SAMPLES * rate // 16_000, channels)
    noise = np.random.default_rng(seed).integers(-3000, 3000, shape, dtype=np.int16)
    soundfile.write(path, noise, rate, format=path.suffix[1:].upper())


def write_faulty_audio(folder: Path, names: Mapping[str, str], suffix: str = ".wav") -> None:
    """Recordings that cannot be used: ``names`` gives each kind of ``FAULTY_AUDIO`` a file name without ending."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, name in names.items():
        path = folder / (name + suffix)
        if kind == "cut":
            write_recording(path, 1)
            os.truncate(path, path.stat().st_size // 2)
        elif kind == "empty":
            path.touch()
        elif kind == "text":
            path.write_text("404 not found\n" * 40)
        elif kind in ("short", "long"):
            soundfile.write(path, np.zeros(399 if kind == "short" else 8001), 16_000)
        elif kind == "nan":
            soundfile.write(path, np.full(NUM_SAMPLES, np.nan), 16_000, subtype="FLOAT")


def write_lines(path: Path, lines: Iterable[str | bytes], *, end: bytes = b"\n", start: bytes = b"") -> None:
    """A text file; lines that are bytes go in as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (line if isinstance(line, bytes) else line.encode() for line in lines)
    path.write_bytes(start + b"".join(line + end for line in data))


def iemocap(root: Path) -> Example:
    """IEMOCAP: two sessions, three dialogs; rater lines, junk and sub-folders as in the release."""
    printed, rejected = {}, {}
    for session, dialog, blocks in (
        ("Session1", "Ses01F_impro01", ["F000 neu 2.5 2.0 3.5", "M000 xxx 4.0 3.0 3.0", "F001 ang 1.0 5.0 4.5"]),
        ("Session1", "Ses01M_script01_1", ["F000 hap 4.5 4.0 3.0"]),
        ("Session2", "Ses02M_impro08", ["M003b exc 4.0 5.0 2.0"]),
    ):
        evaluation, transcripts = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""], []
        for at, block in enumerate(blocks):
            turn, category, *means = block.split()
            key, (val, act, dom) = f"{dialog}_{turn}", map(float, means)
            evaluation += [
                f"[{at}.2901 - {at + 1}.2357]\t{key}\t{category}\t[{val:.4f}, {act:.4f}, {dom:.4f}]",
                "C-E2:\tNeutral;\t()",
                "C-F1:\tNeutral; Anger;\t(tired)",
                f"A-E3:\tval {val + 0.5:g}; act {act:g}; dom  {dom:g};\t()",
                f"A-E4:\tval {val - 0.5:g}; act {act:g}; dom  ;\t(val 9; caf\xe9)".encode("latin-1")
                if val - 0.5 >= 1
                else f"A-E4:\tval {val:g}; act {act:g}; dom  {dom:g};\t()",
                "A-F1:\tval 1; act 1; dom  1;\t()",
                "",
            ]
            line = f"{key} [00{at}.2901-00{at + 1}.2357]: It's caf\xe9 {at},  really."
            transcripts += [line.encode("latin-1"), b"M: (laughter)"]
            low = val - 0.5 < 1
            spread = [val + 0.5, val if low else val - 0.5]
            printed[key] = SourceUtterance(
                split=session,
                ratings={"activation": act, "valence": val, "dominance": dom},
                transcript=f"It's caf\xe9 {at}, really.",
                speaker=session.replace("Session", "Ses0") + turn[0],
                gender={"F": "Female", "M": "Male"}[turn[0]],
                category=category,
                raters=2,
                variance={"activation": 0.0, "valence": float(np.var(spread)), "dominance": 0.0},
            )
            write_recording(root / session / "sentences" / "wav" / dialog / f"{key}.wav", at)
        if session == "Session2":
            faults, rejected = _iemocap_faults(root / session, dialog)
            evaluation += faults
        write_lines(root / session / "dialog" / "EmoEvaluation" / f"{dialog}.txt", evaluation, end=b"\r\n")
        write_lines(root / session / "dialog" / "transcriptions" / f"{dialog}.txt", transcripts)
    junk = root / "Session1" / "dialog" / "EmoEvaluation"
    write_lines(junk / "._Ses01F_impro01.txt", [b"Mac OS X\x00\x05\x16\x07\xff"])
    write_lines(junk / "Categorical" / "Ses01F_impro01_e1_cat.txt", ["Ses01F_impro01_F000 :Neutral state; ()"])
    write_lines(root / "Session1" / "sentences" / "wav" / "Ses01F_impro01" / "._Ses01F_impro01_F000.wav", [b"\x00\x05"])
    write_lines(root / "Documentation" / "readme.txt", ["IEMOCAP"])
    return Example(path=root, root=root, utterances=printed, rejected=rejected, scale=(1.0, 5.0))


def _iemocap_faults(session: Path, dialog: str) -> tuple[list[str], dict[str, str]]:
    """Lines with faults for an evaluation file, and the keys and reasons that come of them."""
    waves, lines, rejected = session / "sentences" / "wav" / dialog, [], {}
    faulty = {kind: f"{dialog}_F1{at:02d}" for at, kind in enumerate(FAULTY_AUDIO)}
    write_faulty_audio(waves, faulty)
    for kind, key in faulty.items():
        lines.append(f"[1.0 - 2.0]\t{key}\tneu\t[2.0, 2.0, 2.0]")
        rejected[key] = FAULTY_AUDIO[kind]
    for at, (rest, reason) in enumerate(
        [
            ("\tneu\t[5.5000, 2.0000, 2.0000]", "valence 5.5000 is off the scale 1..5"),
            ("\tneu\t[2.0000, nan, 2.0000]", "activation is NaN"),
            ("\tneu\t[2.0000, 2.0000]", "is not three ratings"),
            ("\tneu\t[2.0, 2.0, low]", "dominance 'low' is not a number"),
            ("\tneu\t[, , ]", "no label"),
            ("\tneu\t2.0, 2.0, 2.0", "neither an utterance nor a rating"),
            ("\tneu\t[2.0, 2.0, 2.0]\nA-E1:\tval 7; act 2; dom  2;\t()", "an evaluator's val 7 is off the scale 1..5"),
        ]
    ):
        key = f"{dialog}_M2{at:02d}"
        write_recording(waves / f"{key}.wav", at)
        lines += f"[1.0 - 2.0]\t{key}{rest}".split("\n")
        rejected[key] = reason
    lines.append(f"[1.0 - 2.0]\t{dialog}_M003b\thap\t[1.0, 1.0, 1.0]")
    lines.append("[1.0 - 2.0]\tSes02X_impro08_X000\thap\t[1.0, 1.0, 1.0]")
    write_recording(waves / f"{dialog}_F300.wav", 3)
    return lines, {
        **rejected,
        f"{dialog}_M003b": "duplicate of",
        "Ses02X_impro08_X000": "is not a turn's name",
        f"{dialog}_F300": "no label",
    }


COMPOSED, DECOMPOSED = "caf\xe9", "cafe\u0301"
"""Look alike, and are two keys."""

KEYS = ("a.5_1.wav", "dir/sub dir/x", "%2F 100%", "ключ 键 🔑", COMPOSED, DECOMPOSED, "..", "a\\b'\"", "x" * 180)
"""Keys that a naive archive would lose."""


def _manifest_rows() -> tuple[dict[str, SourceUtterance], list[dict]]:
    """Good rows with the keys of ``KEYS``; every third without a label, every fourth without one of the two."""
    printed, rows = {}, []
    for number, key in enumerate(KEYS):
        ratings = {"joy": float(number % 5), "calm": 2.5}
        if number % 3 == 2:
            ratings = {}
        elif number % 4 == 1:
            del ratings["joy"]
        variance = {"calm": 0.5} if "calm" in ratings else {}
        printed[key] = SourceUtterance(
            split="Test set/1" if number % 2 else "Train",
            ratings=ratings,
            transcript=f'said "{number}", \xe4nd\nmore',
            speaker=f"spk {number}",
            gender="Diverse" if number else None,
            category="glad" if number else None,
            raters=None if number == 1 else 4,
            variance=variance,
        )
        one = printed[key]
        rows.append(
            {
                "key": key,
                "audio": f"audio {number}/{number}.flac" if number else "0.ogg",
                "split": one.split,
                "transcript": one.transcript,
                "speaker": one.speaker,
                "gender": one.gender,
                "category": one.category,
                "num_raters": one.raters,
                "joy": ratings.get("joy"),
                "calm": ratings.get("calm"),
                "calm.variance": variance.get("calm"),
            }
        )
    return printed, rows


def manifest(path: Path) -> Example:
    """A manifest in CSV or, by its name's ending, JSON lines; targets joy and calm on 0..4."""
    as_json = path.suffix == ".jsonl"
    printed, rows = _manifest_rows()
    for number, row in enumerate(rows):
        write_recording(path.parent / row["audio"], number)
    rows[3]["audio"] = str((path.parent / rows[3]["audio"]).absolute())
    good = {"audio": rows[1]["audio"], "split": "Train", "calm": 2}
    faulty = {kind: f"faulty/{kind}" for kind in FAULTY_AUDIO}
    write_faulty_audio(path.parent, faulty)
    rows += [good | {"key": name, "audio": f"{name}.wav"} for name in faulty.values()]
    rejected = {name: FAULTY_AUDIO[kind] for kind, name in faulty.items()}
    for key, change, reason in (
        ("off", {"joy": 4.5}, "joy 4.5 is off the scale 0..4"),
        ("nan", {"joy": float("nan")}, "joy is NaN"),
        ("word", {"joy": "much"}, "joy 'much' is not a number"),
        ("raters", {"num_raters": -1}, "num_raters -1 is not a whole number"),
        ("spread", {"calm.variance": 99}, "calm.variance 99 is off 0..16"),
        ("nowhere", {"audio": ""}, "audio is empty"),
        ("no split", {"split": None}, "split is empty"),
        ("bell\x07", {}, "key holds a control character"),
        (KEYS[0], {}, "duplicate of line 2" if not as_json else "duplicate of line 1"),
    ):
        rows.append(good | {"key": key} | change)
        rejected[key.replace("\x07", "\\x07")] = reason
    columns = list(rows[0])
    lines: list[str | bytes] = []
    for row in rows:
        if as_json:
            lines.append(json.dumps({name: cell for name, cell in row.items() if cell is not None}, ensure_ascii=False))
        else:
            lines.append(",".join(_quoted(row.get(column)) for column in columns))
    number = len(lines) + 1
    if as_json:
        lines += [
            '{"key": "half',
            '["a list"]',
            b'{"key": "\xff", "audio": "x"}',
            '{"key": "list", "split": "Train", "audio": ["x"]}',
        ]
        rejected |= {f"line {number}": "not a JSON object", f"line {number + 1}": "not a JSON object"}
        rejected |= {"\\udcff": "key is not UTF-8", "list": "audio is no text"}
    else:
        number += 1 + sum(line.count("\n") for line in lines)
        lines += ['half,"open,Train', "cut,a.wav,Train", b"\xe9,a.wav,Train,,,,,,,,"]
        rejected |= {f"line {number}": "a quote is not closed", "cut": "3 cells, and the header has 11"}
        rejected |= {"\\udce9": "key is not UTF-8"}
        lines.insert(0, ",".join(columns))
    write_lines(path, lines, start=b"\xef\xbb\xbf")
    return Example(path=path, root=path.parent, utterances=printed, rejected=rejected, scale=(0.0, 4.0))


def _quoted(cell: object) -> str:
    text = "" if cell is None else str(cell)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text
