"""MSP-Podcast and IEMOCAP in miniature: in the layouts of their releases, large enough to train on, without faults.

For what is done with corpora; what readers make of every fault is tried with ``corpus_examples`` and ``msp_examples``.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from tests.helpers.examples.corpus_examples import write_lines
from tests.helpers.examples.msp_examples import msp_name
from tests.helpers.models.small_teacher import WORDS


def write_msp_podcast(root: Path, splits: Mapping[str, int]) -> Path:
    """Release 1.11, so many utterances of each split; returns ``root``."""
    generator = np.random.default_rng(0)
    rows = ["FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"]
    for number, split in enumerate(split for split, count in splits.items() for _ in range(count)):
        act, val, dom = generator.uniform(1, 7, 3)
        rows.append(f"{msp_name(number)}.wav,N,{act:.2f},{val:.2f},{dom:.2f},{number % 9},Female,{split}")
        _record(root / "Audios" / f"{msp_name(number)}.wav", generator)
        write_lines(root / "Transcripts" / f"{msp_name(number)}.txt", [_words(generator)])
    write_lines(root / "Labels" / "labels_consensus.csv", rows)
    return root


def write_iemocap(root: Path, per_session: int) -> Path:
    """All five sessions, a dialog of so many turns each; returns ``root``."""
    generator = np.random.default_rng(0)
    for number in range(1, 6):
        session, dialog = root / f"Session{number}", f"Ses{number:02d}F_impro01"
        evaluations, transcripts = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""], []
        for turn in range(per_session):
            key = f"{dialog}_{'FM'[turn % 2]}{turn:03d}"
            val, act, dom = generator.uniform(1, 5, 3)
            evaluations += [
                f"[{turn}.0 - {turn + 1}.0]\t{key}\tneu\t[{val:.4f}, {act:.4f}, {dom:.4f}]",
                f"A-E1:\tval {val:.0f}; act {act:.0f}; dom  {dom:.0f};\t()",
                "",
            ]
            transcripts.append(f"{key} [{turn:03d}.0000-{turn + 1:03d}.0000]: {_words(generator)}")
            _record(session / "sentences" / "wav" / dialog / f"{key}.wav", generator)
        write_lines(session / "dialog" / "EmoEvaluation" / f"{dialog}.txt", evaluations)
        write_lines(session / "dialog" / "transcriptions" / f"{dialog}.txt", transcripts)
    return root


def _record(path: Path, generator: np.random.Generator) -> None:
    """Noise of 0.1 to 0.4 s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = generator.normal(0, 3_000, int(generator.integers(1_600, 6_400)))
    soundfile.write(path, noise.astype(np.int16), 16_000, subtype="PCM_16")


def _words(generator: np.random.Generator) -> str:
    return " ".join(generator.choice(WORDS, size=int(generator.integers(1, 6))))
