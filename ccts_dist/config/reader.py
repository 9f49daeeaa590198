"""A strict reader of run files: TOML in, ``RunConfig`` out, every mistake named with its key, value and rule."""

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w

from ccts_dist.config.model_rules import check_model
from ccts_dist.config.model_schema import ModelConfig
from ccts_dist.config.ranges import Between
from ccts_dist.config.renamed import present_override, with_present_keys
from ccts_dist.config.rules import (
    check_batch,
    check_checkpointing,
    check_distill,
    check_extra_shards,
    check_frames,
    check_input,
    check_profile,
    check_schedule,
)
from ccts_dist.config.schema import RunConfig
from ccts_dist.config.synonyms import key_meant
from ccts_dist.errors import ConfigError
from ccts_dist.limits import read_limited
from ccts_dist.redaction import remember
from ccts_dist.shipped import find_run_file

_LARGEST = (1 << 63) - 1
"""Whole number. A float cannot be made of any, and torch takes none beyond."""

_SLIP = 0.85
"""Likeness above which an unknown key is a slip of the pen, whatever it means elsewhere."""


def read_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that ``path`` describes, after ``overrides`` like ``"optim.learning_rate=1e-3"``.

    Args:
        path: a file, or the name of a shipped run file, such as ``demo/cts.toml``.
        overrides: keys and values in place of the file's.

    Raises:
        ConfigError: no such file, bad TOML, unknown key, wrong type or out of range; one line, with the nearest key.
    """
    try:
        tree = tomllib.loads(read_limited(find_run_file(Path(path)), "run file").decode())
    except OSError as error:
        reason = f"cannot read the run file ({error.strerror})"
        raise ConfigError(f"{path}: {reason}. Name an existing file.") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not a TOML file that can be read: nested too deeply. Mend the file.") from error
    except ValueError as error:  # no TOML, no UTF-8, NUL in the path, a number of more than 4,300 digits
        raise ConfigError(f"{path}: not a TOML file: {error}. Mend the file.") from error
    tree = with_present_keys(tree, source=str(path))
    for override in overrides:
        _set(tree, present_override(override))
    _remember_addresses(tree)
    return parse_run(tree, source=str(path))


def _remember_addresses(value: Any) -> None:
    """Keep credentials of a run file out of all that is reported, whatever is wrong with it."""
    if isinstance(value, str):
        remember(value)
    elif isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            _remember_addresses(one)


def parse_run(tree: Mapping[str, Any], *, source: str = "run") -> RunConfig:
    """The run in a tree of plain values, as ``tomllib`` gives it; ``source`` names it in errors."""
    run = _build(RunConfig, with_present_keys(tree, source=source), (), source)
    _check_together(run, source)
    return run


def parse_model(tree: Mapping[str, Any], *, source: str = "model") -> ModelConfig:
    """The model in a tree of plain values, as ``run_to_tree`` gives it; ``source`` names it in errors."""
    model = _build(ModelConfig, with_present_keys(tree, source=source, table="model", stored=True), ("model",), source)
    check_model(model, source)
    return model


def run_to_tree(run: Any) -> dict[str, Any]:
    """Plain values of a configuration, defaults included; what is None is absent."""
    tree: dict[str, Any] = {}
    for f in dataclasses.fields(run):
        value = getattr(run, f.name)
        if value is None:
            continue
        if dataclasses.is_dataclass(value):
            value = run_to_tree(value)
        elif isinstance(value, tuple):
            value = [run_to_tree(one) if dataclasses.is_dataclass(one) else one for one in value]
        elif isinstance(value, Mapping):
            value = dict(value)
        tree[f.name] = value
    return tree


def complete_tree(tree: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """The tree of a run that this or an earlier version wrote, with keys that were unknown then at their defaults.

    Raises:
        ConfigError: a later version wrote it: it has keys or values that are unknown here.
    """
    return run_to_tree(complete_run(tree, source=source))


def complete_run(tree: Mapping[str, Any], *, source: str) -> RunConfig:
    """The run of ``complete_tree``, which may break rules that are new."""
    return _build(RunConfig, with_present_keys(tree, source=source, stored=True), (), source)


def run_to_toml(run: RunConfig) -> str:
    """The resolved run file; ``parse_run`` of it gives an equal run."""
    return tomli_w.dumps(run_to_tree(run))


def _set(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {override!r}: not of the form a.b=value. Write for example --set optim.learning_rate=1e-3"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()  # a bare word is a string, so that no quotes need to survive the shell
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override!r}: {key!r} holds a value, not a table. Set {key!r} itself.")
    tree[keys[-1]] = value


def _build(cls: type, tree: Any, path: tuple[str, ...], source: str) -> Any:
    where = f"{source}: " + ".".join(path)
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where} = {_short(tree)}: must be a table. Write [{'.'.join(path)}].")
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [f.name for f in dataclasses.fields(cls)]
    for key, value in tree.items():
        if key not in names:
            dotted = _printable(".".join((*path, str(key))))
            raise ConfigError(f"{source}: unknown key {dotted} = {_short(value)}. {_hint(str(key), names)}")
    values = {}
    for f in dataclasses.fields(cls):
        dotted = (*path, f.name)
        if f.name in tree:
            values[f.name] = _convert(tree[f.name], hints[f.name], dotted, source)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{source}: {'.'.join(dotted)} is missing, and has no default. Add it.")
    return cls(**values)


def _hint(key: str, names: Sequence[str]) -> str:
    """The most likely meaning of an unknown key of a table with these names."""
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
    if near and difflib.SequenceMatcher(None, key, near[0]).ratio() > _SLIP:
        return f"Did you mean {near[0]!r}?"
    if meant := key_meant(key):
        return f"Did you mean {meant}?"
    return f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(names)}."


def _is_text(text: str) -> bool:
    """False for NUL, which no path may hold, and for bytes of a command line that are no UTF-8."""
    try:
        return "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False


def _printable(key: str) -> str:
    """A key out of a file, on a line: control characters as escapes, and no more than a line has."""
    text = key if key.isprintable() else ascii(key)[1:-1]
    return text if len(text) <= 120 else text[:117] + "..."


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # too many digits, or nested too deeply
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 60 else text[:57] + "..."


def _convert(value: Any, hint: Any, path: tuple[str, ...], source: str) -> Any:
    bounds: Between | None = None
    if typing.get_origin(hint) is Annotated:
        hint, bounds = typing.get_args(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)

    def refuse(rule: str) -> ConfigError:
        named = f"{'.'.join(path)} = {_short(value)}"
        return ConfigError(f"{source}: {named}: must be {rule}. Change it there or with --set.")

    if origin in (types.UnionType, typing.Union):
        (inner,) = (a for a in args if a is not type(None))
        return _convert(value, inner, path, source)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path, source)
    if origin is Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            extra = f" (did you mean {near[0]!r}?)" if near else ""
            raise refuse("one of " + ", ".join(repr(a) for a in args) + extra)
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise refuse("a list")
        return tuple(_convert(v, args[0], (*path[:-1], f"{path[-1]}[{i}]"), source) for i, v in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise refuse("a table")
        if args[1] is Any:
            return dict(value)
        return {str(key): _convert(one, args[1], (*path, str(key)), source) for key, one in value.items()}
    if hint is bool or hint is str:
        if not isinstance(value, hint):
            raise refuse("true or false" if hint is bool else "a string")
        if isinstance(value, str) and not _is_text(value):
            raise refuse("Unicode text without NUL")
        return value
    if isinstance(value, bool) or not isinstance(value, int if hint is int else (int, float)):
        raise refuse("a whole number" if hint is int else "a number")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise refuse("a number of at most 64 bits")
    number = hint(value)
    if not math.isfinite(number):
        raise refuse("a finite number")
    if bounds is not None and not (
        (bounds.low is None or number >= bounds.low) and (bounds.high is None or number <= bounds.high)
    ):
        raise refuse(bounds.words())
    return number


def _check_together(run: RunConfig, source: str) -> None:
    """Rules that no single annotation can state."""
    check_model(run.model, source)
    check_schedule(run, source)
    check_profile(run, source)
    check_batch(run, source)
    check_checkpointing(run, source)
    check_input(run, source)
    check_frames(run, source)
    check_extra_shards(run, source)
    _check_loss(run, source)
    _check_teacher(run, source)
    _check_names(run, source)
    _check_splits(run, source)


def _check_loss(run: RunConfig, source: str) -> None:
    weights = run.loss.target_weights
    if weights and len(weights) != len(run.model.targets):
        raise ConfigError(
            f"{source}: loss.target_weights has {len(weights)} numbers for {len(run.model.targets)} targets. "
            "Give one each."
        )
    if run.model.categories and run.loss.category_weight == 0:
        raise ConfigError(
            f"{source}: loss.category_weight = 0.0 leaves model.categories untrained. Raise it, or leave the "
            "categories out."
        )
    classes = run.loss.class_weights
    if classes and len(classes) != len(run.model.categories):
        raise ConfigError(
            f"{source}: loss.class_weights has {len(classes)} numbers for {len(run.model.categories)} of "
            "model.categories. Give one each."
        )
    if run.loss.focal_gamma and not run.model.categories:
        raise ConfigError(
            f"{source}: loss.focal_gamma = {run.loss.focal_gamma} shapes the cross-entropy of model.categories, and "
            "there are none. Name some, or leave it out."
        )
    if run.loss.category_target == "votes" and not run.model.categories:
        raise ConfigError(
            f'{source}: loss.category_target = "votes" needs model.categories, and there are none. Name some, or '
            "leave it out."
        )
    if run.loss.category_target == "votes" and run.model.category_map:
        raise ConfigError(
            f'{source}: loss.category_target = "votes" reads votes by the names of the corpus, which '
            "model.category_map changes. Leave one of them out."
        )
    if any(weight < 0 for weight in weights):
        raise ConfigError(f"{source}: loss.target_weights = {list(weights)}: must be at least 0 each. Change them.")


def _check_teacher(run: RunConfig, source: str) -> None:
    if run.data.teacher_cache and not run.model.targets:
        raise ConfigError(
            f"{source}: data.teacher_cache = {run.data.teacher_cache!r} needs model.targets, and there are "
            "none: what is distilled are predictions of targets. Name some, or leave the teacher out."
        )
    if run.data.teacher_cache and run.distill is None:
        raise ConfigError(
            f"{source}: data.teacher_cache = {run.data.teacher_cache!r} is named, and there is no [distill] to use it. "
            "Add the table [distill], or leave the teacher out."
        )
    if run.distill is not None and not run.data.teacher_cache:
        raise ConfigError(
            f"{source}: [distill] needs a teacher, and data.teacher_cache is empty. "
            'Name a teacher cache, or "merged", or leave [distill] out.'
        )
    if run.distill is not None:
        check_distill(run.distill, run, source)


def _check_names(run: RunConfig, source: str) -> None:
    for key, value in (
        ("run_name", run.run_name),
        ("output_dir", run.output_dir),
        ("tracking.experiment_name", run.tracking.experiment_name),
    ):
        if not value.strip():
            raise ConfigError(f"{source}: {key} is empty: must be a name. Give one.")
    if set(run.tracking.registered_model_name) & set("/:.@%\"'"):
        raise ConfigError(
            f"{source}: tracking.registered_model_name = {run.tracking.registered_model_name!r}: must hold none "
            "of / : . @ % and quotes, since it becomes part of models:/NAME@ALIAS. Change it."
        )


def _check_splits(run: RunConfig, source: str) -> None:
    shared = set(run.data.train_splits) & {*run.data.valid_splits, *run.data.test_splits}
    if shared:
        raise ConfigError(
            f"{source}: split {sorted(shared)[0]!r} is trained on and also validated or tested on. "
            "Take it out of data.train_splits or out of the others."
        )
    for key in ("train_splits", "valid_splits"):
        if not getattr(run.data, key):
            raise ConfigError(f"{source}: data.{key} is empty: must name at least one split. Add one.")
