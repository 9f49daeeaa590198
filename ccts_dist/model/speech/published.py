"""Published checkpoints of encoders that transformers does not have, and the folders that run files name."""

import argparse
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from ccts_dist.errors import ConfigError

# What torch and transformers raise on a file that is no checkpoint, or one of another shape.
READ_ERRORS = (
    OSError,
    pickle.UnpicklingError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    StrictDataclassError,
)


class _Unread:
    """In place of any class of others that a checkpoint names: takes what it is given, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_tensors(checkpoint: Path) -> Any:
    """Contents of a file that torch pickled: tensors and plain values, in the containers that they lie in.

    No code of the file runs. Objects of other classes, such as the settings that fairseq stores, come out empty.

    Raises:
        OSError, RuntimeError, pickle.UnpicklingError and others of ``READ_ERRORS``: no such file.
    """
    named = torch.serialization.get_unsafe_globals_in_checkpoint(str(checkpoint))
    with torch.serialization.safe_globals([(_Unread, name) for name in named]):
        return torch.load(checkpoint, map_location="cpu", weights_only=True)


def save_folder(model: PreTrainedModel, folder: Path, *, do_normalize: bool) -> None:
    """Write an encoder as transformers would, with the ``preprocessor_config.json`` of its pretraining."""
    model.save_pretrained(folder)
    settings = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": do_normalize,
        "sampling_rate": 16_000,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    for weights in folder.glob("*.safetensors"):
        shutil.copymode(folder / "preprocessor_config.json", weights)  # safetensors' own is 0600, whatever the umask


def refuse_existing(folder: Path) -> None:
    """Raises: ConfigError, if there is something where the folder is to be made."""
    if folder.exists():
        raise ConfigError(f"{folder}: is there already. Name a new folder.")


def run_converter(
    argv: list[str] | None, convert: Callable[[Path, Path], None], *, of: str, file: str, example: str
) -> int:
    """The command line of a converter, and its exit code.

    Args:
        of: name of the encoder.
        file: the checkpoint, in words.
        example: a whole command.
    """
    parser = argparse.ArgumentParser(
        description=f"Make a folder that model.speech.encoder can name out of a published {of} checkpoint.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help=file)
    parser.add_argument("folder", type=Path, help="where to; must not be there yet")
    args = parser.parse_args(argv)
    convert(args.checkpoint, args.folder)
    print(f"{args.folder}: name it in a run file as model.speech.encoder")
    return 0
