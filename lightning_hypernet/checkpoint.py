"""Checkpoints: what a Hypernet was built with, written and read in one place."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_hypernet import bundle
from lightning_hypernet.archive import (
    ENDLESS,
    FORMAT,
    ArchiveError,
    Stored,
    another,
    check_format,
    differing,
    listed,
    misshapen,
    not_finite,
    plain,
    read_checkpoint,
    refuse,
)
from lightning_hypernet.shards import is_sharded
from lightning_hypernet.values import guess, instance, shown

_KEY = "hypernet"
_LOSSES = "diversity."


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
        "tensors": listed(
            {key: one for key, one in _under(prefix, checkpoint["state_dict"]).items() if isinstance(one, Tensor)}
        ),
    }


def write_folder(
    folder: str | Path, module: nn.Module, options: Mapping[str, Any], needs: Sequence[tuple[str, str, str]],
    target: Mapping[str, Any] | None,
) -> None:  # fmt: skip
    """Store a Hypernet in a folder, as safetensors and a recipe in JSON.

    Args:
        folder: Made if it does not exist.
        module: The Hypernet.
        options: What it was built with.
        needs: What it has of plug-ins.
        target: How to build the target; None: whoever loads it has one.

    Raises:
        TypeError: If the state of a part of it is neither tensors nor plain values.
        ValueError: If a part of it was given as an object without a name, or is sharded, or tensors hold NaN or infinite
            numbers.
    """
    state = module.state_dict()
    versions = getattr(state, "_metadata", {})
    kept = OrderedDict(_under("", state))
    sharded = [name for name, value in kept.items() if isinstance(value, Tensor) and is_sharded(value)]
    if sharded:
        raise ValueError(f"{sharded[0]} is sharded over ranks: save a checkpoint, and load it with Hypernet.from_checkpoint")
    kept._metadata = {key: one for key, one in versions.items() if not f"{key}.".startswith(_LOSSES)}  # type: ignore[attr-defined]
    checkpoint = {"state_dict": kept}
    write(checkpoint, type(module.target).__name__, "", options, needs)
    bundle.write(folder, checkpoint[_KEY][type(module.target).__name__], kept, target)


def recipe_of(checkpoint: Mapping[str, Any], target: str) -> dict[str, Any] | None:
    """The options that a Lightning checkpoint keeps of the Hypernet of a target; None if it has none.

    Raises:
        ArchiveError: If their format is another.
    """
    recipe = checkpoint.get(_KEY, {}).get(target)
    if recipe is None:
        return None
    check_format("the checkpoint", recipe)
    return dict(recipe["options"])


@dataclass(frozen=True, eq=False)
class Kept:
    """What a Lightning checkpoint, or a folder, keeps of a Hypernet.

    Args:
        path: Of either.
        options: What it was built with.
        needs: What it had of plug-ins.
        tensors: The tensors of its state dict, without those of diversity losses, none of which is read yet.
        extra: The other values of its state dict.
        versions: The versions of its modules.
    """

    path: str | Path
    options: dict[str, Any]
    needs: list[tuple[str, str, str]]
    tensors: dict[str, Stored]
    extra: dict[str, Any]
    versions: dict[str, Any]

    @property
    def numbers(self) -> int:
        """How many numbers its tensors have."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @contextmanager
    def building(self) -> Iterator[None]:
        """Name the file in whatever goes wrong with its options."""
        try:
            yield
        except ArchiveError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ArchiveError(f"{self.path} can't be loaded: {' '.join(str(error).split())}") from error

    def load_into(self, module: nn.Module, changed: Mapping[str, Any]) -> None:
        """Load the state into what was built of the options.

        Args:
            module: The Hypernet.
            changed: Options that it was built with in place of those of the file, and their values.

        Raises:
            ArchiveError: If it does not fit; nothing is loaded then.
        """
        wanted = _under("", module.state_dict())
        tensors = {name: value for name, value in wanted.items() if isinstance(value, Tensor)}
        problems = differing(self.tensors, listed(tensors), f"the Hypernet of this {type(module.target).__name__}")
        if not changed:
            parameters = {name: one.detach() for name, one in module.named_parameters()}
            problems = another(listed(self.tensors), listed(parameters), problems)
        elif problems:
            others = [
                f"{option} is {value!r}, and {self.options.get(option)!r} in the file" for option, value in changed.items()
            ]
            problems = [*others, *problems]
        lacking = [name for name in wanted if name not in {*tensors, *self.extra}]
        refuse(self.path, [*problems, *(f"{name} is missing" for name in lacking)])
        for extra in self.extra.values():
            kept = extra.get("options") if isinstance(extra, dict) else None
            if isinstance(kept, dict):
                extra["options"] = {option: value for option, value in kept.items() if option not in changed}
        state = OrderedDict({name: one.read() for name, one in self.tensors.items()} | self.extra)
        problems = [text for name in self.tensors for text in not_finite(name, state[name], name.startswith("target."))]
        problems += [text for name, one in self.extra.items() for text in _not_finite_within(name, one)]
        component, components = state.get("members.stored.component"), self.options["components"]
        if isinstance(component, Tensor) and not bool(((component >= 0) & (component < components)).all()):
            problems.append(f"members.stored.component is not in 0 to {components - 1}")
        refuse(self.path, problems)
        state._metadata = OrderedDict(self.versions)  # type: ignore[attr-defined]
        with self.building():
            module.load_state_dict(state)


