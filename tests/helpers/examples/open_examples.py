"""Look-alikes of corpora that anyone can get, written from their published descriptions, with a key typed by hand.

As in ``corpus_examples`` nothing here is read by the readers' own code. Splits by speaker are written out: of each
group, in the order of names, the speakers go to Train, Train, Train, Development, Test, and from the front again.
"""

import json
from pathlib import Path

import numpy as np
import soundfile

from tests.helpers.examples.corpus_examples import (
    FAULTY_AUDIO,
    NUM_SAMPLES,
    Example,
    SourceUtterance,
    write_faulty_audio,
    write_lines,
)
from tests.helpers.examples.corpus_examples import write_recording as record

_SHARES = ("anger", "disgust", "fear", "happy", "neutral", "sad")


def ravdess(root: Path) -> Example:
    """Ten actors; songs and video beside the speech, which are passed over; a copy and impossible codes."""
    splits = {"01 02 03 04 05 06": "Train", "07 08": "Development", "09 10": "Test"}
    printed = {}
    for actors, split in splits.items():
        for actor in actors.split():
            woman = actor in ["02", "04", "06", "08", "10"]
            for code, category, strong in (("03-01-01-01-02-01", "neutral", 0), ("03-01-06-02-01-02", "fearful", 1)):
                key = f"{code}-{actor}"
                record(root / f"Actor_{actor}" / f"{key}.wav", int(actor))
                printed[key] = SourceUtterance(
                    split=split,
                    ratings={"intensity": 1.0 + strong},
                    transcript="Kids are talking by the door" if strong else "Dogs are sitting by the door",
                    speaker=actor,
                    gender="Female" if woman else "Male",
                    category=category,
                )
    for junk in ("03-02-03-01-01-01-01.wav", "01-01-03-01-01-01-01.wav", "._03-01-01-01-02-01-01.wav", "hello.wav"):
        record(root / "Actor_01" / junk, 5)
    for broken in ("03-01-09-01-01-01-01", "03-01-01-03-01-01-01", "03-01-01-01-01-01-25"):
        record(root / "Actor_01" / f"{broken}.wav", 6)
    write_faulty_audio(root / "Actor_02", {"cut": "03-01-08-01-01-01-02"})
    return Example(
        path=root,
        root=root,
        utterances=printed,
        rejected={
            "03-01-09-01-01-01-01": "emotion 09 is not from 01 to 08",
            "03-01-01-03-01-01-01": "intensity 03 is not from 01 to 02",
            "03-01-01-01-01-01-25": "actor 25 is not from 01 to 24",
            "03-01-08-01-01-01-02": FAULTY_AUDIO["cut"],
        },
        scale=(1.0, 2.0),
    )


def emodb(root: Path) -> Example:
    """All ten speakers, with the folders of labels beside ``wav``."""
    printed = {}
    speakers = {
        **dict.fromkeys(("03", "10", "11", "08", "09", "13"), "Train"),
        **dict.fromkeys(("12", "14"), "Development"),
        **dict.fromkeys(("15", "16"), "Test"),
    }
    for number, (speaker, split) in enumerate(speakers.items()):
        letter, category = list(zip("WLEAFTN", _EMODB, strict=True))[number % 7]
        key = f"{speaker}a01{letter}" + ("b" if number % 2 else "")
        record(root / "wav" / f"{key}.wav", number)
        printed[key] = SourceUtterance(
            split=split,
            transcript="Der Lappen liegt auf dem Eisschrank.",
            speaker=speaker,
            gender="Male" if speaker in ("03", "10", "11", "12", "15") else "Female",
            category=category,
        )
    record(root / "wav" / "17a01Wa.wav", 1)
    record(root / "wav" / "03a03Wa.wav", 1)
    write_lines(root / "lablaut" / "03a01Fa.lablaut", ["signal 03a01Fa"])
    rejected = {"17a01Wa": "speaker 17 is none of", "03a03Wa": "sentence a03 is none of"}
    return Example(path=root, root=root, utterances=printed, rejected=rejected, scale=(0.0, 1.0))


_EMODB = ("anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral")


