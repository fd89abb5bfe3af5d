"""Tables: rows of texts, in columns."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first row their titles; numbers stand to the right.

    Args:
        rows: Texts, as many in each row.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(cell[:1].isdigit() or cell in ("", "-") or cell[0] in "+-" for cell in column[1:]) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width) for cell, width, number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    )


def size(numbers: float) -> str:
    """Bytes, in the unit that suits them."""
    for unit in ("B", "KiB", "MiB"):
        if numbers < 1024:
            return f"{numbers:.3g} {unit}" if numbers < 999.5 else f"{numbers:.0f} {unit}"
        numbers /= 1024
    return f"{numbers:.3g} GiB" if numbers < 999.5 else f"{numbers:,.0f} GiB"
