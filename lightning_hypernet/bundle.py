"""Bundle: where a Hypernet is kept without pickle, as safetensors and a recipe in JSON."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_hypernet.archive import Stored, differing, misshapen, refuse
from lightning_hypernet.pair import Pair
from lightning_hypernet.values import shown

PAIR = Pair("hypernet", "a Hypernet")
"""The files."""
_PLACE = "$tensor"
_KINDS = {
    "options": dict, "needs": list, "tensors": dict, "extra": dict, "versions": dict, "checksum": int, "format": int,
}  # fmt: skip


def write(folder: str | Path, recipe: Mapping[str, Any], state: Mapping[str, Any], target: Mapping[str, Any] | None) -> None:
    """Write a Hypernet.

    Args:
        folder: Made if it does not exist.
        recipe: The options that it was built with, and what it needs of plug-ins.
        state: Its state dict; what is no tensor in it is plain values and tensors.
        target: How to build the target; None: whoever loads it has one.

    Raises:
        TypeError: If there are other values.
        ValueError: If tensors hold NaN or infinite numbers, or what is there is no folder.
    """
    tensors = {name: value.detach().clone().contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    extra = {name: _packed(value, name, tensors) for name, value in state.items() if not isinstance(value, Tensor)}
    content = {
        "options": _packed(recipe["options"], "options", None),
        "needs": recipe["needs"],
        "extra": extra,
        "versions": dict(getattr(state, "_metadata", {})),
        "target": None if target is None else dict(target),
    }
    PAIR.write(folder, content, tensors)


def read(folder: str | Path) -> tuple[dict[str, Any], OrderedDict[str, Any]]:
    """Read what was written: the recipe, and a state dict whose tensors are `Stored`.

    Raises:
        ArchiveError: If a file is missing, cut off or of an unknown format, or the two do not belong together.
    """
    content, tensors = PAIR.open(folder)
    problems = [f"{key} is {shown(content.get(key))}" for key, kind in _KINDS.items() if type(content.get(key)) is not kind]
    problems += [] if "target" in content else ["target is missing"]
    problems += [f"{shown(key)[1:-1]} is unknown" for key in sorted(set(content) - {*_KINDS, "target"})]
    refuse(folder, [*problems, *([] if problems else misshapen(content["tensors"], "tensors"))])
    refuse(folder, differing(tensors, content["tensors"], "what was saved"))
    PAIR.check(folder, content)
    state: OrderedDict[str, Any] = OrderedDict(tensors)
    try:
        extra = {name: _unpacked(value, name, state, problems) for name, value in content["extra"].items()}
    except RecursionError:
        extra, problems = {}, ["extra has no end"]
    problems += [f"{name} is both a tensor and none" for name in extra if name in state]
    refuse(folder, problems)
    state.update(extra)
    state._metadata = content["versions"]  # type: ignore[attr-defined]
    recipe = {key: content[key] for key in ("format", "options", "needs", "target")}
    return {**recipe, "tensors": {name: one for name, one in content["tensors"].items() if name in state}}, state


def _packed(value: Any, path: str, tensors: dict[str, Tensor] | None) -> Any:
    """Plain values as JSON holds them; tensors among them go to the others, and leave their name."""
    if isinstance(value, Tensor) and tensors is not None and path not in tensors:
        tensors[path] = value.detach().clone().contiguous()
        return {_PLACE: path}
    if isinstance(value, Mapping):
        odd = [key for key in value if not isinstance(key, str) or key == _PLACE]
        if odd:
            raise TypeError(f"{path} can't be stored: its key {shown(odd[0])} is no text that JSON could hold")
        return {key: _packed(entry, f"{path}.{key}", tensors) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(entry, f"{path}.{index}", tensors) for index, entry in enumerate(value)]
    if value is None or type(value) in (str, bool, int, float):
        return value
    raise TypeError(f"{path} can't be stored: it is a {type(value).__name__}, and tensors and plain values alone are stored")


def _unpacked(value: Any, path: str, tensors: dict[str, Any], problems: list[str]) -> Any:
    """Plain values, the tensors that they name read and taken from the others."""
    if isinstance(value, dict) and set(value) == {_PLACE}:
        named = tensors.pop(value[_PLACE], None) if value[_PLACE] == path else None
        if not isinstance(named, Stored):
            problems.append(f"{path} names {shown(value[_PLACE])}, which is no tensor of its own")
            return None
        return named.read()
    if isinstance(value, dict):
        return {key: _unpacked(entry, f"{path}.{key}", tensors, problems) for key, entry in value.items()}
    if isinstance(value, list):
        return [_unpacked(entry, f"{path}.{index}", tensors, problems) for index, entry in enumerate(value)]
    return value
