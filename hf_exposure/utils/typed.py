"""Arguments checked by what the signature says they are: a wrong type is refused at the door."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from hf_exposure.utils.checks import (
    check_count,
    check_model,
    check_numbers,
    check_path,
    check_share,
    check_tokenizer,
    kind_of,
)

F = TypeVar("F", bound=Callable[..., Any])
_PLAIN: dict[str, tuple[type, str]] = {
    "bool": (bool, "True or False"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "str": (str, "a string"),
    "slice": (slice, "a slice"),
}


def typed(function: F) -> F:
    """A function, or a class by its constructor, that refuses arguments of the wrong type.

    Judged are booleans, numbers, strings, paths, the package's own classes, lists and mappings,
    each also if it may be None; what else a signature says is left to the function. NaN is no
    number, nor is a whole number that no float can hold, where a float is asked for.
    """
    wrapped: Any = function
    if inspect.isclass(function):
        record = hasattr(function, "__dataclass_fields__")  # which may hold what is not known
        wrapped.__init__ = _wrapped(wrapped.__init__, function.__name__, True, nan=record)
    else:
        first = next(iter(inspect.signature(function).parameters), "")
        wrapped = _wrapped(function, function.__qualname__, first in ("self", "cls"))
    return cast(F, wrapped)


def _wrapped(function: Any, name: str, bound: bool, nan: bool = False) -> Any:
    parameters = list(inspect.signature(function).parameters.values())[bound:]
    tests = {
        one.name: test
        for one in parameters
        if one.kind is not one.VAR_KEYWORD
        and isinstance(one.annotation, str)
        and (test := _test(one.annotation, one.name, nan)) is not None
    }
    names = [one.name for one in parameters]

    @functools.wraps(function)
    def wrapper(*args: Any, **given: Any) -> Any:
        for argument, value in (*zip(names, args[bound:], strict=False), *given.items()):
            if argument in tests:
                tests[argument](f"{_named(name, args) if bound else name}: {argument}", value)
        return function(*args, **given)

    return wrapper


def _named(name: str, args: tuple[Any, ...]) -> str:
    """A method by the class that somebody has called, which may inherit it."""
    owner = args[0] if inspect.isclass(args[0]) else type(args[0])
    _, dot, method = name.partition(".")
    return f"{owner.__name__}{dot}{method}"


_MODELS = ("model", "base", "reference")  # of no type of their own: wrapped in many ways


def _check_card(what: str, value: Any) -> None:
    if not hasattr(value, "data") or not hasattr(value, "content"):  # a ModelCard
        check_path(what, value)


def _check_axes(what: str, value: Any) -> None:
    if not hasattr(value, "set_xlabel") or isinstance(value, type):
        raise TypeError(f"{what} must be Matplotlib axes, not {kind_of(value)}")


def _check_trainer(what: str, value: Any) -> None:
    if not hasattr(value, "callback_handler"):
        raise TypeError(f"{what} must be a Trainer, not {kind_of(value)}")


_SPECIAL: dict[str, Callable[[str, Any], object]] = {
    "str | os.PathLike[str]": check_path,
    "PreTrainedTokenizerBase": check_tokenizer,
    "ModelCard | str | os.PathLike[str]": _check_card,
    "Axes": _check_axes,
    "Trainer": _check_trainer,
    "Floats": check_numbers,
}
# Arguments that are called the same everywhere have the same range everywhere.
_NAMED: dict[str, tuple[str, Callable[[str, Any], object]]] = {
    "batch_size": ("int", functools.partial(check_count, least=1)),
    "confidence": ("float", check_share),
    "seed": ("int", check_count),
    "step": ("int", check_count),
}


def _test(annotation: str, name: str, nan: bool = False) -> Callable[[str, Any], None] | None:
    """What refuses a value that is none of the annotation's types; None if they are not known."""
    parts = re.split(r" \| (?![^\[]*\])", annotation)
    optional = "None" in parts
    parts = [part for part in parts if part != "None"]
    special = _SPECIAL.get(" | ".join(parts))
    if parts == [_NAMED.get(name, ("",))[0]]:
        special = _NAMED[name][1]
    elif parts == ["Any"] and name in _MODELS:
        special = check_model
    if special is not None:
        check = special

        def test_special(what: str, value: Any) -> None:
            if not (optional and value is None):
                check(what, value)

        return test_special
    kinds = [_kind(part) for part in parts]
    if not kinds or None in kinds:
        return None
    wanted = " or ".join(one[1] for one in kinds if one)
    saved = [part for part in parts if part in _SAVED]

    def test(what: str, value: Any) -> None:
        if optional and value is None:
            return
        if not any(one and one[0](value) for one in kinds):
            if isinstance(value, (list, tuple)) and (item := _item(parts[-1])):
                for one in value:
                    if not item[0](one):
                        wrong = f"must be {item[1]}, not {kind_of(one)}"
                        raise TypeError(f"{what}: each of them {wrong}")
            path = isinstance(value, (str, os.PathLike)) and saved
            advice = f"; load a file first, with {saved[0]}.load(path)" if path else ""
            raise TypeError(f"{what} must be {wanted}, not {kind_of(value)}{advice}")
        if not nan and "float" in parts and isinstance(value, Real) and not _is_float(value):
            given = "nan" if value != value else "a number of hundreds of digits"
            raise ValueError(f"{what}={given} is out of range; give a number that a float can hold")

    return test


