"""Short utterances made from code, a teacher and its cache, and run files of the demo's student on them."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tomli_w
import torch

from ccts_dist.config import parse_run
from ccts_dist.distributed import Ranks
from ccts_dist.model import build_model, save_model, train_tokenizer
from ccts_dist.process.seeds import seed_everything
from ccts_dist.records import DIMENSIONS, SAMPLE_RATE_HZ, Utterance
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.shard_set import open_shard_set
from ccts_dist.teacher import cache_teacher

ROOT = Path(__file__).resolve().parent.parent.parent
RUN_FILES = ROOT / "launch" / "runs" / "demo"
SPLITS = {"Train": 160, "Development": 24, "Test1": 16}
CATEGORIES = ("calm", "tense")
_WORDS = (("rain", "grey", "slow", "never"), ("sun", "bright", "quick", "always"))
_CORPUS_SECONDS = (0.4, 1.6)


def tone(labels: Mapping[str, float], seconds: float, seed: int) -> np.ndarray:
    """A tone, louder with activation, higher with valence, pulsing faster with dominance; in noise."""
    time = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    pitch_hz, pulse_hz = 120 + 400 * labels["valence"], 2 + 8 * labels["dominance"]
    wave = np.sin(2 * np.pi * pitch_hz * time) * (0.6 + 0.4 * np.sin(2 * np.pi * pulse_hz * time))
    noise = np.random.default_rng(seed).normal(0, 0.02, len(time))
    return ((0.05 + 0.7 * labels["activation"]) * wave + noise).clip(-1, 1).astype(np.float32)


def make_shards(folder: Path) -> Path:
    """The shard set of all ``SPLITS``; every seventh utterance has no valence, every third no category."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(21)
    utterances = []
    for split, count in SPLITS.items():
        for number in range(count):
            labels = {name: float(generator.uniform(0.05, 0.95)) for name in DIMENSIONS}
            audio = folder / f"{split}-{number}.wav"
            seconds = float(generator.uniform(*_CORPUS_SECONDS))
            soundfile.write(audio, tone(labels, seconds, number), SAMPLE_RATE_HZ, subtype="PCM_16")
            words = [str(generator.choice(_WORDS[labels["valence"] > 0.5])) for _ in range(4)]
            known = {name: label for name, label in labels.items() if name != "valence" or number % 7}
            utterances.append(
                Utterance(
                    key=f"{split}-{number}",
                    audio=audio,
                    split=split,
                    labels=known,
                    scale=(1.0, 7.0),
                    transcript=" ".join(words),
                    category=CATEGORIES[labels["activation"] > 0.5] if number % 3 else None,
                )
            )
    build_shard_set(
        utterances, folder / "shards", corpus="tones", release="1", scale=(1.0, 7.0), targets=DIMENSIONS,
        root=folder, shard_bytes=1_500_000, num_threads=1,
    )  # fmt: skip
    for audio in folder.glob("*.wav"):
        audio.unlink()
    return folder / "shards"


def make_teacher(folder: Path, shards: Path) -> Path:
    """An untrained teacher of the demo's shape with text, and its cache of the shards, beside each other."""
    config = parse_run(tomllib.loads((RUN_FILES / "teacher.toml").read_text())).model
    assert config.text is not None
    seed_everything(4)
    tokenizer = train_tokenizer([" ".join(words) for words in _WORDS] * 20, config.text, folder / "tokenizer")
    model = build_model(config, vocabulary_size=tokenizer.vocabulary_size)
    save_model(
        folder / "teacher", model.state_dict(), config, encoders=model.encoder_configs, tokenizer=tokenizer,
        scale=(1.0, 7.0), extra={"train_splits": ["Train"]},
    )  # fmt: skip
    cache_teacher(
        [folder / "teacher"], open_shard_set(shards), folder / "cache", ranks=Ranks(), device=torch.device("cpu")
    )
    return folder / "teacher"


def write_run(path: Path, pack: Path, **sections: Mapping[str, Any]) -> Path:
    """A run file of the demo's student on the packed shards; ``sections`` are merged in, None takes a key away.

    SGD at a constant rate without clipping, so that rounding is carried along and not enlarged; nothing random.
    """
    tree = tomllib.loads((RUN_FILES / "cts.toml").read_text())
    tree |= {"run_name": path.stem, "output_dir": str(path.with_suffix(""))}
    own: dict[str, Mapping[str, Any]] = {
        "data": {"shards": str(pack / "shards"), "teacher_cache": str(pack / "cache"), "test_splits": []},
        # Small beside the CCC's terms, lest the tolerance of the whole loss hide an error of theirs.
        "distill": {"threshold": 1.5, "embedding_weight": 0.05},
        "batch": {"global_batch_size": 16, "micro_batch_size": 16},
        "optim": {"name": "sgd", "learning_rate": 2e-2, "lr_scheduler": "constant", "max_grad_norm": 0.0},
        "tracking": {"backend": "none", "registered_model_name": ""},
    }
    for layer in (own, sections):
        for name, values in layer.items():
            merged = {**tree.get(name, {}), **values}
            tree[name] = {key: value for key, value in merged.items() if value is not None}
    if not tree["data"].get("teacher_cache"):
        tree.pop("distill", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(tree))
    return path


def student_speech(**changes: Any) -> dict[str, Any]:
    """The demo student's speech table; keys of ``scratch`` go in with ``shape=``."""
    speech = tomllib.loads((RUN_FILES / "cts.toml").read_text())["model"]["speech"]
    shape = changes.pop("shape", {})
    return {**speech, "scratch": {**speech["scratch"], **shape}, **changes}
