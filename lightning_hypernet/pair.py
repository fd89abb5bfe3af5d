"""Pair: two files of a folder that belong together, tensors in safetensors and in JSON what is kept beside them."""

from __future__ import annotations

import json
import os
import stat
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lightning_hypernet.archive import (
    FORMAT,
    ArchiveError,
    Stored,
    check_file,
    check_format,
    listed,
    not_finite,
    not_storable,
    read_safetensors,
    refuse,
)
from lightning_hypernet.values import instance


@dataclass(frozen=True)
class Pair:
    """The two files, and how they are written and read.

    Args:
        name: What both are called, before the dot.
        what: What they hold, with its article.
    """

    name: str
    what: str

    @property
    def tensors(self) -> str:
        """The file of tensors."""
        return f"{self.name}.safetensors"

    @property
    def recipe(self) -> str:
        """The file of what is kept beside them."""
        return f"{self.name}.json"

    def write(self, folder: str | Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write both files; each takes the place of an older one when it is whole.

        Args:
            folder: Made if it does not exist.
            content: What is kept beside the tensors, in plain values.
            tensors: The tensors.

        Raises:
            TypeError: If the content is no plain values.
            ValueError: If tensors hold NaN or infinite numbers, or what is there is no folder.
        """
        folder = path_of(folder)
        try:
            json.dumps(content)
        except TypeError as error:
            raise TypeError(f"a recipe and what is stored beside the tensors must be plain values: {error}") from None
        refuse(folder, [*not_storable(tensors), *problems_of_numbers(tensors)], "stored")
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file, and {self.what} is stored in a folder of two files: name another place")
        folder.mkdir(parents=True, exist_ok=True)
        with temporary(folder, self.tensors) as first, temporary(folder, self.recipe) as second:
            save_tensors(first, tensors)
            whole = {"format": FORMAT, **content, "tensors": listed(tensors), "checksum": _checksum(first)}
            second.write_text(json.dumps(whole, indent=2))
            os.replace(first, folder / self.tensors)
            os.replace(second, folder / self.recipe)

    def open(self, folder: str | Path) -> tuple[dict[str, Any], dict[str, Stored]]:
        """Read the content, and what tensors there are; none of them is read yet.

        Raises:
            ArchiveError: If a file is missing, cut off or of an unknown format.
        """
        folder = path_of(folder)
        for name in (self.recipe, self.tensors):
            check_file(folder / name)
        try:
            content = json.loads((folder / self.recipe).read_text())
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ArchiveError(f"{folder / self.recipe} can't be loaded: {reason}") from error
        if not isinstance(content, dict):
            raise ArchiveError(f"{folder / self.recipe} can't be loaded: it holds no recipe")
        check_format(folder, content)
        return content, read_safetensors(folder / self.tensors)

    def check(self, folder: str | Path, content: Mapping[str, Any]) -> None:
        """See that the tensors are those that the content was saved with.

        Raises:
            ArchiveError: If they are not.
        """
        if _checksum(path_of(folder) / self.tensors) != content["checksum"]:
            refuse(folder, [f"{self.tensors} is not the one that {self.recipe} was saved with, or was changed since"])


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a new safetensors file, which may be read by whom other new files may be; by itself safetensors keeps it private.

    Args:
        path: Where nothing is yet.
        tensors: The tensors.
        metadata: Texts that the file holds too.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    path.chmod(stat.S_IMODE(mode))


def path_of(folder: Any) -> Path:
    """The path of a folder.

    Raises:
        TypeError: If it is none.
    """
    instance("folder", folder, (str, os.PathLike), "a path")
    return Path(folder)


def problems_of_numbers(tensors: Mapping[str, Tensor]) -> list[str]:
    """Which tensors hold NaN or infinite numbers, which masks among the target's buffers may, in words."""
    return [text for name, tensor in tensors.items() for text in not_finite(name, tensor, name.startswith("target."))]


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


@contextmanager
def temporary(folder: Path, name: str) -> Iterator[Path]:
    """A file beside the one that it shall replace, which is gone in the end.

    Args:
        folder: Where both lie.
        name: Of the one to replace.
    """
    path = folder / f".{name}.{uuid.uuid4().hex}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
