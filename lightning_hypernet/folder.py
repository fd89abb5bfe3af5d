"""Folder: where an ensemble is kept, as safetensors and a recipe in JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_hypernet.archive import Stored, differing, listed, misshapen, refuse
from lightning_hypernet.pair import Pair, problems_of_numbers
from lightning_hypernet.values import shown

PAIR = Pair("ensemble", "an ensemble")
"""The files."""
GROUPS = ("weights", "statistics", "target", "stored", "calibration")
"""The first parts of the tensors' names."""
_KINDS = {"members": int, "choices": dict, "frozen": list, "aliases": dict, "tensors": dict, "checksum": int}
_FEEDS = ({"args", "kwargs"}, {"changed"})
_MORE = {"reduce", "execution", "feed", "batch_dim", "target", "format"}


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Read what was written: the content, and the tensors.

    Raises:
        ArchiveError: If a file is missing, cut off or of an unknown format, or the two do not belong together.
    """
    content, tensors = PAIR.open(folder)
    problems = [f"{key} is {shown(content.get(key))}" for key, kind in _KINDS.items() if type(content.get(key)) is not kind]
    problems += [f"{key} is missing" for key in sorted(_MORE - set(content))]
    problems += [f"{shown(key)[1:-1]} is unknown" for key in sorted(set(content) - set(_KINDS) - _MORE)]
    if not problems:
        problems += misshapen(content["tensors"], "tensors")
        problems += [f"frozen holds {shown(one)}" for one in content["frozen"] if not isinstance(one, str)]
        problems += [f"aliases of {shown(name)} are {shown(names)}" for name, names in content["aliases"].items()
                     if not isinstance(names, list) or not all(isinstance(one, str) for one in names)]  # fmt: skip
    refuse(folder, problems)
    problems = differing(tensors, content["tensors"], "what was saved")
    problems += [f"{name} holds {tensor.shape[:1]} members, not {shown(content['members'])}" for name, tensor in tensors.items()
                 if not name.startswith(("target.", "calibration.")) and tensor.shape[:1] != (content["members"],)]  # fmt: skip
    if content["members"] < 1:
        problems.append(f"there are {content['members']} members")
    refuse(folder, problems)
    read = {name: tensor.read() for name, tensor in tensors.items()}
    refuse(folder, problems_of_numbers(read))
    PAIR.check(folder, content)
    return content, {name: Stored.of(tensor) for name, tensor in read.items()}


def misfits(content: Mapping[str, Any], groups: Mapping[str, Mapping[str, Stored]], target: nn.Module) -> Iterator[str]:
    """How a folder differs from a target, in words."""
    whose = type(target).__name__
    parameters = dict(target.named_parameters(remove_duplicate=False))
    aliases, members = content["aliases"], content["members"]
    named = [name for names in aliases.values() if isinstance(names, list) for name in names]
    wanted = {name: [listed(parameters).get(name, ["nothing"])[0], members, *parameters[name].shape]
              for name in aliases if name in parameters}  # fmt: skip
    yield from differing(groups["weights"], wanted, f"{members} networks of {whose}")
    yield from (f"{name!r} of aliases is no parameter of {whose}" for name in named if name not in {*parameters, *aliases})
    tied: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        tied.setdefault(id(parameter), []).append(name)
    groups_of = {names[0]: names for names in tied.values()}
    yield from (f"aliases of {name} are {names}, and {groups_of[name]} in {whose}" for name, names in aliases.items()
                if name in groups_of and names != groups_of[name])  # fmt: skip
    yield from (f"{name} of {whose} is missing" for name in parameters if name not in {*named, *groups["target"]})
    buffers = dict(target.named_buffers())
    if groups["statistics"]:
        norms = {path for path, one in target.named_modules() if isinstance(one, _NormBase)} - set(content["frozen"])
        kept = [name for name in buffers if name.rpartition(".")[0] in norms]
        yield from (f"statistics.{name} is missing" for name in kept if name not in groups["statistics"])
    for name, tensor in groups["statistics"].items():
        if name not in buffers:
            yield f"statistics.{name} is no buffer of {whose}"
        elif tensor.dtype != buffers[name].dtype:
            yield f"statistics.{name} is {tensor.dtype} here and {buffers[name].dtype} in {whose}"
        elif tensor.shape[1:] != buffers[name].shape and isinstance(target.get_submodule(name.rpartition(".")[0]), _NormBase):
            yield f"statistics.{name} is {tensor.shape[1:]} here and {tuple(buffers[name].shape)} in {whose}"
    modules = dict(target.named_modules())
    yield from (f"{path!r} of frozen is no module of {whose}" for path in content["frozen"] if path not in modules)
    stored = {name: tensor.shape for name, tensor in groups["stored"].items()}
    if set(stored) != {"z", "component", "context"} or [len(shape) for shape in stored.values()].count(2) != 2:
        yield f"the latents are {stored}"
    if set(groups) - set(GROUPS):
        yield f"{', '.join(sorted(set(groups) - set(GROUPS)))} is unknown"
    if not all(
        isinstance(one, dict) and one.get("backend") in ("loop", "vmap", "batched", "blocked")
        for one in content["choices"].values()
    ):
        yield f"choices is {shown(content['choices'])}"
    if not (content["feed"] is None or (isinstance(content["feed"], dict) and set(content["feed"]) in _FEEDS)):
        yield f"feed is {shown(content['feed'])}"


def odd_numbers(read: Mapping[str, Mapping[str, Tensor]]) -> Iterator[str]:
    """What numbers of a folder can't be, in words."""
    for name, value in read["statistics"].items():
        if name.rpartition(".")[2] == "running_var" and bool((value < 0).any()):
            yield f"statistics.{name} holds negative variances"
    z, component, context = (read["stored"][name] for name in ("z", "component", "context"))
    if not (z.is_floating_point() and context.is_floating_point()) or component.ndim != 1:
        yield "the latents are no floating-point numbers, or not one component for each network"
    elif bool((component < 0).any()) or bool((component != component.round()).any()):
        yield "stored.component holds what is no number of a component"
