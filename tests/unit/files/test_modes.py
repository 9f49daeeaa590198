"""Files that are left for others have the mode that the umask asks for, whichever library writes them."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ccts_dist.config import ModelConfig
from ccts_dist.corpus.asr_transcripts import TranscriptFile
from ccts_dist.model import build_model, save_model
from ccts_dist.model.speech.modified_cpc import convert
from ccts_dist.tracking.events import TagEvent
from ccts_dist.tracking.spooling.spool import Spool
from ccts_dist.train.resilience.heartbeat import Heartbeat, write_heartbeat
from tests.helpers.models.model_shapes import speech_config
from tests.helpers.models.published_cpc import published, write_checkpoint


def model_folder(folder: Path) -> None:
    model = build_model(ModelConfig(embedding_dim=8, speech=speech_config()))
    save_model(
        folder / "model", model.state_dict(), model.config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={}
    )


def modified_cpc(folder: Path) -> None:
    checkpoint = write_checkpoint(folder / "published.pt", published())
    convert(checkpoint, folder / "cpc")
    checkpoint.unlink()


def spool(folder: Path) -> None:
    Spool(folder, "events").put(TagEvent("note", "x"))


def heartbeat(folder: Path) -> None:
    write_heartbeat(folder, Heartbeat(rank=0, host="here", pid=1, started=7, number=3, place_number=5))


def transcripts(folder: Path) -> None:
    with TranscriptFile(folder / "a-asr.jsonl", digest="1" * 64, language=None) as file:
        file.add([])


@pytest.fixture(params=[0o022, 0o002, 0o077], ids="{:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("write", [model_folder, modified_cpc, spool, heartbeat, transcripts])
def test_files_have_the_mode_that_the_umask_asks_for(write: Callable[[Path], None], umask: int, tmp_path: Path):
    torch.manual_seed(0)
    write(tmp_path)
    found = {path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert found
    expected = {path: (0o777 if (tmp_path / path).is_dir() else 0o666) & ~umask for path in found}
    assert found == expected