def _is_float(value: Real) -> bool:
    try:
        return not math.isnan(float(value))
    except OverflowError:
        return False


def _kind(part: str) -> tuple[Callable[[Any], bool], str] | None:
    """Whether a value is of one type, and what to call it."""
    if part in _PLAIN:
        wanted, called = _PLAIN[part]
        numeric = part in ("int", "float")  # True is an int to Python
        return (
            lambda value: isinstance(value, wanted) and not (numeric and isinstance(value, bool)),
            called,
        )
    outer, _, inner = part.rstrip("]").partition("[")
    if outer in _LISTS:
        if outer == "tuple" and not inner.endswith(", ..."):  # of fixed length
            return None
        inner = inner.removesuffix(", ...")
        if inner == "Any":  # rows, of which the function knows better what they may be
            return None
        item = _kind(inner)
        plural = {"str": "strings", "int": "whole numbers", "float": "numbers"}
        called = f"a list of {plural.get(inner, f'{inner} objects')}"
        return lambda value: _is_list(value, item and item[0], inner in _CLASSES), called
    if outer in ("Mapping", "dict"):
        return lambda value: isinstance(value, Mapping), "a dictionary"
    if part in _CLASSES:
        article = "an" if part[0] in "AEIO" else "a"
        called = f"{article} {part}{' object' * part.endswith('s')}"
        return lambda value: _is_ours(value, part), called
    return None


def _item(part: str) -> tuple[Callable[[Any], bool], str] | None:
    """The type of a list's items, if it is known."""
    outer, _, inner = part.rstrip("]").partition("[")
    return _kind(inner.removesuffix(", ...")) if outer in _LISTS else None


def _is_list(value: Any, item: Callable[[Any], bool] | None, ours: bool) -> bool:
    """Whether it is a list whose items are what `item` lets through; of arrays, which may be large,
    the first item stands for all but where they are to be objects of our own."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return False
    if getattr(value, "ndim", 1) == 0 or isinstance(value, Mapping):
        return False
    judged = isinstance(value, (list, tuple, set)) or (ours and not isinstance(value, Iterator))
    if item is None or (isinstance(value, Iterator) and not judged):
        return True
    return all(map(item, value if judged else itertools.islice(value, 1)))


_LISTS = ("Iterable", "Sequence", "Collection", "tuple")
# By name: their modules may not be imported for a check.
_SAVED = "Canaries Exposures Extractions Generations History".split()  # which files hold
_CLASSES = [
    *_SAVED,
    *"AuditEntry Canary Candidate Check Evidence Exposure Extraction InjectionReport".split(),
    *"Insertion Limits Measurement MembershipRow SecretFormat SkewNormal TextScores".split(),
    "Verdict",
]


def _is_ours(value: Any, name: str) -> bool:
    return any(
        one.__name__ == name and one.__module__.startswith("hf_exposure.")
        for one in type(value).__mro__
    )
