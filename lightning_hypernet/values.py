"""Values: how options are read. YAML and command lines give numbers as texts; what is no value at all is told."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

_SWITCHES = {"true": True, "false": False}


def number(value: Any) -> Any:
    """The number that a text spells, as ``"1e-3"``, or that an array or tensor without axes holds; anything else as it is."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """A whole number, of any size if the least is None.

    Raises:
        ValueError: If it is none, or too small.
    """
    read = number(value)
    fits = isinstance(read, Integral) and not isinstance(read, bool)
    if not fits or (least is not None and read < least):
        wanted = [*([] if fits else ["a whole number"]), *([] if least is None else [f"{least} or more"])]
        raise ValueError(f"{name} must be {', '.join(wanted)}, not {shown(value)}")
    return int(read)


def real(name: str, value: Any, least: float = -math.inf, most: float = math.inf, above: bool = False) -> float:
    """A finite number.

    Args:
        name: Of the option.
        value: What was given.
        least: The least that it may be.
        most: The most.
        above: Whether it must be above the least.

    Raises:
        ValueError: If it is none, or out of range.
    """
    read = number(value)
    fits = isinstance(read, Real) and not isinstance(read, bool) and math.isfinite(read)
    if not fits or not least <= read <= most or (above and read == least):
        if math.isfinite(least) and math.isfinite(most):
            raise ValueError(f"{name} must lie in {least:g} to {most:g}, not {shown(value)}")
        low = "" if least == -math.inf else f", above {least:g}" if above else f", {least:g} or more"
        high = "" if most == math.inf else f", {most:g} or less"
        raise ValueError(f"{name} must be a number{low}{high}, not {shown(value)}")
    return float(read)


def wholes(name: str, value: Any, least: int | None = 1) -> tuple[int, ...]:
    """Whole numbers; one alone stands for a list of one.

    Raises:
        ValueError: If one is none, or too small.
    """
    several = (value,) if isinstance(number(value), Real) else value
    if isinstance(several, (str, Mapping)) or not isinstance(several, Iterable):
        raise ValueError(f"{name} must be whole numbers, not {shown(value)}")
    try:
        return tuple(whole(name, one, least) for one in several)
    except ValueError:
        low = "" if least is None else f", each {least} or more"
        raise ValueError(f"{name} must be whole numbers{low}, not {shown(value)}") from None


def switch(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        ValueError: If it is neither.
    """
    read = _SWITCHES.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(read, bool):
        raise ValueError(f"{name} must be true or false, not {shown(value)}")
    return read


def choice(name: str, value: Any, allowed: Collection[Any]) -> Any:
    """One of several values.

    Raises:
        ValueError: If it is none of them; the message suggests the nearest.
    """
    try:
        if value in allowed:
            return value
    except TypeError:
        pass
    listing = ", ".join(repr(one) for one in allowed)
    raise ValueError(f"{name} must be one of {listing}, not {shown(value)}{guess(value, allowed)}")


def texts(name: str, value: Any, what: str) -> tuple[str, ...]:
    """Texts, such as patterns; one alone stands for a list of one.

    Args:
        name: Of the option.
        value: What was given.
        what: What one is, in the singular.

    Raises:
        TypeError: If one is none.
    """
    listed = isinstance(value, Iterable) and not isinstance(value, Mapping)
    found = tuple(value) if listed and not isinstance(value, str) else (value,)
    if not all(isinstance(one, str) for one in found):
        raise TypeError(f"{name} must be a {what} or a list of {what}s, not {shown(value)}")
    return found


def reals(name: str, value: Any, least: float = -math.inf, above: bool = False) -> tuple[float, ...]:
    """Finite numbers, one or more.

    Raises:
        ValueError: If there are none, or one is no number or out of range.
    """
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of numbers, not {shown(value)}")
    read = tuple(real(name, one, least, above=above) for one in value)
    if not read:
        raise ValueError(f"{name} is empty: give one number or more")
    return read


def instance(name: str, value: Any, kind: type | tuple[type, ...], what: str) -> None:
    """See that a value is an instance of a class.

    Args:
        name: Of the option.
        value: What was given.
        kind: The class, or several.
        what: What it must be, as "an Ensemble, as hypernet.ensemble(10) gives".

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, not {_kind(value)}")


def several(name: str, value: Any, what: str) -> tuple[Any, ...]:
    """The entries of a list.

    Args:
        name: Of the option.
        value: What was given.
        what: What they are, in the plural.

    Raises:
        TypeError: If it is none.
    """
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable) or inspect.isclass(value):
        raise TypeError(f"{name} must be a list of {what}, not {_kind(value)}")
    return tuple(value)


def guess(name: Any, names: Iterable[Any], likeness: float = 0.6) -> str:
    """A question for the nearest of some names, to be put behind one that is unknown; empty if none is near enough."""
    near = difflib.get_close_matches(str(name), [one for one in names if isinstance(one, str)], 1, likeness)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(what: str, names: Iterable[str], known: Collection[str]) -> str:
    """What to say of names that are not known; empty if all are."""
    odd = sorted(str(name) for name in names if name not in known)
    asked = [guess(name, known).removeprefix("; ") for name in odd]
    several = "s" if len(odd) > 1 else ""
    return (
        f"{what} has no option{several} {', '.join(odd)}; {' '.join([*filter(None, asked), ''])}there are {', '.join(known)}"
        if odd
        else ""
    )


def read_options(make: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a thing, numbers as such where its parameters are numbers and YAML gave texts."""
    try:
        taken = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return dict(options)
    read = {}
    for name, value in options.items():
        one = taken.get(name)
        default = getattr(one, "default", None)
        numeric = isinstance(default, (int, float)) and not isinstance(default, bool)
        annotated = re.search(r"\b(int|float)\b", str(getattr(one, "annotation", "")))
        read[name] = number(value) if numeric or annotated else value
    return read


def _kind(value: Any) -> str:
    """A value in a message: texts and numbers as they are, of others what they are."""
    if value is None or isinstance(value, (str, Real)):
        return shown(value)
    if inspect.isclass(value):
        return f"the class {value.__name__}: pass an instance"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def shown(value: Any) -> str:
    """A value in a message, which shall stay one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