def tess(root: Path) -> Example:
    """Both speakers, the spellings of the folders as they are, and the name that lacks a letter."""
    printed = {}
    for path, speaker, word, category in (
        ("OAF_angry/OAF_back_angry", "OAF", "back", "angry"),
        ("OAF_neutral/OA_bite_neutral", "OAF", "bite", "neutral"),
        ("OAF_Pleasant_surprise/OAF_bar_ps", "OAF", "bar", "pleasant surprise"),
        ("YAF_pleasant_surprised/YAF_bar_ps", "YAF", "bar", "pleasant surprise"),
        ("YAF_sad/YAF_home_sad", "YAF", "home", "sad"),
    ):
        record(root / "TESS" / f"{path}.wav", 1, rate=24_414)
        printed[path.rpartition("/")[2]] = SourceUtterance(
            split=speaker, transcript=f"Say the word {word}", speaker=speaker, gender="Female", category=category
        )
    record(root / "copy" / "OAF_angry" / "OAF_back_angry.wav", 2, rate=24_414)  # not the same
    record(root / "copy" / "YAF_sad" / "YAF_home_sad.wav", 1, rate=24_414)
    record(root / "TESS" / "OAF_angry" / "OAF_back_cross.wav", 1)
    return Example(
        path=root,
        root=root,
        utterances=printed,
        rejected={
            "OAF_back_angry": "duplicate of TESS/OAF_angry/OAF_back_angry.wav",
            "OAF_back_cross": "emotion cross is none of",
        },
        scale=(0.0, 1.0),
        resampled=5,
    )


def crema_d(root: Path) -> Example:
    """Six actors and their votes: by voice, by face and by both; ties, a clip without votes, a count that is none."""
    header = ["", "A", "D", "F", "H", "N", "S", "fileName", "numResponses", "agreement", "emoVote", "meanEmoResp"]
    rows = [",".join(f'"{column}"' for column in header)]
    printed = {}
    for number, (key, counts, split, gender) in enumerate(
        (
            ("1001_IEO_ANG_LO", "5 5 0 0 1 1", "Train", "Male"),
            ("1002_IEO_HAP_XX", "0 0 0 3 1 0", "Train", "Female"),
            ("1002_DFA_NEU_XX", "", "Train", "Female"),
            ("1003_ITH_SAD_X", "0 0 0 0 0 4", "Train", "Female"),
            ("1004_TSI_DIS_HI", "1 8 1 0 0 0", "Development", "Female"),
            ("1004_DFA_ANG_HI", "3 1 0 0 0 0", "Development", "Female"),
            ("1005_MTI_FEA_MD", "1 1 2 0 0 0", "Test", "Male"),
            ("1006_WSI_ANG_XX", "7 3 0 0 0 0", "Train", None),
        ),
        start=1,
    ):
        record(root / "AudioWAV" / f"{key}.wav", number)
        votes = [int(count) for count in counts.split()]
        total = sum(votes)
        if votes:
            rows.append(f'"{100_000 + number}",{",".join(counts.split())},"{key}",{total},0.5,"A:D",50.5')
            rows.append(f'"{200_000 + number}",0,0,0,0,9,0,"{key}",9,1,"N",50.5')
            rows.append(f'"{300_000 + number}",0,9,0,0,0,0,"{key}",9,1,"D",50.5')
        shares = {name: votes[at] / total for at, name in enumerate(_SHARES)} if votes else {}
        printed[key] = SourceUtterance(
            split=split,
            ratings=shares,
            transcript=_CREMA_SENTENCES[key[5:8]],
            speaker=key[:4],
            gender=gender,
            category=_CREMA_EMOTIONS[key[9:12]],
            raters=total or None,
            variance={name: share - share**2 for name, share in shares.items()},
        )
    rejected = {"1001_IOM_ANG_XX": "a count 'many' is not a number", "1001_IWW_ANG_XX": "no vote"}
    for number, (key, cell) in enumerate(zip(rejected, ("many", "0"), strict=True), start=50):
        record(root / "AudioWAV" / f"{key}.wav", number)
        rows.append(f'"{100_000 + number}",{cell},0,0,0,0,0,"{key}",9,1,"D",50.5')
    rejected["1001_XXX_ANG_XX"] = "sentence XXX is none of"
    record(root / "AudioWAV" / "1001_XXX_ANG_XX.wav", 3)
    record(root / "AudioMP3" / "1001_IEO_ANG_LO.mp3", 3)
    write_lines(root / "processedResults" / "tabulatedVotes.csv", rows)
    sexes = enumerate(("Male", "Female", "Female", "Female", "Male"), start=1001)
    people = [f'{actor},51,"{sex}","Caucasian","Not Hispanic"' for actor, sex in sexes]
    write_lines(root / "VideoDemographics.csv", ['"ActorID","Age","Sex","Race","Ethnicity"', *people])
    return Example(path=root, root=root, utterances=printed, rejected=rejected, scale=(0.0, 1.0))


_CREMA_SENTENCES = {
    "IEO": "It's eleven o'clock",
    "DFA": "Don't forget a jacket",
    "ITH": "I think I have a doctor's appointment",
    "TSI": "The surface is slick",
    "MTI": "Maybe tomorrow it will be cold",
    "WSI": "We'll stop in a couple of minutes",
}
_CREMA_EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}


