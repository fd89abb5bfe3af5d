"""Gradients: what is collected before a backward pass, and handed out in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_hypernet.groups import Group, GroupedPopulation


class Gradients:
    """Gradients of leaves, added up; those of the features of groups lie at their place among all."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: set[int] = set()
        self._features: dict[int, list[tuple[slice, Tensor]]] = {}

    def add(self, pairs: list[tuple[Tensor, Tensor]], group: Group | None = None) -> None:
        """Add gradients, each with its leaf; the list is used up."""
        features = {id(feature): index for index, feature in enumerate(group.features if group else ())}
        while pairs:
            leaf, gradient = pairs.pop()
            if group is not None and id(leaf) in features:
                self._features.setdefault(features[id(leaf)], []).append((group.rows, gradient))
            elif id(leaf) not in self._of:
                self._of[id(leaf)] = (leaf, gradient)
            elif id(leaf) in self._own:
                self._of[id(leaf)][1].add_(gradient)
            else:
                self._of[id(leaf)] = (leaf, self._of[id(leaf)][1] + gradient)
                self._own.add(id(leaf))

    def divide(self, share: float) -> None:
        """Divide all of them."""
        self._of = {key: (leaf, gradient / share) for key, (leaf, gradient) in self._of.items()}
        self._features = {
            index: [(rows, gradient / share) for rows, gradient in parts] for index, parts in self._features.items()
        }

    def to_originals(self, population: GroupedPopulation | None) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors that gradients are handed to, those with a graph in the place of leaves; and the gradients."""
        pairs = list(self._of.values())
        if population is not None:
            here, drawn, whole = population.latents, population.networks.drawn, population.networks.features
            cut = {id(here.z): drawn.z}
            if here.context is not None and drawn.context is not None:
                cut[id(here.context)] = drawn.context
            pairs = [(cut.get(id(leaf), leaf), gradient) for leaf, gradient in pairs]
            for index, parts in self._features.items():
                joined = torch.zeros_like(whole[index])
                for rows, gradient in parts:
                    joined[rows] += gradient
                pairs.append((whole[index], joined))
        return [source for source, _ in pairs], [gradient for _, gradient in pairs]


class _HandOut(torch.autograd.Function):
    """A loss whose backward pass hands out gradients that are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *sources: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.gradients:
            raise RuntimeError(
                "backward='two_pass' hands gradients out once: call backward once a step, or backward='one_pass'"
            )
        handed: list[Tensor] = []
        while ctx.gradients:
            one = ctx.gradients.pop()
            handed.append(one * gradient.to(one.device))
        return None, None, *reversed(handed)


def handed_out(loss: Tensor, gradients: list[Tensor], sources: Sequence[Tensor]) -> Tensor:
    """A loss whose backward pass gives every source its gradient, times that of the loss; once, then the list is used up."""
    handed: Tensor = _HandOut.apply(loss, gradients, *sources)
    return handed


def pulled(outputs: Sequence[Tensor], seeds: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The leaves of the graph of some outputs, each with its gradient; the graph is released.

    Raises:
        RuntimeError: If a leaf has a hook on its gradient, which would see the gradient of every group.
    """
    leaves = _leaves(outputs)
    if hooked := [tuple(leaf.shape) for leaf in leaves if leaf._backward_hooks]:
        raise RuntimeError(
            f"a parameter of shape {hooked[0]} has a hook on its gradient (register_hook), which two passes would run for "
            f"every group of networks: use register_post_accumulate_grad_hook, or backward='one_pass'"
        )
    if not leaves:
        return []
    with torch.autocast(outputs[0].device.type, enabled=False):
        found = torch.autograd.grad(outputs, leaves, seeds, allow_unused=True)
    torch.clear_autocast_cache()
    return [(leaf, gradient) for leaf, gradient in zip(leaves, found, strict=True) if gradient is not None]


def _leaves(outputs: Sequence[Tensor]) -> list[Tensor]:
    """The leaves that the graph of some outputs ends in."""
    found: dict[int, Tensor] = {id(one): one for one in outputs if one.grad_fn is None and one.requires_grad}
    nodes, seen = [one.grad_fn for one in outputs], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            variable: Tensor = node.variable  # type: ignore[attr-defined]
            found[id(variable)] = variable
        nodes += [following for following, _ in node.next_functions]
    return list(found.values())