def read(path: str | Path, name: str | None = None, known: Collection[str] = (), trust: bool = False) -> Kept:
    """Read what a Lightning checkpoint, or a folder, keeps of a Hypernet; its tensors are described and not read.

    Args:
        path: Of either. Of what it holds beside tensors and plain values nothing is imported or run.
        name: The callback's `target`, if there were several.
        known: The options that there are.
        trust: Read objects of other classes too, by their own code; a folder has none.

    Raises:
        ArchiveError: If it is no whole checkpoint or folder, holds no such Hypernet, or one of an unknown format or that is not
            whole.
    """
    instance("path", path, (str, os.PathLike), "that of a checkpoint")
    trust = trust and not os.path.isdir(path)
    content = _of_folder(path) if os.path.isdir(path) else _trusted(path) if trust else read_checkpoint(path)
    problems: list[str] = []
    recipes = plain(content.get(_KEY, {}), "its recipe", problems)
    refuse(path, (problem for problem in problems if problem.endswith(ENDLESS)))
    recipes = recipes if isinstance(recipes, dict) else {}
    name = next(iter(recipes), None) if name is None else name
    if name not in recipes or not isinstance(recipes[name], dict):
        raise ArchiveError(
            f"{path} holds no Hypernet for the target {name!r}; it has {list(recipes)}{guess(name, recipes)} "
            "(save_weights_only=True leaves them out)"
        )
    recipe = recipes[name]
    check_format(path, recipe)
    kinds = {"prefix": str, "options": dict, "needs": list, "tensors": dict}
    problems += [f"{key} is {shown(recipe.get(key))}" for key, kind in kinds.items() if not isinstance(recipe.get(key), kind)]
    refuse(path, problems)
    there = set(map(str, recipe["options"]))
    problems += [f"the option {shown(option)[1:-1]} is none of the Hypernet's" for option in sorted(there - set(known))]
    problems += [f"the option {option} is missing" for option in known if option not in {*there, "example_inputs"}]
    problems += misshapen(recipe["tensors"], "tensors")
    refuse(path, problems)
    needs = [tuple(need) if isinstance(need, list) else () for need in recipe["needs"]]
    if any(len(need) != 3 or not all(isinstance(text, str) for text in need) for need in needs):
        problems.append(f"needs is {recipe['needs']!r}")
    whole = content.get("state_dict")
    names = {key: value for key, value in dict.items(whole) if isinstance(key, str)} if isinstance(whole, dict) else {}
    state = _under(recipe["prefix"], names)
    extra = {key: value for key, value in state.items() if not isinstance(value, (Stored, Tensor))}
    stored = {key: value for key, value in state.items() if key not in extra}
    tensors = {key: value if isinstance(value, Stored) else Stored.of(value) for key, value in stored.items()}
    problems += differing(tensors, recipe["tensors"], "what was saved")
    if not isinstance(getattr(whole, "_metadata", {}), dict):
        problems.append("the versions are no mapping")
    versions = plain(getattr(whole, "_metadata", {}), "the versions", problems)
    if not trust:
        extra = {key: _read(plain(value, key, problems)) for key, value in extra.items()}
    refuse(path, problems)
    kept = {
        f"{key}.".removeprefix(recipe["prefix"]).rstrip("."): value
        for key, value in versions.items()
        if f"{key}.".startswith(recipe["prefix"]) and isinstance(value, dict)
    }
    return Kept(path, recipe["options"], needs, tensors, extra, kept)


def _of_folder(folder: str | Path) -> dict[Any, Any]:
    """What a folder keeps, in the form of a checkpoint."""
    recipe, state = bundle.read(folder)
    return {_KEY: {"": {**recipe, "prefix": ""}}, "state_dict": state}


def _trusted(path: str | Path) -> dict[Any, Any]:
    """A checkpoint, read by the code that it names."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # of whatever code that is
        reason = error.strerror if isinstance(error, OSError) else None
        raise ArchiveError(f"{path} can't be loaded: {reason or ' '.join(str(error).split())}") from error
    return content if isinstance(content, dict) else {}


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a state dict whose names have a prefix, by the rest of the name, without those of diversity losses."""
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in found.items() if not key.startswith(_LOSSES)}


def _not_finite_within(name: str, value: Any) -> list[str]:
    if isinstance(value, Tensor):
        return not_finite(name, value)
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{name} is {value}"]
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return [text for key, entry in entries for text in _not_finite_within(f"{name}.{key}", entry)]


def _read(value: Any) -> Any:
    """Plain values, their tensors read."""
    if isinstance(value, Stored):
        return value.read()
    if isinstance(value, dict):
        return {key: _read(entry) for key, entry in value.items()}
    return type(value)(_read(entry) for entry in value) if isinstance(value, (list, tuple)) else value


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
