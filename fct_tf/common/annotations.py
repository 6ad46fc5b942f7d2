"""Arguments of public functions are held to their annotations, at the entrance.

A number of another type, or a text in place of a list, would otherwise fail somewhere deep inside,
by an error that names neither the argument nor what it may be. Only what could not be used is
refused: all that can be walked through is a sequence, a path is a text, and `None` is one where the
default is an empty one.
"""

import functools
import inspect
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from fct_tf.common.errors import InputError

_C = TypeVar("_C", bound=type)
_F = TypeVar("_F", bound=Callable)
_WALKED = (Sequence, Collection, Iterable)
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    os.PathLike: "a path",
    Mapping: "a dict",
    np.ndarray: "an array",
    type(None): "None",
}
_OF = {int: "whole numbers", float: "numbers", str: "texts"}
# What may hold secrets is shown in no message: the function itself says what is wrong.
_SECRET = ("storage_options",)
# Whatever is true or false is a bool, and `self` has no annotation.
_ANYTHING = (Any, bool, inspect.Parameter.empty)


def checked(function: _F) -> _F:
    """The function, which refuses arguments that are not of its annotations.

    Numbers of NumPy arrive as Python's.

    Raises:
      InputError: names the argument, what it is and what it may be.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def entrance(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python says what is missing or too much.
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind is parameter.VAR_KEYWORD:
                bound.arguments[name] = {key: _plain(one) for key, one in value.items()}
                continue
            value = bound.arguments[name] = _plain(value, parameter.annotation)
            passed_on = name in _SECRET or (value is None and parameter.default == "")
            if not passed_on and not _fits(value, parameter.annotation):
                raise InputError(
                    f"``{name}={_shown(value)}``: must be {_words(parameter.annotation)}"
                )
        return function(*bound.args, **bound.kwargs)

    return typing.cast(_F, entrance)


def checked_methods(of: _C) -> _C:
    """A class whose public methods are `checked`."""
    for name, member in list(vars(of).items()):
        if name.startswith("_") and name != "__call__":
            continue
        if isinstance(member, classmethod):
            setattr(of, name, classmethod(checked(member.__func__)))
        elif isinstance(member, types.FunctionType):
            setattr(of, name, checked(member))
    return of


def numbers(values: Any, name: str) -> np.ndarray:
    """float32 of an argument that is to be an array of numbers.

    Raises:
      InputError: names it; texts, or rows of different lengths.
    """
    try:
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"``{name}={_shown(values)}``: must be an array of numbers") from None


def _plain(value: Any, annotation: Any = None) -> Any:
    """Without NumPy's types for numbers, also in a list of them."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.ndim == 1:
        of = [typing.get_args(one) for one in _members(annotation)]
        return value.tolist() if any(one and one[0] in (int, float) for one in of) else value
    return value.item() if isinstance(value, np.generic) else value


def _shown(value: Any) -> str:
    return " ".join(reprlib.repr(value).replace("`", "'").split())


def _members(annotation: Any) -> tuple:
    """Those of a union; of all else the annotation."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _fits(value: Any, annotation: Any) -> bool:
    return any(_fits_one(value, one) for one in _members(annotation))


def _fits_one(value: Any, kind: Any) -> bool:
    base, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if base is int or base is float:
        return isinstance(value, int if base is int else int | float) and type(value) is not bool
    if base is str:
        return isinstance(value, str | os.PathLike)
    if base is np.ndarray:  # Made of whatever NumPy makes arrays of.
        return hasattr(value, "__array__") or isinstance(value, list | tuple)
    if base in _WALKED:
        if not isinstance(value, Iterable) or isinstance(value, str | bytes):
            return False
        of_numbers = inner and inner[0] in (int, float) and isinstance(value, Sequence)
        return not of_numbers or all(_fits_one(_plain(one), inner[0]) for one in value)
    if base is Literal:
        return isinstance(value, type(inner[0]))  # What else it is the function tells.
    if base in _ANYTHING:
        return True
    try:
        return isinstance(value, base)
    except TypeError:  # A name that is known to type checkers alone, or some protocols.
        return True


def _words(annotation: Any) -> str:
    words: list[str] = []
    for one in _members(annotation):
        base, inner = typing.get_origin(one) or one, typing.get_args(one)
        if base is Literal:
            words += map(repr, inner)
        elif base in _WALKED:
            words.append(f"a list of {_OF[inner[0]]}" if inner and inner[0] in _OF else "a list")
        elif base in _WORDS:
            words.append(_WORDS[base])
        else:
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", getattr(base, "__name__", str(base))).lower()
            words.append(name if name.endswith("s") else f"a{'n' * (name[0] in 'aeio')} {name}")
    return " or ".join(dict.fromkeys(words))