def esd(root: Path) -> Example:
    """Speakers of both languages; one with the folders of the release's own splits; text files of three encodings."""
    printed = {}
    for speaker, split, gender, encoding in (
        ("0001", "Train", "Female", "gb18030"),
        ("0004", "Train", "Male", "utf-16"),
        ("0011", "Train", "Male", "utf-8-sig"),
        ("0012", "Train", "Male", "utf-8"),
        ("0013", "Train", "Male", "utf-8"),
        ("0014", "Development", "Male", "utf-8"),
        ("0020", "Test", "Male", "utf-8"),
    ):
        sentence = "打远一看 它们的确很是美丽" if speaker < "0011" else "The nine the eggs, I keep."
        lines = []
        for number, emotion in enumerate(("Neutral", "Angry", "Surprise")):
            key = f"{speaker}_{350 * number + 1:06d}"
            below = "evaluation" if speaker == "0011" else "."
            record(root / "Emotion Speech Dataset" / speaker / emotion / below / f"{key}.wav", number)
            spelt = {"Neutral": "中立", "Angry": "生气", "Surprise": "惊喜"}[emotion] if speaker < "0011" else emotion
            if number < 2:
                lines.append(f"{key}\t{sentence}\t{spelt}")
            printed[key] = SourceUtterance(
                split=split, transcript=sentence if number < 2 else "", speaker=speaker, gender=gender, category=emotion
            )
        text = "\r\n".join([*lines, "", "no key"])
        (root / "Emotion Speech Dataset" / speaker / f"{speaker}.txt").write_bytes(text.encode(encoding))
    folder = root / "Emotion Speech Dataset" / "0011"
    record(folder / "Cross" / "0011_000009.wav", 1)
    record(folder / "Angry" / "0021_000009.wav", 1)
    rejected = {"0011_000009": "lies in no folder named", "0021_000009": "speaker 0021 is not from 0001 to 0020"}
    return Example(path=root, root=root, utterances=printed, rejected=rejected, scale=(0.0, 1.0))


def meld(root: Path) -> Example:
    """Three splits with equal names of clips, audio beside the video; a clip of video alone, and rows with faults."""
    columns = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
    times = '8,21,"00:16:16,059","00:16:21,731"'
    printed = {}
    for split, folder in (
        ("train", "train_splits"),
        ("dev", "dev_splits_complete"),
        ("test", "output_repeated_splits_test"),
    ):
        rows = [columns]
        for number, (emotion, sentiment, label) in enumerate(
            (("joy", "positive", 1.0), ("neutral", "neutral", 0.0), ("sadness", "negative", -1.0))
        ):
            clip = f"dia0_utt{number}"
            record(root / folder / f"{clip}.wav", number)
            write_lines(root / folder / f"{clip}.mp4", [b"\0\0\0\x20ftypisom"])
            rows.append(
                f'{number},"Oh my God, he\x92s  lost it.\nTotally.",Rachel,{emotion},{sentiment},0,{number},{times}'
            )
            printed[f"{split}_{clip}"] = SourceUtterance(
                split=split,
                ratings={"sentiment": label},
                transcript="Oh my God, he\N{RIGHT SINGLE QUOTATION MARK}s lost it. Totally.",
                speaker="Rachel",
                category=emotion,
            )
        if split == "test":
            write_lines(root / folder / "dia1_utt0.mp4", [b"\0\0\0\x20ftypisom"])
            rows += [
                f"9,What?,Ross,anger,{mood},{place},{times}" for mood, place in (("negative", "1,0"), ("so", "0,1"))
            ]
            record(root / folder / "dia2_utt0.wav", 1)
            rows.append(f"10,What?,Ross,anger,so,2,0,{times}")
            record(root / folder / "final_videos_testdia0_utt1.wav", 1)
        write_lines(root / f"{split}_sent_emo.csv", rows)
    rejected = {
        "test_dia1_utt0": "missing audio",
        "test_dia0_utt1": "duplicate of line 4",
        "test_dia2_utt0": "Sentiment 'so' is none of negative, neutral, positive",
    }
    return Example(path=root, root=root, utterances=printed, rejected=rejected, scale=(-1.0, 1.0))


