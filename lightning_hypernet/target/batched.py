"""Batched: chains of layers, each run for all networks at once by one batched product of matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as everywhere

from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.networks import Networks
from lightning_hypernet.target.replicas import Replicas

Rule = Callable[[Any, Tensor, Mapping[str, Tensor]], Tensor]
"""Maps what S networks hold, ``(S, batch, ...)``, through a layer with parameters ``(S, *shape)``."""
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def _linear(layer: nn.Linear, x: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    flat = x.flatten(1, -2) if x.ndim > 2 else x[:, None]
    weight, bias = own["weight"].mT, own.get("bias")
    y = torch.bmm(flat, weight) if bias is None else torch.baddbmm(bias[:, None], flat, weight)
    return y if x.ndim == 3 else y.reshape(*x.shape[:-1], y.shape[-1])


def _layer_norm(layer: nn.LayerNorm, x: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    y = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    aligned = {name: one.reshape(len(one), *[1] * (x.ndim - one.ndim), *layer.normalized_shape) for name, one in own.items()}
    y = y * aligned["weight"] if "weight" in aligned else y
    return y + aligned["bias"] if "bias" in aligned else y


def _flatten(layer: nn.Flatten, x: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    return x.flatten(*(axis + 1 if axis >= 0 else axis for axis in (layer.start_dim, layer.end_dim)))


def _number_by_number(layer: nn.Module, x: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    y: Tensor = layer(x)
    return y


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Flatten: _flatten,
    **dict.fromkeys(
        (nn.Identity, nn.Dropout, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus,
         nn.ReLU6, nn.Hardtanh, nn.Hardswish),
        _number_by_number,
    ),
}  # fmt: skip


def chain_of(replicas: Replicas, method: str = "forward") -> list[tuple[nn.Module, Rule, dict[str, str]]]:
    """The layers that a target is a chain of: each with its rule, and the names of its generated parameters.

    Raises:
        RuntimeError: If it is none, or something else sees what passes through it.
    """
    template = replicas.template
    names = {(id(template.get_submodule(place.module)), *place.steps): place.parameter for place in replicas.places}
    unread = set(names)
    everything = {name: value for name, value in vars(everywhere).items() if name.startswith("_global_") and "hooks" in name}
    seen = [name for name, value in everything.items() if value and "registration" not in name]
    layers: list[tuple[nn.Module, Rule, dict[str, str]]] = []

    def walk(module: nn.Module, path: str) -> None:
        if seen or "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS):
            raise RuntimeError(f"hooks or patches see {path or 'the target'}")
        if type(module) is nn.Sequential:
            for key, one in module._modules.items():
                assert one is not None
                walk(one, f"{path}.{key}".lstrip("."))
        elif (rule := RULES.get(type(module))) is None or (type(module) is nn.Flatten and module.start_dim == 0):
            raise RuntimeError(
                f"{path or 'the target'} is a {type(module).__name__}, which is not run for several networks at once"
            )
        elif any(getattr(module, key, None) is not None and key not in module._parameters for key in ("weight", "bias")):
            raise RuntimeError(f"a weight or bias of {path or 'the target'} is no parameter")
        else:
            places = {key: (id(module), "_parameters", key) for key in module._parameters}
            unread.difference_update(places.values())
            layers.append((module, rule, {key: names[place] for key, place in places.items() if place in names}))

    if method != "forward":
        raise RuntimeError(f"it is called by {method}")
    walk(template, "")
    if unread:
        raise RuntimeError(f"{names[unread.pop()]} is read other than by its layer")
    return layers


def run_chain(networks: Networks, arguments: Arguments, method: str = "forward") -> Tensor:
    """The output of every network, ``(S, batch, ...)``.

    Raises:
        RuntimeError: If the target is no chain of layers, or is called with more than a tensor.
    """
    layers, habits = chain_of(networks.replicas, method), networks.replicas.habits
    args, kwargs = arguments.restore(arguments.stacked())
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        raise RuntimeError("it is called with more than a tensor")
    count = arguments.parts or len(networks)
    generated = networks.weights
    if count < len(networks):
        generated = {name: value[:count] for name, value in generated.items()}
    x: Tensor = habits.input(args[0])
    x = x.expand(count, *x.shape) if arguments.mapped == [None] else x
    run = networks.replicas.compiler(_through, habits.watch is None)
    with habits.watch or nullcontext():
        return run(layers, generated, x)


def _through(layers: list[tuple[nn.Module, Rule, dict[str, str]]], generated: Mapping[str, Tensor], x: Tensor) -> Tensor:
    for layer, rule, names in layers:
        kept = {key: value for key, value in layer._parameters.items() if value is not None}
        own = {key: value.expand(len(x), *value.shape) for key, value in kept.items()}
        x = rule(layer, x, {**own, **{key: generated[name] for key, name in names.items()}})
    return x
