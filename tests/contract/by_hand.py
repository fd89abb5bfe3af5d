"""What a Hypernet does, done by hand with plain networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree

from lightning_hypernet import Ensemble, Hypernet
from tests.contract.pictures import entries, equal, leaves, picture, same, tensors


def run(module: Any, call: Any) -> Any:
    """Call a module or a function, a plain module with clones, and see that the inputs stay as they were."""
    before = dict(picture(call))
    plain = isinstance(module, nn.Module) and not isinstance(module, (Hypernet, Ensemble))
    given = _pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, call) if plain else call
    outputs = module(**given) if isinstance(given, dict) else module(*given)
    same(dict(picture(call)), before)
    return outputs


@torch.no_grad()
def modes_of_a_pass(trial: nn.Module, call: Any) -> dict[str, bool]:
    """Which modules are in training mode while statistics are taken: what keeps them, or all if a module above decides."""
    changed = _changed(trial.train(), call)
    owners = {name.rpartition(".")[0] for name in changed}
    whole = {path: module.training for path, module in trial.named_modules()}
    modes = {path: mode and path in owners for path, mode in whole.items()}
    set_modes(trial, modes)
    return modes if changed <= _changed(trial, call) else whole


def set_modes(network: nn.Module, modes: Mapping[str, bool]) -> None:
    for path, module in network.named_modules():
        module.training = modes[path]


@torch.no_grad()
def passed(network: nn.Module, batches: Sequence[Any], modes: Mapping[str, bool], averages: Mapping[str, float]) -> None:
    """Run a plain network over batches; norm layers and moving averages get the plain average of what every batch gives.

    Args:
        network: The network.
        batches: What it is called with.
        modes: Which of its modules are in training mode.
        averages: Of moving averages, the share that stays.
    """
    set_modes(network, modes)
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None
    total: dict[str, list[Tensor]] = {name: [] for name in averages}
    for batch in batches:
        start = {name: network.get_buffer(name).clone() for name in averages}
        run(network, batch)
        for name, share in averages.items():
            total[name].append((network.get_buffer(name) - share * start[name]) / (1 - share))
    for name, fresh in total.items():
        network.get_submodule(name.rpartition(".")[0])._buffers[name.rpartition(".")[2]] = torch.stack(fresh).mean(0)


def _changed(network: nn.Module, call: Any) -> set[str]:
    before = dict(picture(dict(network.named_buffers())))
    run(network, call)
    after = dict(picture(dict(network.named_buffers())))
    return {path[0] for path, value in after.items() if path not in before or not equal(value, before[path])}


def joined(outputs: Sequence[Any], whole: Any) -> Any:
    """One output from those of networks that had equally large parts, as it is from one network that has the whole batch."""
    first = outputs[0]
    if isinstance(first, Tensor):
        axes = [axis for axis, (one, all_) in enumerate(zip(first.shape, whole.shape, strict=True)) if one != all_]
        if axes:
            return torch.cat(list(outputs), axes[0])
        return torch.stack(list(outputs)).mean(0) if first.is_floating_point() or first.is_complex() else first
    if entries(first) is None:
        return sum(outputs) / len(outputs) if type(first) is float else first
    if isinstance(first, list) and len(first) != len(whole):
        return [entry for output in outputs for entry in output]
    columns = zip(*([value for _, value in entries(output)] for output in outputs), strict=True)
    values = [joined(column, one) for column, (_, one) in zip(columns, entries(whole), strict=True)]
    return {key: value for (key, _), value in zip(entries(first), values, strict=True)}


def stacked_by_hand(outputs: Sequence[Any]) -> Any:
    """Every tensor of the outputs of several networks, stacked."""
    found = [dict(leaves(output)) for output in outputs]
    tree: Any = {}
    for path, leaf in found[0].items():
        value = torch.stack([one[path] for one in found]) if isinstance(leaf, Tensor) else leaf
        if not path:
            return value
        holder = tree
        for key in path[:-1]:
            holder = holder.setdefault(key, {})
        holder[path[-1]] = value
    return tree


def scalar(outputs: Any) -> Tensor:
    """A number in which every output counts, each entry with a weight of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for leaf in tensors(outputs):
        real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
        if real.requires_grad:
            total = total + (real.square() * torch.linspace(0.5, 1.5, real.numel()).view(real.shape) + real).sum()
    return total