def cmu_mosei(root: Path) -> Example:
    """Recordings of three, two and two segments, one with its transcript; a row of no fold and impossible intervals."""
    second = NUM_SAMPLES / 16_000
    rows = [",file,index,start,end,label2a,label2b,label6,label7,split"]
    printed = {}
    for number, name in enumerate(("-3g5yACwYnA", "a_b___c", "257771")):
        path = root / "Raw" / "Audio" / "Full" / "WAV_16000" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(-3000, 3000, 4 * NUM_SAMPLES, dtype=np.int16)
        soundfile.write(path, noise, 16_000)
        lines = []
        for index in range(2 if number else 3):
            start, end = index * second, (index + 1) * second
            emotion, sentiment = ("happy", "sad", "fear")[index], (-3, 0, 2)[index]
            shown = -0.1 if not index else start  # some intervals begin before their recording
            rows.append(f"{index},{name},{index},{shown},{end},0,0,{(0, 1, 5)[index]},{sentiment},{number}")
            lines.append(f"{name}___{7 - index}___{shown}___{end}___And so,  that's\tit {index}___")
            printed[f"{name}_{index}"] = SourceUtterance(
                split=("train", "valid", "test")[number],
                ratings={"sentiment": float(sentiment)},
                transcript="" if number else f"And so, that's it {index}___",
                speaker=name,
                category=emotion,
            )
        if not number:
            write_lines(root / "Raw" / "Transcript" / "Segmented" / "Combined" / f"{name}.txt", [*lines, "junk"])
    for index, (cells, _) in enumerate(_MOSEI_FAULTS, start=10):
        rows.append(f"{index},{cells.split(',')[0]},{index},{cells.partition(',')[2]}")
    write_lines(root / "CMU_MOSEI_Labels.csv", rows)
    rejected = {
        f"{cells.split(',')[0]}_{index}": reason for index, (cells, reason) in enumerate(_MOSEI_FAULTS, start=10)
    }
    return Example(path=root, root=root, utterances=printed, rejected=rejected, scale=(-3.0, 3.0))


_MOSEI_FAULTS = (
    ("257771,0.0,0.05,0,0,0,1,3", "split 3 is of no fold"),
    ("257771,0.0,0.05,0,0,6,1,0", "label6 6 is not from 0 to 5"),
    ("257771,0.0,0.05,0,0,0,4,0", "label7 4 is off the scale -3..3"),
    ("257771,0.05,0.05,0,0,0,1,0", "span nothing"),
    ("257771,0.05,nan,0,0,0,1,0", "end is NaN"),
    ("257771,0.1,0.9,0,0,0,1,2", "lasts 0.8 s, more than 0.5 s"),
    ("257771,0.6,0.9,0,0,0,1,2", "lasts from 0.60 to 0.90 s, and its file ends at 0.20 s"),
    ("gone,0.0,0.05,0,0,0,1,0", "missing audio"),
)


def emobox(root: Path) -> Example:
    """A fold of three files, with parts of a recording, a label map above it, and lines with faults."""
    fold, wav = root / "data" / "small" / "fold_2", "downloads/small/wav"
    printed = {}
    for split, labels in (("train", "a h"), ("valid", "h a"), ("test", "a a")):
        lines = []
        for number, label in enumerate(labels.split()):
            key, name = f"small-{split}-{number}", f"{split}{number}.wav"
            record(root / wav / name, number)
            row = {"key": key, "dataset": "small", "wav": f"{wav}/{name}", "emo": label, "length": 0.05, "channel": 1}
            if split == "test":
                path = root / wav / name
                noise = np.random.default_rng(number).integers(-3000, 3000, 4 * NUM_SAMPLES, dtype=np.int16)
                soundfile.write(path, noise, 16_000)
                row |= {"start_time": 0.05, "end_time": 0.1}
            lines.append(json.dumps(row))
            printed[key] = SourceUtterance(split=split, category={"a": "Angry", "h": "Happy"}[label])
        if split == "train":
            lines += [json.dumps(row | change | {"key": key}) for key, change, _ in _EMOBOX_FAULTS] + ["{", "", "[]"]
        write_lines(fold / f"small_{split}_fold_2.jsonl", lines)
    write_lines(fold.parent / "label_map.json", ['{"a": "Angry", "h": "Happy"}'])
    rejected = {key: reason for key, _, reason in _EMOBOX_FAULTS}
    first = f"small_train_fold_2.jsonl line {3 + len(_EMOBOX_FAULTS)}"
    last = f"small_train_fold_2.jsonl line {5 + len(_EMOBOX_FAULTS)}"
    return Example(
        path=fold,
        root=root,
        utterances=printed,
        rejected=rejected | {first: "not a JSON object", last: "not a JSON object"},
        scale=(0.0, 1.0),
    )


_EMOBOX_FAULTS = (
    ("x", {"emo": "b"}, "emo 'b' is none of a, h"),
    ("missing", {"wav": "downloads/small/wav/none.wav"}, "missing audio"),
    ("above", {"wav": "../../etc/passwd"}, "leaves the folder of the audio"),
    ("absolute", {"wav": "/etc/passwd"}, "leaves the folder of the audio"),
    ("number", {"emo": 3}, "emo is no text"),
    ("backwards", {"start_time": 0.1, "end_time": 0.05}, "span nothing"),
    ("half", {"start_time": 0.1}, "are no numbers of seconds"),
)
