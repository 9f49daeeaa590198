"""What ``launch/predict.py`` does: find, load, hear, write."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from ccts_dist.errors import ConfigError, OutputError
from ccts_dist.inference.batches import answered_in_order, decoded_ahead, keep_few_kernels, twins_of, usable_cores
from ccts_dist.inference.embeddings import check_suffix, keys_beside
from ccts_dist.inference.output import check_outputs, only_our_stdout
from ccts_dist.inference.plots import draw_curve, picture_in, pictures_are_in_folder
from ccts_dist.inference.predictor import CATEGORY, Predictor, load_student, samples_per_batch
from ccts_dist.inference.recordings import Unheard, find_recordings, shown
from ccts_dist.inference.results import Results, end_of_stdout
from ccts_dist.inference.rows import row_text
from ccts_dist.inference.windows import Curve, Windows, decoded_windows, windows_of
from ccts_dist.progress import Progress, log

_MANY = 20
"""Recordings that are worth a progress bar."""

_TIMES = ("start_s", "end_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What was asked for, once it is known to make sense."""

    files: list[Path]
    empty: list[Unheard]
    """Folders without audio."""

    batch_seconds: float
    windows: Windows | None
    draw: Callable[[Predictor, Curve], None] | None

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns that say what an answer, or an embedding, is of."""
        return ("file",) if self.windows is None else ("file", *_TIMES)


def run(args: argparse.Namespace) -> int:
    """Hear what was named and write it down; the exit code.

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
    student = load_student(args.model, tracking_uri=args.uri, device=args.device)
    for one in asked.empty:
        log(one.in_words)
    try:
        with _results(args, asked, student) as results:
            left_out = _hear(student, asked, results)
    except (BrokenPipeError, OutputError) as error:
        if args.out is None:
            end_of_stdout()
        if isinstance(error, BrokenPipeError):
            return 1
        raise
    except KeyboardInterrupt:
        kept = [f"{path}.partial" for path in (args.out, args.embeddings) if path is not None]
        log(f"stopped: what came before is {'in ' + ' and '.join(kept) if kept else 'written'}")
        return 1
    if left_out and len(asked.files) >= _MANY:
        log(f"{len(left_out)} of {len(asked.files)} files left out")
    return 1 if left_out or asked.empty else 0


def _check(args: argparse.Namespace) -> _Asked:
    """What can be said before the model is loaded."""
    samples_per_batch(args.batch_seconds)
    if args.window is None and (args.hop is not None or args.picture is not None):
        raise ConfigError("--hop, --picture: are of windows, and there are none. Give --window too.")
    windows = None if args.window is None else windows_of(args.window, args.hop)
    files, empty = find_recordings(args.files)
    beside = None
    if args.embeddings is not None:
        check_suffix(args.embeddings)
        beside = keys_beside(args.embeddings)
    outputs = {"--out": args.out, "--embeddings": args.embeddings, "keys of --embeddings": beside}
    draw = None
    if args.picture is not None:
        in_folder = pictures_are_in_folder(args.picture, len(files))
        draw = _Pictures(place=args.picture, in_folder=in_folder).draw
        outputs["--picture"] = None if in_folder else args.picture
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
    if args.picture is not None and not student.targets:
        raise ConfigError(
            f"--picture {args.picture}: draws targets over time, and the model predicts categories alone. Leave it out."
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


def _hear(student: Predictor, asked: _Asked, results: Results) -> list[Unheard]:
    """Everything through the student; what was left out."""
    visible = len(asked.files) >= _MANY or asked.windows is not None
    with (
        twins_of(student) as students,
        Progress(len(asked.files), "predict", unit="files", visible=visible) as bar,
    ):
        if asked.windows is None:
            return _hear_files(students, asked, results, bar)
        return _hear_windows(students, asked, asked.windows, results, bar)


def _hear_files(students: Sequence[Predictor], asked: _Asked, results: Results, bar: Progress) -> list[Unheard]:
    """Each file as a whole."""

    def dealt_with(count: int) -> None:
        bar.advance(count)
        results.flush()

    left_out = []
    decoded = decoded_ahead(asked.files, usable_cores())
    answers = answered_in_order(decoded, students, batch_seconds=asked.batch_seconds, progress=dealt_with)
    with closing(decoded), closing(answers):
        for one in answers:
            if isinstance(one, Unheard):
                log(one.in_words)
                left_out.append(one)
            else:
                results.add({"file": one.name, **one.answer}, one.embedding)
    return left_out


def _hear_windows(
    students: Sequence[Predictor], asked: _Asked, windows: Windows, results: Results, bar: Progress
) -> list[Unheard]:
    """Each file's windows, then their mean."""
    student, num_windows = students[0], 0

    def dealt_with(count: int) -> None:
        nonlocal num_windows
        num_windows += count
        bar.advance(0, f"{num_windows} windows")
        results.flush()

    left_out = []
    decoded = decoded_windows(asked.files, windows)
    answers = answered_in_order(decoded, students, batch_seconds=asked.batch_seconds, progress=dealt_with)
    with closing(decoded), closing(answers):
        for _, of_one_file in groupby(answers, key=lambda one: one.number):
            curve, damage = Curve(student.columns, student.categories, keep=asked.draw is not None), None
            for one in of_one_file:
                if isinstance(one, Unheard):
                    damage = one
                else:
                    curve.add(one)
                    times = {"kind": "window", "start_s": one.start_s, "end_s": one.end_s}
                    results.add({"file": one.name, **times, **one.answer}, one.embedding)
            if damage is not None:
                left_out.append(_damaged(damage, curve))
                log(left_out[-1].in_words)
            else:
                times = {"kind": "mean", "start_s": 0.0, "end_s": curve.end_s}
                results.add({"file": curve.name, **times, **curve.mean()})
                if asked.draw is not None:
                    asked.draw(student, curve)
            bar.advance()
    return left_out


def _damaged(damage: Unheard, curve: Curve) -> Unheard:
    if not curve.num_windows:
        return damage
    return replace(damage, reason=f"{damage.reason}; without a mean, after {curve.num_windows} windows that are given")
