"""Problems: what goes wrong on the command line, in one sentence."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _EXTRA:
        return f"the command line needs {error.name}: pip install 'lightning_hypernet[cli]'"
    text = _shortest(str(error))
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
        asked = re.match(r"(\S*): Option '[^']*' is not accepted", rest)
        if asked and key:
            rest += f"; --{key[1]}.help {asked[1]} behind the command lists its options"
    return " ".join(f"{key[1]}: {rest}".split() if key else rest.split())


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Within, a warning is shown as a line of its own, without the place in the code that it comes from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before
