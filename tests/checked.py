"""Shapes and types of ``ccts_dist`` signatures, which are checked while tests run, and only then."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, install_import_hook

_jaxtyped = jaxtyping.jaxtyped
_beartype = beartype(conf=BeartypeConf(violation_type=TypeCheckError))
"""A ``TypeError``, as jaxtyping's own and as Python's: readers count on it."""


def check_signatures(modules: str | Sequence[str]) -> None:
    """Check the calls of all functions, and the fields of all dataclasses, of modules that are imported later.

    jaxtyping's wrapper binds and checks the arguments twice, 30 us a call, and takes 2 ms to make, each time for inner
    functions. It is for signatures that name arrays. Others get beartype's, which checks the same in 1 us; inner
    functions without arrays are left to the static checker.
    """
    jaxtyping.jaxtyped = _checked
    install_import_hook(modules, "beartype.beartype")


def _checked(*, typechecker: Any) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        if inspect.isclass(function):
            if dataclasses.is_dataclass(function) and not _names_arrays(function.__init__):
                function.__init__ = _beartype(function.__init__)
                return function
        elif inspect.isfunction(function) and not _names_arrays(function):
            return function if "<locals>" in function.__qualname__ else _beartype(function)
        return _jaxtyped(function, typechecker=typechecker)

    return decorate


def _names_arrays(function: Callable[..., Any]) -> bool:
    """True also for annotations that are not resolved yet."""
    return any(map(_is_array, function.__annotations__.values()))


def _is_array(hint: Any) -> bool:
    if isinstance(hint, str):
        return True
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_is_array, get_args(hint)))
