"""A run followed in TensorBoard: event files in the run folder, without a server."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from ccts_dist.records import Condition
from ccts_dist.redaction import redact, redact_addresses, without_credentials
from ccts_dist.tracking.protocol import Status, flat_settings

log = logging.getLogger(__name__)

FOLDER = "tensorboard"
"""In the run folder: what ``tensorboard --logdir`` is given. Each start without ``--resume`` has a folder in it."""

_STEPS = "last-steps.json"


@final
class TensorBoardRun:
    """One run as TensorBoard reads it; see ``Tracking`` for what its methods promise.

    A disk that fails ends the reports with a warning, and not the training.
    """

    def __init__(self, output: Path, *, run_name: str, resume: bool) -> None:
        """Open the newest event files of the run folder, or new ones.

        Args:
            output: run folder.
            run_name: for people.
            resume: go on with the newest, if there are any.

        Raises:
            ModuleNotFoundError: TensorBoard is not installed.
        """
        from torch.utils.tensorboard import SummaryWriter

        numbers = sorted(int(path.name) for path in (output / FOLDER).glob("[0-9]*") if path.name.isdecimal())
        number = numbers[-1] if resume and numbers else (numbers or [0])[-1] + 1
        self._folder = output / FOLDER / f"{number:04d}"
        self._last = _read_steps(self._folder / _STEPS)
        self._writer: Any = None
        self._closed = False
        try:
            self._writer = SummaryWriter(str(self._folder))
        except OSError as error:
            self._give_up(error)
        self._text("run", run_name)

    @property
    def run_id(self) -> str:
        """No server, no id."""
        return ""

    def params(self, values: Mapping[str, Any]) -> None:
        """The settings as one table."""
        rows = [f"| {key} | {redact_addresses(text).replace('|', '/')} |" for key, text in flat_settings(values)]
        self._text("params", "\n".join(["| setting | value |", "|---|---|", *rows]))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Measured values; kept once per (key, step)."""
        new = {key: float(value) for key, value in values.items() if step > self._last.get(key, -1)}

        def write() -> None:
            for key, value in new.items():
                self._writer.add_scalar(key, value, step)
            self._writer.flush()
            self._last |= dict.fromkeys(new, step)
            partial = self._folder / f"{_STEPS}.partial"
            partial.write_text(json.dumps(self._last), encoding="utf-8")
            partial.replace(self._folder / _STEPS)

        self._try(write if new else lambda: None)

    def tags(self, values: Mapping[str, str]) -> None:
        """Facts, as texts."""
        for key, value in values.items():
            self._text(f"tags/{key}", redact(str(value)))

    def artifact(self, path: Path, folder: str = "") -> None:
        """A PNG is shown. Other files lie in the run folder already."""
        if path.suffix.lower() != ".png":
            return

        def write() -> None:
            import numpy as np
            from PIL import Image

            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image(f"{folder or 'artifacts'}/{path.stem}", pixels, self._step, dataformats="HWC")
            self._writer.flush()

        self._try(write)

    def text(self, text: str, name: str) -> None:
        """A small file's content."""
        self._text(name, "\n".join(f"    {line}" for line in text.splitlines()))

    def description(self, text: str) -> None:
        """Markdown, among the texts."""
        self._text("description", text)

    def inputs(
        self,
        *,
        shard_set_digest: str,
        splits: Mapping[str, int],
        cache_digest: str = "",
        condition: Condition | None = None,
        corpus: str = "",
        shards: str = "",
        cache: str = "",
    ) -> None:
        """Everything, as one JSON text."""
        data = {
            "corpus": corpus,
            "shards": without_credentials(shards),
            "shard_set_digest": shard_set_digest,
            "splits": dict(splits),
            "cache": without_credentials(cache),
            "cache_digest": cache_digest,
            "condition": None if condition is None else asdict(condition),
        }
        self.text(json.dumps(data, indent=2, ensure_ascii=False), "inputs")

    def flush(self) -> None:
        """Write what is buffered."""
        self._try(lambda: self._writer.flush())

    def close(self, status: Status) -> None:
        """End the run."""
        if self._closed:
            return
        self._text("status", status)
        self._closed = True
        self._try(lambda: self._writer.close())

    @property
    def _step(self) -> int:
        return max(self._last.values(), default=0)

    def _text(self, name: str, text: str) -> None:
        def write() -> None:
            self._writer.add_text(name, text, self._step)
            self._writer.flush()

        self._try(write)

    def _try(self, write: Callable[[], None]) -> None:
        if self._writer is None:
            return
        try:
            write()
        except (OSError, ValueError) as error:  # a picture that is none, a disk that is full
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        log.warning("tracking: %s: nothing more is written to TensorBoard; training goes on: %s", self._folder, error)


def _read_steps(path: Path) -> dict[str, int]:
    """The last step of each key; nothing where the file is absent or half written."""
    try:
        return {str(key): int(step) for key, step in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
