"""Progress: bars on standard error, drawn by what Lightning's trainers draw theirs with; none where nobody looks."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

_T = TypeVar("_T")


def track(things: Iterable[_T], what: str) -> Iterator[_T]:
    """The same things, with a bar that says how far it is.

    Args:
        things: Anything that gives one after the other.
        what: What is done with them.
    """
    total = len(things) if isinstance(things, Sized) else None
    with _bar(what, total) as step:
        for thing in things:
            yield thing
            step()


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Within, something is done whose end is not known.

    Args:
        what: What is done.
    """
    with _bar(what, None):
        yield


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Any]:
    if not sys.stderr.isatty():
        yield lambda: None
    elif importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        counted = [] if total is None else [BarColumn(), MofNCompleteColumn()]
        columns = [SpinnerColumn(), TextColumn("{task.description}"), *counted, TimeElapsedColumn()]
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)
    else:
        from tqdm import tqdm

        with tqdm(desc=what, total=total, leave=False, file=sys.stderr) as bar:
            yield bar.update
