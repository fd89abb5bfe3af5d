"""Formulas of docstrings and pages as MathML, which browsers draw themselves, so that a page fetches nothing."""

import html
import re
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert

BLOCK = re.compile(r"^( *)\.\. math::((?:.*\S.*)?\n(?:\n?(?:\1 +\S.*\n)+)?)", re.MULTILINE)


class Formulas(Extension):
    """Turns the `.. math::` of docstrings into what the Markdown of pages has."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = BLOCK.sub(_display, obj.docstring.value + "\n").rstrip().replace(":math:`", "`")


def _display(found: re.Match[str]) -> str:
    indent, body = found.groups()
    lines = [line.strip() for line in body.strip().splitlines()]
    return "\n".join(f"{indent}{line}" for line in ["$$", *lines, "$$"]) + "\n"


def on_page_content(text: str, **kwargs: Any) -> str:
    """Draw the formulas of a page; called by mkdocs."""
    text = re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', _mathml("block"), text, flags=re.DOTALL)
    return re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', _mathml("inline"), text, flags=re.DOTALL)


def _mathml(display: str) -> Any:
    def drawn(found: re.Match[str]) -> str:
        return convert(html.unescape(found[1]).strip(), display=display)

    return drawn
