"""Outcome: a table that is printed, and the numbers behind it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Outcome:
    """What one case of a row gave.

    Args:
        title: Of the table.
        columns: Its columns, that of names first.
        lines: Its lines.
        numbers: What the JSON keeps.
    """

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]
    numbers: dict[str, Any] = field(default_factory=dict)

    def show(self) -> None:
        """Print the table."""
        console = Console(width=None if Console().is_terminal else 160)
        table = Table()
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=True)
        for line in self.lines:
            table.add_row(*line)
        console.print(self.title, soft_wrap=True, highlight=False)
        console.print(table)
