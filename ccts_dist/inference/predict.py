"""The prediction of recordings, step by step: find, load, process, write."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from ccts_dist.audio.clipping import IN_WORDS
from ccts_dist.errors import ConfigError, OutputError, end_of_stdout
from ccts_dist.inference.batches import answered_in_order, decoded_ahead, keep_few_kernels, twins_of, usable_cores
from ccts_dist.inference.embeddings import check_suffix, keys_beside
from ccts_dist.inference.output import check_outputs, only_our_stdout
from ccts_dist.inference.plots import draw_curve, picture_in, pictures_are_in_folder
from ccts_dist.inference.predictor import CATEGORY, Predictor, load_student, samples_per_batch
from ccts_dist.inference.recordings import Unreadable, find_recordings, shown
from ccts_dist.inference.results import Results
from ccts_dist.inference.rows import row_text
from ccts_dist.inference.windows import Curve, Windows, decoded_windows, windows_of
from ccts_dist.progress import Progress, log

_MANY = 20
"""Recordings that are worth a progress bar."""

_TIMES = ("start_s", "end_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Checked options."""

    files: list[Path]
    empty: list[Unreadable]
    """Folders without audio."""

    batch_seconds: float
    windows: Windows | None
    draw: Callable[[Predictor, Curve], None] | None

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns that name what an answer, or an embedding, is of."""
        return ("file",) if self.windows is None else ("file", *_TIMES)


def run(args: argparse.Namespace) -> int:
    """Process what was named and write it down; the exit code.

    Raises:
        ConfigError: a mistake in what was asked for.
        RegistryError: the model cannot be had.
        OutputError: a file cannot be written.
    """
    with only_our_stdout():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    asked = _check(args)
    keep_few_kernels()
    student = load_student(args.model, tracking_uri=args.tracking_uri, device=args.device)
    for one in asked.empty:
        log(one.in_words)
    try:
        with _results(args, asked, student) as results:
            failed = _predict_recordings(student, asked, results)
    except (BrokenPipeError, OutputError) as error:
        if args.out is None:
            end_of_stdout()
        if isinstance(error, BrokenPipeError):
            return 1
        raise
    except KeyboardInterrupt:
        partial = [f"{path}.partial" for path in (args.out, args.embeddings) if path is not None]
        log(f"stopped: what came before is {'in ' + ' and '.join(partial) if partial else 'written'}")
        return 1
    if failed and len(asked.files) >= _MANY:
        log(f"{len(failed)} of {len(asked.files)} files skipped")
    return 1 if failed or asked.empty else 0


def _check(args: argparse.Namespace) -> _Asked:
    """Report what can be reported before the model is loaded."""
    samples_per_batch(args.batch_seconds)
    if args.window is None and (args.hop is not None or args.plot is not None):
        raise ConfigError("--hop, --plot: are of windows, and there are none. Give --window too.")
    windows = None if args.window is None else windows_of(args.window, args.hop)
    files, empty = find_recordings(args.files)
    beside = None
    if args.embeddings is not None:
        check_suffix(args.embeddings)
        beside = keys_beside(args.embeddings)
    outputs = {"--out": args.out, "--embeddings": args.embeddings, "keys of --embeddings": beside}
    draw = None
    if args.plot is not None:
        in_folder = pictures_are_in_folder(args.plot, len(files))
        draw = _Pictures(place=args.plot, in_folder=in_folder).draw
        outputs["--plot"] = None if in_folder else args.plot
    check_outputs(outputs, files)
    return _Asked(files=files, empty=empty, batch_seconds=args.batch_seconds, windows=windows, draw=draw)


@dataclass(slots=True, kw_only=True)
class _Pictures:
    place: Path
    in_folder: bool
    taken: set[str] = field(default_factory=set)

    def draw(self, student: Predictor, curve: Curve) -> None:
        path = picture_in(self.place, curve, self.taken) if self.in_folder else self.place
        draw_curve(path, curve, targets=student.targets, scale=student.scale)


def _results(args: argparse.Namespace, asked: _Asked, student: Predictor) -> Results:
    if args.plot is not None and not student.targets:
        raise ConfigError(
            f"--plot {args.plot}: draws targets over time, and the model predicts categories alone. Leave it out."
        )
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(encoding="utf-8")  # as JSON has to be, whatever the locale
    columns = ("file", *(() if asked.windows is None else ("kind", *_TIMES)), *student.columns)
    widths = {
        "file": max(len(shown(path)) for path in asked.files),
        "kind": len("window"),
        CATEGORY: max(map(len, student.categories), default=0),
    }
    return Results(
        row_text(args.format, columns, widths),
        args.out,
        embeddings=args.embeddings,
        size=student.embedding_size,
        key_columns=asked.key_columns,
    )


def _predict_recordings(student: Predictor, asked: _Asked, results: Results) -> list[Unreadable]:
    """Everything through the student; what was omitted."""
    visible = len(asked.files) >= _MANY or asked.windows is not None
    with (
        twins_of(student) as students,
        Progress(len(asked.files), "predict", unit="files", visible=visible) as bar,
    ):
        if asked.windows is None:
            return _predict_files(students, asked, results, bar)
        return _predict_windows(students, asked, asked.windows, results, bar)


def _predict_files(students: Sequence[Predictor], asked: _Asked, results: Results, bar: Progress) -> list[Unreadable]:
    """Each file as a whole."""

    def dealt_with(count: int) -> None:
        bar.advance(count)
        results.flush()

    failed = []
    decoded = decoded_ahead(asked.files, usable_cores())
    answers = answered_in_order(decoded, students, batch_seconds=asked.batch_seconds, progress=dealt_with)
    with closing(decoded), closing(answers):
        for one in answers:
            if isinstance(one, Unreadable):
                log(one.in_words)
                failed.append(one)
            else:
                _warn_clipped(one.name, one.is_clipped)
                results.add({"file": one.name, **one.answer}, one.embedding)
    return failed


def _predict_windows(
    students: Sequence[Predictor], asked: _Asked, windows: Windows, results: Results, bar: Progress
) -> list[Unreadable]:
    """Each file's windows, then their mean."""
    student, num_windows = students[0], 0

    def dealt_with(count: int) -> None:
        nonlocal num_windows
        num_windows += count
        bar.advance(0, f"{num_windows} windows")
        results.flush()

    failed = []
    decoded = decoded_windows(asked.files, windows)
    answers = answered_in_order(decoded, students, batch_seconds=asked.batch_seconds, progress=dealt_with)
    with closing(decoded), closing(answers):
        for _, of_one_file in groupby(answers, key=lambda one: one.number):
            curve, damage = Curve(student.columns, student.categories, keep=asked.draw is not None), None
            num_clipped = 0
            for one in of_one_file:
                if isinstance(one, Unreadable):
                    damage = one
                else:
                    curve.add(one)
                    num_clipped += one.is_clipped
                    times = {"kind": "window", "start_s": one.start_s, "end_s": one.end_s}
                    results.add({"file": one.name, **times, **one.answer}, one.embedding)
            _warn_clipped(curve.name, 2 * num_clipped > curve.num_windows)
            if damage is not None:
                failed.append(_damaged(damage, curve))
                log(failed[-1].in_words)
            else:
                times = {"kind": "mean", "start_s": 0.0, "end_s": curve.end_s}
                results.add({"file": curve.name, **times, **curve.mean()})
                if asked.draw is not None:
                    asked.draw(student, curve)
            bar.advance()
    return failed


def _warn_clipped(name: str, is_clipped: bool) -> None:
    if is_clipped:
        log(f"warning: {name}: {IN_WORDS}")


def _damaged(damage: Unreadable, curve: Curve) -> Unreadable:
    if not curve.num_windows:
        return damage
    return replace(damage, reason=f"{damage.reason}; without a mean, after {curve.num_windows} windows that are given")
