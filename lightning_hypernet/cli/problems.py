"""Problems: what goes wrong on the command line, in one sentence."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.values import guess

_EXTRA = ("jsonargparse", "docstring_parser", "yaml", "shtab")
"""What the extra ``cli`` brings."""
_NOISE = ("Does not validate", "Expected a path", "Expected a <class 'NoneType'>", "Not a valid subclass", "Subtypes:")
_ANY = re.compile(r"^\s*- ", re.MULTILINE)
_SPEAKING = (ValueError, TypeError, OSError, RuntimeError, LookupError, ArithmeticError)


class CommandError(ValueError):
    """What the user of a command can mend; the message says how."""


def sentence(error: BaseException) -> str:
    """An error in one line: what it says, and what it is where that tells more.

    Args:
        error: Whatever was raised.
    """
    if isinstance(error, ModuleNotFoundError):
        asked = re.match(r"Requirement '(\w+)", str(error))  # as Lightning's own command line says it
        name = error.name or (asked[1] if asked else "")
        if name.partition(".")[0] in _EXTRA:
            return f"the command line needs {name}: pip install 'lightning_hypernet[cli]'"
    text = _shortest(str(error))
    text += _remedy(text)
    if isinstance(error, KeyError) or not text:
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    known = isinstance(error, _SPEAKING) or type(error).__module__.startswith(("argparse", "jsonargparse", "pytorch_lightning",
                                                                                "lightning"))  # fmt: skip
    return text if known and not isinstance(error, ImportError) else f"{type(error).__name__}: {text}"


def _shortest(text: str) -> str:
    """What jsonargparse says of a value that fits none of several types: of the first alone that was meant."""
    key = re.match(r'Parser key "(.*?)":?\s*', text)
    rest = text[key.end() :] if key else text
    if "Does not validate against any of the Union subtypes" in rest:
        entries = [
            " ".join(entry.split()) for entry in _ANY.split(rest.partition("\nGiven value")[0].partition("\n  Given")[0])
        ]
        meant = [entry for entry in entries if entry and not entry.startswith(_NOISE)]
        rest = re.sub(r"^Problem with given class_path '([^']*)':", r"\1:", meant[0]) if meant else rest
        asked = re.match(r"(\S*): Option '([^']*)' is not accepted", rest)
        if asked and key:
            near = guess(asked[2], _options_of(asked[1]))
            rest += f"{near or ';'} --{key[1]}.help {asked[1]} behind the command lists its options"
    return " ".join(f"{key[1]}: {rest}".split() if key else rest.split())


def _remedy(text: str) -> str:
    """What to add to a sentence of jsonargparse: the nearest name to one that is unknown, or what is to be given."""
    if re.search(r"arguments are required: (fit|validate|test|predict)\.", text):
        return "; name the YAML file of the training by --config"
    if asked := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", text):
        return guess(asked[1], re.findall(r"'([^']*)'", asked[2]))
    if option := re.search(r"does not accept option '([^'.]*)\.?([^']*)'", text):
        head, rest = option[1], option[2]
        heads = difflib.get_close_matches(head, ("trainer", "model", "data", "optimizer", "lr_scheduler", "seed_everything"), 1)
        names = _options_of("pytorch_lightning.Trainer") if heads == ["trainer"] else []
        rests = difflib.get_close_matches(rest, names, 1) if rest else []
        near = ".".join([*(heads or [head]), *(rests or [rest] if rest else [])])
        return f"; did you mean {near!r}?" if near != f"{head}.{rest}".rstrip(".") else ""
    if name := re.search(r"module '([^']*)' has no attribute '([^']*)'", text):
        module = sys.modules.get(name[1])
        return guess(name[2], [one for one in (*dir(module), *getattr(module, "__all__", ())) if not one.startswith("_")])
    return ""


def _options_of(path: str) -> list[str]:
    """The names of the arguments of a class that was imported, with those that `HypernetCallback` passes on."""
    module, _, name = path.rpartition(".")
    made = getattr(sys.modules.get(module), name, None)
    if not inspect.isclass(made):
        return []
    callback = getattr(sys.modules.get("lightning_hypernet.callback"), "HypernetCallback", Hypernet)
    more = [Hypernet] if issubclass(made, callback) else []
    return [option for one in (made, *more) for option in inspect.signature(one).parameters]


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Within, a warning is shown as a line of its own, without the place in the code that it comes from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before
