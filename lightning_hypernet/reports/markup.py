"""Markup: the pieces a report's page is made of; every text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

Cell = str | float | None
"""A text, a number, or nothing."""


def text_of(value: Cell, percent: bool = False) -> str:
    """A cell as people read it.

    Args:
        value: A text, a number or None.
        percent: Whether a number is a share.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, str):
        return value
    if percent:
        return f"{100 * value:.2f} %"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    percents: Sequence[bool] | None = None,
    best: Mapping[int, int] | None = None,
) -> str:
    """A table that is sorted by clicking on its heads.

    Args:
        heads: Names of the columns.
        rows: The cells; the first of a row names it.
        percents: For every row whether its numbers are shares; None: for every column whose head ends with ``%``.
        best: For rows the column of the best cell.
    """
    numeric = [any(isinstance(row[column], (int, float)) for row in rows) for column in range(len(heads))]
    lines = ['<div class="scroll"><table><thead><tr>']
    for head, right in zip(heads, numeric, strict=True):
        kind = ' class="number"' if right else ""
        lines.append(f'<th scope="col"{kind}><button type="button">{escape(head)}</button></th>')
    lines.append("</tr></thead><tbody>")
    for index, row in enumerate(rows):
        lines.append("<tr>")
        for column, (cell, right) in enumerate(zip(row, numeric, strict=True)):
            share = percents[index] if percents is not None else heads[column].endswith("%")
            kinds = ["number"] * right + ["best"] * ((best or {}).get(index) == column)
            kind = f' class="{" ".join(kinds)}"' if kinds else ""
            value = f' data-value="{float(cell):.9g}"' if isinstance(cell, (int, float)) else ' data-value="-Infinity"' * right
            tag = 'th scope="row"' if not column else "td"
            shown = escape(text_of(cell, share)).removesuffix(" %") if percents is None else escape(text_of(cell, share))
            lines.append(f"<{tag}{kind}{value}>{shown}</{tag[:2]}>")
        lines.append("</tr>")
    return "".join([*lines, "</tbody></table></div>"])


def card(title: str, note: str, picture: str) -> str:
    """A picture with its name and what it says."""
    return f'<figure class="card"><h3>{escape(title)}</h3><p class="note">{escape(note)}</p>{picture}</figure>'


def cards(pictures: Sequence[str]) -> str:
    """Pictures side by side, as many as fit."""
    return f'<div class="cards">{"".join(pictures)}</div>' if pictures else ""


def tiles(figures: Sequence[tuple[str, str]]) -> str:
    """Figures that are seen first: each with its name."""
    rows = "".join(f"<li><strong>{escape(value)}</strong><span>{escape(name)}</span></li>" for value, name in figures)
    return f'<ul class="tiles">{rows}</ul>'


def terms(pairs: Mapping[str, str]) -> str:
    """Names and what they are."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs.items()) + "</dl>"


def paragraph(text: str, kind: str = "lead") -> str:
    """A paragraph."""
    return f'<p class="{kind}">{escape(text)}</p>'


def code(text: str) -> str:
    """Lines of code."""
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def document(title: str, lead: str, first: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole page, which needs nothing beside itself.

    Args:
        title: Its title.
        lead: What it is about, one sentence.
        first: Markup under the title.
        sections: Names of anchors, titles, and markup.
        footer: Markup at the end.
    """
    folder = files("lightning_hypernet.reports")
    style, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    links = "".join(f'<a href="#{name}">{escape(head)}</a>' for name, head, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{escape(head)}</h2>{inner}</section>' for name, head, inner in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>\n{style}</style></head><body>"
        f'<header><p class="eyebrow">Hypernetwork report</p><h1>{escape(title)}</h1>{paragraph(lead)}{first}</header>'
        f'<nav aria-label="Sections"><div>{links}<button type="button" id="theme">Dark</button></div></nav>'
        f"<main>{body}</main><footer>{footer}</footer><script>\n{script}</script></body></html>\n"
    )
