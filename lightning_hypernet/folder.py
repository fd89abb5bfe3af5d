"""Folder: where an ensemble is kept, as safetensors and a recipe in JSON."""

from __future__ import annotations

import json
import os
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lightning_hypernet.archive import (
    FORMAT,
    ArchiveError,
    Stored,
    check_format,
    differing,
    listed,
    not_finite,
    not_storable,
    read_safetensors,
    refuse,
)
from lightning_hypernet.values import instance

_TENSORS, _RECIPE = "ensemble.safetensors", "ensemble.json"
_KINDS = {"members": int, "choices": dict, "frozen": list, "aliases": dict, "tensors": dict, "checksum": int}
_MORE = {"reduce", "execution", "feed", "batch_dim", "target", "format"}


def write(folder: str | Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files; each takes the place of an older one when it is whole.

    Args:
        folder: Made if it does not exist.
        content: What is kept beside the tensors, in plain values.
        tensors: The tensors.

    Raises:
        TypeError: If the content is no plain values.
        ValueError: If tensors hold NaN or infinite numbers, or what is there is no folder.
    """
    folder = _path(folder)
    json.dumps(content)
    refuse(folder, [*not_storable(tensors), *problems_of_numbers(tensors)], "stored")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and an ensemble is stored in a folder of two files: name another place")
    folder.mkdir(parents=True, exist_ok=True)
    with _temporary(folder, _TENSORS) as first, _temporary(folder, _RECIPE) as second:
        save_file(dict(tensors), first)
        whole = {"format": FORMAT, **content, "tensors": listed(tensors), "checksum": _checksum(first)}
        second.write_text(json.dumps(whole, indent=2))
        os.replace(first, folder / _TENSORS)
        os.replace(second, folder / _RECIPE)


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Read what `write` wrote: the content, and the tensors.

    Raises:
        ArchiveError: If a file is missing, cut off or of an unknown format, or the two do not belong together.
    """
    folder = _path(folder)
    try:
        content = json.loads((folder / _RECIPE).read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArchiveError(f"{folder / _RECIPE} can't be loaded: {reason}") from error
    if not isinstance(content, dict):
        raise ArchiveError(f"{folder / _RECIPE} can't be loaded: it holds no recipe")
    check_format(folder, content)
    tensors = read_safetensors(folder / _TENSORS)
    problems = [f"{key} is {content.get(key)!r}" for key, kind in _KINDS.items() if type(content.get(key)) is not kind]
    problems += [f"{key} is missing" for key in sorted(_MORE - set(content))]
    problems += [f"{key} is unknown" for key in sorted(set(content) - set(_KINDS) - _MORE)]
    refuse(folder, problems)
    problems = differing(tensors, content["tensors"], "what was saved")
    problems += [f"{name} holds {tensor.shape[:1]} members, not {content['members']}" for name, tensor in tensors.items()
                 if not name.startswith("target.") and tensor.shape[:1] != (content["members"],)]  # fmt: skip
    if content["members"] < 1:
        problems.append(f"there are {content['members']} members")
    refuse(folder, problems)
    read = {name: tensor.read() for name, tensor in tensors.items()}
    refuse(folder, problems_of_numbers(read))
    if _checksum(folder / _TENSORS) != content["checksum"]:
        refuse(folder, [f"{_TENSORS} is not the one that {_RECIPE} was saved with, or was changed since"])
    return content, {name: Stored.of(tensor) for name, tensor in read.items()}


def _path(folder: Any) -> Path:
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
def _temporary(folder: Path, name: str) -> Iterator[Path]:
    """A file beside the one that it shall replace, which is gone in the end."""
    path = folder / f".{name}.{uuid.uuid4().hex}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
