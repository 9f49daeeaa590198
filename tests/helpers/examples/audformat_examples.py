"""Look-alikes of databases in audformat, written from its published description, with a key typed by hand.

Tables of CSV are as pandas writes them, by the specification's own example; Parquet is as ``pa.Table.from_pandas``
makes it, with the types of audformat's specification: durations, categories, strings.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
from pyarrow import parquet

from ccts_dist.corpus import AnnotationColumns, read_audformat
from tests.helpers.examples.corpus_examples import (
    FAULTY_AUDIO,
    NUM_SAMPLES,
    Example,
    SourceUtterance,
    write_faulty_audio,
    write_lines,
)
from tests.helpers.examples.corpus_examples import write_recording as record

RATERS_HEADER = """\
name: small-emodb
description: "Acted: sentences"
source: https://example.org
usage: unrestricted
languages: [deu]
media:
  microphone: {type: other, format: wav, channels: 1, sampling_rate: 16000}
raters:
  gold: {type: vote}
  rater1: {type: human}
  rater2: {type: human}
schemes:
  arousal: {dtype: float, minimum: 1, maximum: 5}
  emotion:
    dtype: str
    labels: [anger, happiness]
  gender: {dtype: str, labels: [female, male]}
  speaker: {dtype: int, labels: speaker}
  transcription:
    dtype: str
    labels: {a01: Der Lappen liegt auf dem Eisschrank., a02: 'Das will sie am Mittwoch
        abgeben, ja?'}
splits:
  test: {type: test}
  train: {type: train}
tables:
  arousal:
    type: filewise
    columns:
      rater1: {scheme_id: arousal, rater_id: rater1}
      rater2: {scheme_id: arousal, rater_id: rater2}
  arousal.gold_standard:
    type: filewise
    columns:
      arousal: {scheme_id: arousal, rater_id: gold}
  emotion.test:
    type: filewise
    split_id: test
    columns:
      emotion: {scheme_id: emotion, rater_id: gold}
  emotion.train:
    type: filewise
    split_id: train
    columns:
      emotion: {scheme_id: emotion, rater_id: gold}
  files:
    type: filewise
    columns:
      speaker: {scheme_id: speaker}
      transcription: {scheme_id: transcription}
misc_tables:
  speaker:
    levels: {speaker: int}
    columns:
      gender: {scheme_id: gender}
"""

RATERS_COLUMNS = AnnotationColumns(
    targets={"arousal": "arousal.*"},
    category="emotion.*.emotion",
    text="files.transcription",
    speaker="files.speaker",
    gender="files.speaker.gender",
)

read_raters = partial(read_audformat, columns=RATERS_COLUMNS)


def raters(root: Path) -> Example:
    """Whole files in CSV: a table of two raters, a table per split, speakers in a table of their own; and faults."""
    write_lines(root / "db.yaml", [RATERS_HEADER])
    for number, name in enumerate(("one", "two", "three", "four", "off", "twice", "both")):
        record(root / "wav" / f"{name}.wav", number)
    os.rename(root / "wav" / "two.wav", root / "wav" / "two.WAV")
    write_faulty_audio(root / "wav", {"cut": "cut"})
    write_lines(
        root / "db.arousal.csv",
        ["file,rater1,rater2", "wav/one.wav,1.0,2.0", "wav/two.wav,5.0,", "wav/three.wav,,", "wav/off.wav,3.0,5.5"],
    )
    write_lines(root / "db.arousal.gold_standard.csv", ["file,arousal", "wav/one.wav,4.0"])
    rows = ["wav/one.wav,anger", "wav/two.wav,happiness", "wav/both.wav,anger", "wav/cut.wav,anger", "wav/gone.wav,"]
    write_lines(
        root / "db.emotion.train.csv",
        ["file,emotion", *rows, "../x.wav,anger", "/etc/passwd,anger", "wav/twice.wav,anger", "wav/twice.wav,anger"],
    )
    write_lines(root / "db.emotion.test.csv", ["file,emotion", "wav/three.wav,", "wav/both.wav,anger"])
    write_lines(
        root / "db.files.csv",
        ["file,speaker,transcription", "wav/one.wav,3,a01", "wav/two.wav,11,a02", "wav/three.wav,,", "wav/four.wav,3,"],
    )
    write_lines(root / "db.speaker.csv", ["speaker,gender", "3,male", "11,female"])
    return Example(
        path=root,
        root=root,
        utterances={
            "wav/one.wav": SourceUtterance(
                split="train",
                ratings={"arousal": 1.5},
                transcript="Der Lappen liegt auf dem Eisschrank.",
                speaker="3",
                gender="male",
                category="anger",
                raters=2,
                variance={"arousal": 0.25},
            ),
            "wav/two.wav": SourceUtterance(
                split="train",
                ratings={"arousal": 5.0},
                transcript="Das will sie am Mittwoch abgeben, ja?",
                speaker="11",
                gender="female",
                category="happiness",
                raters=1,
                variance={"arousal": 0.0},
            ),
            "wav/three.wav": SourceUtterance(split="test", raters=0),
        },
        rejected={
            "wav/off.wav": "db.arousal.csv line 5: arousal 5.5 is off the scale 1..5",
            "wav/both.wav": "in the splits test and train",
            "wav/gone.wav": "missing audio",
            "wav/cut.wav": FAULTY_AUDIO["cut"],
            "wav/twice.wav": "db.emotion.train.csv line 10: wav/twice.wav comes twice",
            "db.emotion.train.csv line 7": "file '../x.wav' leaves the folder of the database",
            "db.emotion.train.csv line 8": "file '/etc/passwd' leaves the folder of the database",
        },
        scale=(1.0, 5.0),
    )


SEGMENTS_HEADER = """\
name: talks
source: internal
usage: research
schemes:
  arousal: {dtype: float, minimum: 0, maximum: 1}
  speaker:
    dtype: str
    labels:
      spk1: {gender: female, age: 31}
      spk2: {gender: male, age: 85}
  text: {dtype: str}
  valence: {dtype: float, minimum: -1, maximum: 1}
splits:
  dev: {type: dev}
tables:
  dev.files: {type: filewise, split_id: dev}
  segments:
    type: segmented
    columns:
      arousal: {scheme_id: arousal}
      speaker: {scheme_id: speaker}
      text: {scheme_id: text}
      valence: {scheme_id: valence}
"""

read_segments = partial(
    read_audformat,
    columns=AnnotationColumns(
        targets={"valence": "segments.valence", "arousal": "segments.arousal"},
        text="segments.text",
        speaker="segments.speaker",
        gender="segments.speaker.gender",
    ),
)


def segments(root: Path) -> Example:
    """Segments in Parquet, of two scales, some without an end; a split that is a table of whole files."""
    write_lines(root / "db.yaml", [SEGMENTS_HEADER])
    noise = np.random.default_rng(0).integers(-3000, 3000, 4 * NUM_SAMPLES, dtype=np.int16)
    (root / "audio").mkdir(parents=True, exist_ok=True)
    soundfile.write(root / "audio" / "001.wav", noise, 16_000)
    record(root / "audio" / "002.wav", 1)
    rows = [
        ("audio/001.wav", 0, 50_000_000, 0.5, 0.25, "spk1", "Hello,\n there"),
        ("audio/001.wav", 50_000_000, 100_000_000, None, 1.0, "spk2", None),
        ("audio/002.wav", 0, None, -1.0, float("nan"), None, ""),
        ("audio/002.wav", 10_000_000, None, 0.0, 0.0, None, ""),
        ("audio/001.wav", 250_000_000, 300_000_000, 0.0, 0.0, None, ""),
    ]
    file, start, end, valence, arousal, speaker, text = zip(*rows, strict=True)
    columns = {
        "file": pa.array(file),
        "start": pa.array(start, pa.duration("ns")),
        "end": pa.array(end, pa.duration("ns")),
        "valence": pa.array(valence, pa.float64()),
        "arousal": pa.array(arousal, pa.float64()),
        "speaker": pa.array(speaker).dictionary_encode(),
        "text": pa.array(text),
    }
    parquet.write_table(pa.table(columns), root / "db.segments.parquet")
    parquet.write_table(pa.table({"file": ["audio/001.wav"]}), root / "db.dev.files.parquet")
    (root / "db.segments.pkl").write_bytes(b"never opened")
    return Example(
        path=root,
        root=root,
        utterances={
            "audio/001.wav#t=0.0,0.05": SourceUtterance(
                split="dev",
                ratings={"valence": 0.75, "arousal": 0.25},
                transcript="Hello, there",
                speaker="spk1",
                gender="female",
            ),
            "audio/001.wav#t=0.05,0.1": SourceUtterance(
                split="dev", ratings={"arousal": 1.0}, speaker="spk2", gender="male"
            ),
            "audio/002.wav": SourceUtterance(split="other", ratings={"valence": 0.0}),
        },
        rejected={
            "db.segments.parquet row 4": "begins within the file and names no end",
            "audio/001.wav#t=0.25,0.3": "its file ends at 0.20 s",
        },
        scale=(0.0, 1.0),
    )
