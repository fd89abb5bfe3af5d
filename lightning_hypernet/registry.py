"""Registry: what plug-ins bring, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from lightning_hypernet.values import guess, read_options

_T = TypeVar("_T")


class Registry(Generic[_T]):
    """Things of one kind, each with a name and the plug-in that brought it.

    Args:
        kind: What the things are, in the singular, for messages.
        check: Tells what is wrong with a thing, or an empty text.
    """

    def __init__(self, kind: str, check: Callable[[Any], str]) -> None:
        self.kind = kind
        self.remark = ""
        self._check = check
        self._things: dict[str, _T] = {}
        self._origins: dict[str, str] = {}

    def __iter__(self) -> Iterator[str]:
        """The names, in the order in which they came."""
        return iter(self._things)

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def add(self, name: str, thing: _T, origin: str) -> None:
        """Take a thing in.

        Raises:
            TypeError: If it is none of the kind.
            ValueError: If its name is taken.
        """
        wrong = self._check(thing)
        if wrong or not isinstance(name, str):
            raise TypeError(f"the {self.kind} {name!r} must be {wrong or 'named by a text'}, not {thing!r}")
        if name in self._things:
            raise ValueError(f"{name!r} is already a {self.kind}, of {self._origins[name]!r}; choose another name")
        self._things[name] = thing
        self._origins[name] = origin

    def remove(self, origin: str) -> None:
        """Give up all that a plug-in brought."""
        for name in [name for name, brought in self._origins.items() if brought == origin]:
            del self._things[name], self._origins[name]

    def find(self, name: str) -> _T:
        """The thing of a name.

        Raises:
            ValueError: If there is none; the message suggests the nearest name.
        """
        if not isinstance(name, str) or name not in self._things:
            there = ", ".join(sorted(self)) or "none"
            raise ValueError(
                f"unknown {self.kind} {name!r}{guess(name, self) or ';'} there are {there}; a plug-in that brings it may be "
                f"missing{self.remark}"
            )
        return self._things[name]

    def origin(self, choice: Any) -> str:
        """The plug-in that brought what a name, or a mapping with its ``name``, asks for; empty for anything else."""
        name = choice.get("name") if isinstance(choice, Mapping) else choice
        return self._origins[name] if isinstance(name, str) and name in self._things else ""

    def chosen(self, choice: str | Mapping[str, Any]) -> tuple[_T, dict[str, Any]]:
        """The thing that a name, or a mapping with its ``name`` and options, asks for; and the options.

        Raises:
            ValueError: If there is no such name.
            TypeError: If the choice is neither.
        """
        options = dict(choice) if isinstance(choice, Mapping) else {"name": choice}
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise TypeError(
                f"a {self.kind} is chosen by its name, or by a mapping with a 'name' and options, not by {choice!r}"
            )
        return self.find(name), options


def made(kind: str, name: Any, make: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    """Make a thing with its options.

    Raises:
        TypeError: If it does not take them; the message names it.
    """
    check_options(kind, name, make, *args, **options)
    try:
        return make(*args, **read_options(make, options))
    except TypeError as error:
        raise TypeError(f"the {kind} {name!r} does not take these options: {error}") from error


def check_options(kind: str, name: Any, make: Callable[..., Any], /, *args: Any, **options: Any) -> None:
    """See that a thing can be made with its options.

    Raises:
        TypeError: If it does not take them; the message names it, and the nearest option.
    """
    name = name.get("name", name) if isinstance(name, Mapping) else name
    try:
        signature = inspect.signature(make)
    except ValueError:  # of what is not written in Python
        return
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        known = [
            one.name
            for one in list(signature.parameters.values())[len(args) :]
            if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        ]
        asked = "".join(guess(option, known) for option in options if option not in known)
        raise TypeError(
            f"the {kind} {name!r} does not take these options: {error}{asked or ';'} there are {', '.join(known) or 'none'}"
        ) from error
