"""Checkpoints: what a Hypernet was built with, written and read in one place."""

from __future__ import annotations

import collections
import pickle
import types
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORMAT = 3
_KEY = "hypernet"


@dataclass(frozen=True, eq=False)
class Unnamed:
    """An object among plain values, which has no name to be found by again; equal to itself alone.

    Args:
        value: The object.
    """

    value: Any

    def __repr__(self) -> str:
        return repr(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unnamed) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a Hypernet in plain values, as checkpoints and YAML hold them; other objects are `Unnamed`."""
    return {name: _plain(value) for name, value in options.items()}


def differences(built: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Which arguments, in plain values, that are asked for are others than those built with, in words."""
    found = []
    for name, value in asked.items():
        was = built[name]
        if isinstance(was, Mapping) and isinstance(value, Mapping) and was.keys() == value.keys():
            found += [f"{name}.{key}={was[key]!r}, not {one!r}" for key, one in value.items() if one != was[key]]
        elif value != was:
            found.append(f"{name}={was!r}, not {value!r}")
    return found


def write(
    checkpoint: dict[str, Any],
    target: str,
    prefix: str,
    options: Mapping[str, Any],
    needs: Sequence[tuple[str, str, str]] = (),
) -> None:
    """Store the recipe of a Hypernet in a Lightning checkpoint.

    Args:
        checkpoint: The checkpoint.
        target: Path of the target in the LightningModule.
        prefix: What the names of the Hypernet's tensors begin with.
        options: What it was built with.
        needs: What it has of plug-ins.

    Raises:
        ValueError: If a part of it was given as an object without a name, which nobody could find again.
    """
    found = list(unnamed(options))
    if found:
        raise ValueError(
            f"the {' and the '.join(found)} of the target {target!r} can't be stored: given as an object, it has no name to "
            "be found by again; register it with a plug-in and choose it by its name"
        )
    checkpoint.setdefault(_KEY, {})[target] = {
        "format": FORMAT,
        "prefix": prefix,
        "options": dict(options),
        "needs": [list(need) for need in needs],
    }


def recipe_of(checkpoint: Mapping[str, Any], target: str) -> dict[str, Any] | None:
    """The options that a Lightning checkpoint keeps of the Hypernet of a target; None if it has none."""
    recipe = checkpoint.get(_KEY, {}).get(target)
    return None if recipe is None else dict(recipe["options"])


def read(
    path: str | Path, name: str | None = None, changed: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Tensor], list[tuple[str, str, str]]]:
    """Read a Hypernet's recipe and tensors from a Lightning checkpoint.

    Args:
        path: The checkpoint. Of what it holds beside tensors and plain values nothing is imported or run.
        name: The callback's `target`, if there were several.
        changed: Options that shall be others.

    Returns:
        The options, the state dict without diversity losses, and what it had of plug-ins.

    Raises:
        ValueError: If the checkpoint holds no such Hypernet or has an unknown format.
    """
    checkpoint = _load(path)
    recipes = checkpoint.get(_KEY, {})
    name = next(iter(recipes), None) if name is None else name
    if name not in recipes:
        raise ValueError(
            f"{path} holds no Hypernet for the target {name!r}; it has {list(recipes)} (save_weights_only=True leaves them out)"
        )
    recipe = recipes[name]
    check_format(path, recipe)
    prefix = recipe["prefix"]
    whole = checkpoint["state_dict"]
    state = OrderedDict(
        (key.removeprefix(prefix), value)
        for key, value in whole.items()
        if key.startswith(prefix) and not key.startswith(f"{prefix}diversity.")
    )
    versions = getattr(whole, "_metadata", {})
    state._metadata = OrderedDict(  # type: ignore[attr-defined]
        (f"{key}.".removeprefix(prefix).rstrip("."), value) for key, value in versions.items() if f"{key}.".startswith(prefix)
    )
    for option in changed:
        checkpoint["state_dict"][f"{prefix}_extra_state"]["options"].pop(option, None)
    return recipe["options"], state, [tuple(need) for need in recipe["needs"]]


class _Unknown:
    """Takes the place of an object in a file whose class is not loaded; it holds nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Unknown:
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, *_: Any) -> None: ...

    def append(self, _: Any) -> None:
        """Take an entry."""

    extend = add = append


class _Unpickler(pickle.Unpickler):
    """Reads tensors and plain values; whatever else a file names is neither imported nor called."""

    def find_class(self, module: str, name: str) -> Any:
        """What builds tensors and containers, or `_Unknown`."""
        if module == "collections" and name in ("OrderedDict", "defaultdict"):
            return getattr(collections, name)
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_tensor"):
            return getattr(torch._utils, name)
        found = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
        if isinstance(found, torch.dtype) or found in (torch.Size, torch.device) or name.endswith("Storage"):
            return found
        return _Unknown


def _load(path: str | Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # objects among the hyperparameters, say
        reader = types.SimpleNamespace(Unpickler=_Unpickler, load=pickle.load, __name__="pickle")
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)


def check_format(path: str | Path, recipe: Mapping[str, Any]) -> None:
    """See that a recipe, of a checkpoint or of an ensemble, has the present format.

    Raises:
        ValueError: If it has another.
    """
    if recipe.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {recipe.get('format')!r}, not {FORMAT}; read it with the version that wrote it"
        )


def _plain(value: Any) -> Any:
    """Mappings and lists of plain values; any other object is `Unnamed`."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (Tensor, np.generic)) and value.ndim == 0:
        value = value.item()
    return value if value is None or type(value) in (str, bool, int, float) else Unnamed(value)


def unnamed(value: Any, path: str = "") -> Iterator[str]:
    """Where objects without a name are, as in ``prior.distribution``."""
    if isinstance(value, Unnamed):
        yield path
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from unnamed(entry, f"{path}.{key}" if path else str(key))
