"""Randomised: a target with random weights on random inputs, in double precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hypernet.symmetry.graph import in_training

DRAWS = 2
"""How many random networks there are."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments and keyword arguments of a call."""

_SIDES = (64, 128)


class Randomised:
    """Random networks of a target, with the weights' own sizes, and random inputs.

    Args:
        target: The target.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Attributes:
        generator: Draws all that is random.
        weights: For every network its weights, ``{name: (1, *shape)}``.
        call: The arguments, with noise.
    """

    def __init__(self, target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self._target = in_training(copy.deepcopy(target).cpu().double())
        self.call: Call = tree_map(self._noisy, (args, kwargs))
        self.weights = self._random_weights()
        self._modes: dict[tuple[bool, bool], tuple[nn.Module, list[_NormBase]]] = {}

    def smaller(self) -> Iterator[Call]:
        """Smaller arguments, which the target may refuse: parts of images, then fewer examples; the cheapest first."""
        sides = [tree_map(lambda one, side=side: _cropped(one, side), self.call) for side in _SIDES]
        for call in (*sides, tree_map(_first, self.call)):
            if _count(call) < _count(self.call):
                yield call

    def network(self, call: Call, training: bool = False, batch_statistics: bool = True) -> Network:
        """The target on some arguments.

        Args:
            call: The arguments. Smaller ones that leave one value in a channel are refused, as its statistics show nothing.
            training: Whether the target runs in training mode, with nothing dropped.
            batch_statistics: Whether norm layers use the statistics of the batch, which keep activations in bounds but with
                few values in a channel forget what comes in; else mean 0 and variance 1. Frozen ones keep their own.
        """
        mode = training, batch_statistics
        if mode not in self._modes:
            self._modes[mode] = self._in_mode(*mode)
        target, norms = self._modes[mode]
        return Network(target, norms if call is self.call else [], call, self.weights)

    def _in_mode(self, training: bool, batch_statistics: bool) -> tuple[nn.Module, list[_NormBase]]:
        """A copy that shares the parameters, and its norm layers that use the statistics of the batch."""
        target = copy.deepcopy(self._target, {id(one): one for one in self._target.parameters()})
        norms = [one for one in target.modules() if isinstance(one, _NormBase) and one.training]
        if not training:
            target.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train(batch_statistics)
        return target, norms if batch_statistics else []

    def _random_weights(self) -> list[dict[str, Tensor]]:
        weights: list[dict[str, Tensor]] = [{} for _ in range(DRAWS)]
        for name, parameter in self._target.named_parameters():
            value = parameter.detach()
            size = value.std(correction=0) + 0.02
            for draw in weights:
                noise = torch.randn(value.shape, generator=self.generator)
                draw[name] = torch.addcmul(value, noise.double(), size)[None]
        return weights

    def _noisy(self, value: Any) -> Any:
        """In double precision, with noise of its own size."""
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point():
            return value.cpu()
        value = value.detach().cpu().double()
        size = float(value.std(correction=0)) if value.numel() > 1 else 0.0
        return value + (size or 1.0) * torch.randn(value.shape, generator=self.generator, dtype=torch.float64)


class Network:
    """A target on its arguments.

    Args:
        target: The target.
        norms: Its norm layers that use the statistics of the batch. Where that has one value per channel they do not.
        call: The arguments.
        draws: Random weights, each ``{name: (1, *shape)}``.
    """

    def __init__(
        self, target: nn.Module, norms: Sequence[_NormBase], call: Call, draws: Sequence[Mapping[str, Tensor]]
    ) -> None:
        self._target, self._norms, self._call, self._draws = target, norms, call, draws
        self._expected: dict[int, Tensor] = {}

    def expected(self, draw: int) -> Tensor:
        """What the random weights give."""
        if draw not in self._expected:
            self._expected[draw] = self(self._draws[draw])
        return self._expected[draw]

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """All outputs in a row, with gradients if a weight wants them.

        Args:
            weights: ``{name: (1, *shape)}``.
        """
        try:
            return self._run(weights)
        except ValueError:
            if not self._norms:
                raise
        for norm in self._norms:
            norm.eval()
        try:
            return self._run(weights)
        finally:
            for norm in self._norms:
                norm.train()

    def _run(self, weights: Mapping[str, Tensor]) -> Tensor:
        args, kwargs = self._call
        graded = any(one.requires_grad for one in weights.values())
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(graded), _NothingDropped():
            torch.default_generator.manual_seed(0)
            outputs = torch.func.functional_call(self._target, {name: one[0] for name, one in weights.items()}, args, kwargs)
        leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        return torch.cat([leaf.double().reshape(-1) for leaf in leaves])


def _cropped(value: Any, side: int) -> Any:
    """The corner of an image or of a volume: of what has two axes or more behind examples and channels."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 3:
        for dim in range(2, value.ndim):
            value = value.narrow(dim, 0, min(side, value.shape[dim]))
    return value


def _first(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) and value.ndim > 1 else value


def _count(call: Call) -> int:
    return sum(one.numel() for one in tree_leaves(call) if isinstance(one, Tensor))


class _NothingDropped(TorchDispatchMode):
    """Within, every coin comes up one: dropout, whose coins a permutation does not move, drops nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name == "aten::bernoulli_.float":
            return args[0].fill_(1.0)
        if name.startswith("aten::rrelu_with_noise"):
            args = (*args[:4], False)  # the mean slope
        return func(*args, **(kwargs or {}))
