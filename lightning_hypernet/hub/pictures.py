"""Pictures: those that a model card shows."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_hypernet.values import shown

FOLDER = "pictures"
"""Where they lie, beside the card."""
_PNG = b"\x89PNG\r\n\x1a\n"
Report = Mapping[str, Any] | str | os.PathLike[str]


def pictures_of(report: Report | None) -> dict[str, tuple[str, bytes]]:
    """For every picture of a report the path of its file, beside the card, and what it holds.

    Args:
        report: A folder, whose ``.png`` and ``.svg`` files are taken by their names, or names and pictures: bytes, the text of
            an SVG, or the path of a file; None: there are none.

    Raises:
        TypeError: If it is neither.
        ValueError: If the folder or a file is not there, or a picture is neither PNG nor SVG.
    """
    if report is None:
        return {}
    if isinstance(report, (str, os.PathLike)):
        folder = Path(report)
        if not folder.is_dir():
            raise ValueError(f"report is {shown(str(folder))}, which is no folder of pictures that is there")
        report = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".png", ".svg")}
    if not isinstance(report, Mapping) or not all(isinstance(name, str) for name in report):
        raise TypeError(f"report must be a folder or a mapping of names and pictures, not {shown(report)}")
    found = {}
    for index, (name, picture) in enumerate(report.items(), 1):
        content = _read(name, picture)
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "picture"
        found[name] = (f"{FOLDER}/{index:02d}-{slug}.{'png' if content.startswith(_PNG) else 'svg'}", content)
    return found


def _read(name: str, picture: Any) -> bytes:
    if isinstance(picture, str) and picture.lstrip().startswith("<"):
        picture = picture.encode()
    if isinstance(picture, (str, os.PathLike)):
        try:
            picture = Path(picture).read_bytes()
        except OSError as error:
            raise ValueError(f"the picture {shown(name)} can't be read: {error.strerror or error}") from error
    if not isinstance(picture, bytes):
        raise TypeError(f"the picture {shown(name)} must be a path, bytes or the text of an SVG, not {shown(picture)}")
    if not picture.startswith(_PNG) and not re.match(
        rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!DOCTYPE[^>]*>\s*)*<svg\b", picture, re.S
    ):
        raise ValueError(f"the picture {shown(name)} is neither PNG nor SVG")
    return picture
