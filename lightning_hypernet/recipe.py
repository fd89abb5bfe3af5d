"""Recipes: how a target is built again, on the word of a file that may be a stranger's."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_hypernet.archive import ArchiveError, Stored
from lightning_hypernet.values import guess

_TIMM = "timm.create_model"
_SLACK = 1 << 26
_SHAPED = {"empty", "zeros", "ones", "full", "rand", "randn", "randint", "repeat", "empty_strided", "new_empty", "new_full"}
_FETCHING = {"torchmetrics", "pytorch_lightning", "lightning", "lightning_fabric", "timm", "transformers", "torchvision"}
"""Packages that this one brings, or whose classes may read what is not there; their modules are built by the user."""
_LEAST = 1 << 14
"""Numbers that an operation counts for at least, so that what makes few of them without end ends."""
_COUNTED = {"arange", "randperm", "eye", "linspace"}


def build(recipe: Any, numbers: int, trust: bool = False) -> nn.Module:
    """Build the module of a recipe.

    Args:
        recipe: ``{"class_path": "timm.create_model", "init_args": {...}}``, or the path of a class of modules.
        numbers: How many numbers the file holds, which bounds what is built.
        trust: Import what it names, whatever that is.

    Raises:
        ValueError: If it is none, names what is not loaded without `trust`, asks for more than the file holds, or fails.
    """
    wrong = "; ".join(_form(recipe) or ([] if trust else _untrusted(recipe)))
    if wrong:
        raise ValueError(f"{wrong}: pass target=..." + ("" if trust else ", or trust=True if the file is your own"))
    path, _, name = recipe["class_path"].rpartition(".")
    try:
        maker = getattr(importlib.import_module(path), name) if trust or recipe["class_path"] == _TIMM else _loaded(path, name)
        with _Bounded(numbers):
            module = maker(**recipe.get("init_args", {}))
    except Exception as error:
        raise ValueError(f"the recipe {recipe} failed: {' '.join(str(error).split())}") from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"the recipe {recipe} gives a {type(module).__name__}, and a target is a module")
    return module


def build_for(folder: str | Path, recipe: Any, tensors: Mapping[str, Stored], weights: str, trust: bool) -> nn.Module:
    """Build the target of a folder, in the type of its weights.

    Args:
        folder: The folder.
        recipe: As in `build`.
        tensors: What the folder holds.
        weights: What the names of tensors begin with that have the type of the weights.
        trust: As in `build`.

    Raises:
        ArchiveError: As `build`.
    """
    try:
        module = build(recipe, sum(math.prod(tensor.shape) for tensor in tensors.values()), trust)
    except ValueError as error:
        raise ArchiveError(f"{folder} can't be loaded: {error}") from error
    dtypes = {tensor.dtype for name, tensor in tensors.items() if name.startswith(weights) and tensor.dtype.is_floating_point}
    return module.to(dtypes.pop()) if len(dtypes) == 1 else module


def _form(recipe: Any) -> list[str]:
    if not isinstance(recipe, Mapping) or not isinstance(recipe.get("class_path"), str) or "." not in recipe["class_path"]:
        near = "".join(guess(key, ["class_path"]) for key in recipe) if isinstance(recipe, Mapping) else ""
        return [f"a recipe has a class_path, the path of a class of modules or {_TIMM}, which {recipe!r} has not{near}"]
    unknown = sorted(set(recipe) - {"class_path", "init_args"})
    arguments = recipe.get("init_args", {})
    if unknown or not isinstance(arguments, Mapping):
        return [f"a recipe has a class_path and a mapping of init_args, not {', '.join(unknown) or repr(arguments)}"]
    return []


def _untrusted(recipe: Mapping[str, Any]) -> list[str]:
    """What of a recipe is not done on a file's word."""
    path, arguments = recipe["class_path"], recipe.get("init_args", {})
    if path != _TIMM:
        made = _loaded(*path.rsplit(".", 1))
        if made is None:
            return [f"the recipe names {path}, which is not loaded: import it first"]
        if not (isinstance(made, type) and issubclass(made, nn.Module)):
            return [f"a recipe names {_TIMM} or a class of modules, not {path}"]
        fetching = path.partition(".")[0] in _FETCHING or (path.startswith("torch.") and not path.startswith("torch.nn."))
        return [f"the recipe names {path}, whose package may fetch files"] if fetching else []
    import timm

    name = arguments.get("model_name")
    if not isinstance(name, str) or not timm.is_model(name):
        near = guess(str(name), timm.list_models())
        return [f"timm has no model {name!r} of its own{near}, and others are not fetched on a file's word"]
    read = [key for key, value in arguments.items() if value and (key.startswith(("pretrained", "checkpoint", "cache")))]
    read += [key for key, value in arguments.items() if any(set(":/\\") & set(text) for text in _texts(value))]
    return [f"the recipe lets {_TIMM} read a file, by {', '.join(dict.fromkeys(read))}"] if read else []


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for entry in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(entry)


def _loaded(path: str, name: str) -> Any:
    """What a module that is loaded holds under a name, or a class of it within; nothing is imported and nothing computed."""
    if path in sys.modules:
        return vars(sys.modules[path]).get(name)
    outer, _, inner = path.rpartition(".")
    holder = _loaded(outer, inner) if outer else None
    return vars(holder).get(name) if isinstance(holder, type) else None


class _Bounded(TorchDispatchMode):
    """Refuses to make more numbers than a file of its size can ask for.

    Args:
        numbers: How many numbers the file holds.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._most = self._left = 16 * numbers + _SLACK

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        sizes = [one for one in args if isinstance(one, (list, tuple)) and all(isinstance(n, int) for n in one)]
        wanted = math.prod(sizes[0]) if name in _SHAPED and sizes else 0
        if name == "repeat":
            wanted *= args[0].numel()
        if name in _COUNTED:
            wanted = max((int(one) for one in args if isinstance(one, (int, float))), default=0)
        self._left -= max(wanted, _LEAST)
        if self._left < 0:
            raise ValueError(f"it asks for more than {self._most:,} numbers, and the file holds {self._most - _SLACK >> 4:,}")
        return func(*args, **(kwargs or {}))


def check(recipe: Mapping[str, Any] | None) -> None:
    """See that a recipe has the form of one.

    Raises:
        ValueError: If it has not.
    """
    if recipe is not None and _form(recipe):
        raise ValueError(_form(recipe)[0])
