"""MSP-Podcast as its releases lie on disk, small and with planted faults; see ``corpus_examples``."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.helpers.examples.corpus_examples import (
    FAULTY_AUDIO,
    Example,
    SourceUtterance,
    write_faulty_audio,
    write_lines,
    write_recording,
)


def msp_name(number: int) -> str:
    """As MSP-Podcast names its files, without the ending."""
    return f"MSP-PODCAST_{number // 10:04d}_{number % 10:04d}"


def msp_podcast_1_6(root: Path) -> Example:
    """Release 1.6: ``labels_concensus.csv``, the split Validation, single ratings in columns, no transcripts."""
    printed, rows, detailed = {}, [], []
    for number, split in enumerate(["Train", "Train", "Train", "Validation", "Test1", "Test2"]):
        key, ratings = msp_name(number), [(number, 4, 1), (number + 1, 5, 1), (number + 2, 7, 2)]
        ratings = [tuple(max(1, rating) for rating in one) for one in ratings]
        act, val, dom = (sum(one[at] for one in ratings) / 3 for at in range(3))
        speaker = "Unknown" if number == 2 else str(100 + number)
        rows.append(f"{key}.wav,N,{act!r},{val!r},{dom!r},{speaker},Male,{split}")
        detailed += [
            f'{key}.wav,WORKER{rater:04d},Neutral,"Neutral,Concerned",{a},{v},{d}'
            for rater, (a, v, d) in enumerate(ratings)
        ]
        printed[key] = SourceUtterance(
            split=split,
            ratings={"activation": act, "valence": val, "dominance": dom},
            speaker=None if number == 2 else speaker,
            gender="Male",
            category="N",
            raters=3,
            variance={"activation": float(np.var([one[0] for one in ratings])), "valence": 14 / 9, "dominance": 2 / 9},
        )
        write_recording(root / "Audios" / f"{key}.wav", number)
    faulty = {kind: f"MSP-PODCAST_9000_{at:04d}" for at, kind in enumerate(FAULTY_AUDIO)}
    write_faulty_audio(root / "Audios", faulty)
    rows += [f"{name}.wav,A,4,4,4,7,Female,Train" for name in faulty.values()]
    rows.insert(2, f"{msp_name(0)}.wav,H,1,1,1,9,Female,Test1")
    rejected = {name: FAULTY_AUDIO[kind] for kind, name in faulty.items()}
    for at, (cells, reason) in enumerate(
        [
            ("A,8.0,4,4,7,Male,Train", "EmoAct 8.0 is off the scale 1..7"),
            ("A,4,NaN,4,7,Male,Train", "EmoVal is NaN"),
            ("A,4,4,loud,7,Male,Train", "EmoDom 'loud' is not a number"),
            ("A,,,,7,Male,Train", "no label"),
            ("A,4,4,4,7,Male,", "is not a split's name"),
            ("A,4,4,4,7", "6 cells, and the header has 8"),
        ]
    ):
        key = f"MSP-PODCAST_9001_{at:04d}"
        write_recording(root / "Audios" / f"{key}.wav", at)
        rows.append(f"{key}.wav,{cells}")
        rejected[key] = reason
    bad = "MSP-PODCAST_9002_0000"
    write_recording(root / "Audios" / f"{bad}.wav", 0)
    rows.append(f"{bad}.wav,A,4,4,4,7,Male,Train")
    detailed.append(f"{bad}.wav,WORKER0001,Angry,Angry,9,4,4")
    rejected[bad] = "EmoAct: 9 is off the scale 1..7"
    header = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"
    write_lines(root / "Labels" / "labels_concensus.csv", [header, *rows])
    header = "FileName,Workers,EmoClass_Major,EmoClass_Second,EmoAct,EmoVal,EmoDom"
    write_lines(root / "Labels" / "labels_detailed.csv", [header, *detailed])
    return Example(path=root, root=root, utterances=printed, rejected=rejected | {msp_name(0): "duplicate of line 2"})


def msp_podcast_1_11(root: Path) -> Example:
    """Release 1.11: Development, transcripts, ratings in one cell; Test3 in ``Partitions.txt`` alone; from Windows."""
    printed, rows, detailed = {}, [], ["FileName,EmoDetail"]
    partitions = ["Partitions of the corpus", ""]
    for number, split in enumerate(["Train", "Train", "Development", "Test1", "Test2"]):
        key, transcript = msp_name(number), f"well, it's “{number}” ä"
        rows.append(f"{key}.wav,H,2.5,{number + 1},6.75,{number},Female,{split}")
        detailed += [
            f'{key}.wav,"WORKER00000001; Happy; Happy,Excited; A:2.0; V:{number + 1}; D:6.5;"',
            f'{key}.wav,"WORKER00000002; Other-joy, mostly; Happy; A:3.0; V:{number + 1}; D:7;"',
        ]
        partitions.append(f"{split}; {key}.wav")
        write_recording(root / "Audios" / f"{key}.wav", number, rate=44_100 if number == 1 else 16_000, channels=1)
        write_lines(root / "Transcripts" / f"{key}.txt", [transcript])
        printed[key] = SourceUtterance(
            split=split,
            ratings={"activation": 2.5, "valence": number + 1, "dominance": 6.75},
            transcript=transcript,
            speaker=str(number),
            gender="Female",
            category="H",
            raters=2,
            variance={"activation": 0.25, "valence": 0.0, "dominance": 0.0625},
        )
    (root / "Transcripts" / f"{msp_name(4)}.txt").unlink()
    printed[msp_name(4)] = replace(printed[msp_name(4)], transcript="")
    withheld = msp_name(50)
    write_recording(root / "Audios" / f"{withheld}.wav", 50, channels=2)
    write_lines(root / "Transcripts" / f"{withheld}.txt", ["who knows"])
    partitions.append(f"Test3; {withheld}.wav")
    printed[withheld] = SourceUtterance(split="Test3", transcript="who knows")
    latin, stray, quoted = (f"MSP-PODCAST_9003_{at:04d}" for at in range(3))
    for key in (latin, stray, quoted):
        write_recording(root / "Audios" / f"{key}.wav", 3)
    rows.append(f"{latin}.wav,H,4,4,4,1,Female,Train")
    write_lines(root / "Transcripts" / f"{latin}.txt", ["café".encode("latin-1")])
    bad_bytes = f"{stray}.wav,H,4,4,4,".encode() + b"caf\xe9,Female,Train"
    lines = [
        "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set",
        *rows,
        "",
        bad_bytes,
        f'"{quoted}.wav,H,4,4,4,1,Female,Train',
    ]
    write_lines(root / "Labels" / "labels_consensus.csv", lines, end=b"\r\n", start=b"\xef\xbb\xbf")
    write_lines(root / "Labels" / "labels_detailed.csv", detailed, end=b"\r\n")
    write_lines(root / "Partitions.txt", partitions, end=b"\r\n")
    rejected = {latin: "transcript is not UTF-8", stray: "SpkrID is not UTF-8", "line 10": "a quote is not closed"}
    return Example(path=root, root=root, utterances=printed, rejected=rejected, resampled=1, mixed_down=1)


def msp_podcast_2_0(root: Path) -> Example:
    """Release 2.0: Test3 without labels, speaker Unknown, columns in another order; audio with upper-case endings."""
    printed, rows = {}, []
    splits = ["Train", "Development", "Test1", "Test2", "Test3", "Test3", "Test3"]
    withheld = {4: ("", "", "", ""), 5: ("Unknown", "Unknown", "Unknown", "Unknown"), 6: ("", "0", "0", "0")}
    for number, split in enumerate(splits):
        key = msp_name(number)
        category, act, val, dom = withheld.get(number, ("X", "1", "7", "4.2"))
        speaker = "Unknown" if number % 2 else "33"
        rows.append(f'"{split}","{key}.wav","{speaker}",Unknown,{dom},{act},{val},"{category}",3.25,"x, y"')
        ratings = {"activation": 1.0, "valence": 7.0, "dominance": 4.2}
        printed[key] = SourceUtterance(
            split=split,
            ratings={} if number in withheld else ratings,
            transcript=f"number {number}",
            speaker=None if number % 2 else "33",
            category="X" if number not in withheld else None,
        )
        write_recording(root / "Audio" / f"{key}{'.FLAC' if number == 2 else '.WAV'}", number)
        write_lines(root / "Transcripts" / f"{key}.txt", [f"number  {number}", ""])
    off, extra = "MSP-PODCAST_9004_0000", "MSP-PODCAST_9004_0001"
    for key in (off, extra):
        write_recording(root / "Audio" / f"{key}.WAV", 1)
    rows.append(f"Train,{off}.wav,33,Male,0.5,4,4,N,1,z")
    rows.append(f"Train,{extra}.wav,33,Male,4,4,4,N,1,un,quoted")
    header = "Split_Set,FileName,SpkrID,Gender,EmoDom,EmoAct,EmoVal,EmoClass,Duration,Note"
    write_lines(root / "Labels" / "labels_consensus.csv", [header, *rows])
    rejected = {off: "EmoDom 0.5 is off the scale 1..7", extra: "11 cells, and the header has 10"}
    return Example(path=root, root=root, utterances=printed, rejected=rejected)


def msp_podcast_text(root: Path) -> Example:
    """The oldest form: three text files, raters' lines below each utterance's, ``Audio`` instead of ``Audios``."""
    printed, labels, partitions, speakers = (
        {},
        [],
        ["", "Train ; no file"],
        ["Speaker_5; Female", "Speaker_6; Male", ""],
    )
    for number, split in enumerate(["Train", "Train", "Validation", "Test1"]):
        key = msp_name(number)
        labels += [
            f"{key}.wav; N; A:2.500; V:4.0; D:{'' if number == 1 else 3};",
            "WORKER00000101; Neutral; Neutral,Other; A:2; V:4; D:3;",
            "WORKER00000102; Other; Bored; A:3.0; V:4.0; D:3.0;",
            "",
        ]
        partitions.append(f"{split}; {key}.wav")
        speakers.append(f"{key}.wav; {'Unknown' if number == 3 else 5 + number % 2}")
        ratings = {"activation": 2.5, "valence": 4.0} | ({} if number == 1 else {"dominance": 3.0})
        printed[key] = SourceUtterance(
            split=split,
            ratings=ratings,
            speaker=None if number == 3 else str(5 + number % 2),
            gender=None if number == 3 else ("Male" if number % 2 else "Female"),
            category="N",
            raters=2,
            variance={"activation": 0.25, "valence": 0.0} | ({} if number == 1 else {"dominance": 0.0}),
        )
        write_recording(root / "Audio" / f"{key}.wav", number)
    rejected = {}
    for at, (line, split, reason) in enumerate(
        [
            ("N; A:2.5; V:4.0; D:3;", "", "no split: Partitions.txt does not name it"),
            ("N; A:2.5; V:; D:nan;", "Train", "D is NaN"),
            ("N; A:2.5; V:7.5; D:3;", "Train", "V 7.5 is off the scale 1..7"),
            ("N; A:2.5; V 4.0; D:3;", "Train", "no rating V: in it"),
            ("N; A:; V:; D:;", "Train", "no label"),
            ("", "Train", "no label: Labels/labels.txt does not name it"),
            ("N; A:1; V:1; D:1;", "Train+Test1", "two splits"),
        ]
    ):
        key = f"MSP-PODCAST_9005_{at:04d}"
        labels += [f"{key}.wav; {line}"] if line else []
        partitions += [f"{one}; {key}.wav" for one in split.split("+") if one]
        write_recording(root / "Audio" / f"{key}.wav", at)
        rejected[key] = reason
    labels.append("neither a file nor a rater")
    rejected[f"line {len(labels)}"] = "no label line"
    write_lines(root / "Labels" / "labels.txt", labels, end=b"\r\n")
    write_lines(root / "Partitions.txt", partitions)
    write_lines(root / "Speaker_ids.txt", speakers)
    return Example(path=root, root=root, utterances=printed, rejected=rejected)
