"""LabelSmoothing: how far labels are smoothed, as a hyperparameter."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_hypernet.conditions.base import Condition


class LabelSmoothing(Condition):
    r"""The share of a label that is spread over all classes, in every cross-entropy that `training_step` takes.

    .. math:: L_i = (1 - \epsilon_s) \operatorname{CE}(x_i, y_i) + \epsilon_s \frac{1}{K} \sum_k \operatorname{CE}(x_i, k)

    for example i of network s. It takes the place of the `label_smoothing` that the loss was given.

    References:
        | Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2015)
        | https://arxiv.org/abs/1512.00567

    Args:
        range: Of the share.
    """

    single: ClassVar[bool] = True
    least: ClassVar[float] = 0.0
    most: ClassVar[float] = 1.0

    def around_step(self, values: Tensor, of_examples: Callable[[Tensor, int], Tensor]) -> _Smoothed:
        """Within, `torch.nn.functional.cross_entropy` smooths the labels of every network by its own share."""
        return _Smoothed(lambda count: of_examples(values[:, 0], count))


class _Smoothed(TorchFunctionMode):
    def __init__(self, shares: Callable[[int], Tensor]) -> None:
        super().__init__()
        self._shares, self._taken = shares, False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is not F.cross_entropy:
            return func(*args, **options)
        self._taken = True
        names = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
        options |= dict(zip(names, args, strict=False))
        return _smoothed(self._shares, **options)

    def __exit__(self, kind: Any, *rest: Any) -> None:
        super().__exit__(kind, *rest)  # type: ignore[no-untyped-call]
        if kind is None and not self._taken:
            warnings.warn(
                "training_step took no cross-entropy of torch.nn, so there were no labels to smooth: leave the condition "
                "out, or read it in training_step",
                stacklevel=2,
            )


def _smoothed(
    shares_of: Callable[[int], Tensor], input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100,
    reduction: str = "mean", **_: Any,
) -> Tensor:  # fmt: skip
    """Cross-entropy of ``(batch, ...)``, smoothed by shares ``(batch,)`` or one share, in the order of the target's outputs."""
    taken = functools.partial(F.cross_entropy, input, target, weight, ignore_index=ignore_index, reduction="none")
    sharp, flat = taken(), taken(label_smoothing=1.0)
    shares = shares_of(len(sharp) if sharp.ndim else 1)
    loss = torch.lerp(sharp, flat, shares.reshape(-1, *[1] * (sharp.ndim - 1)).to(sharp) if shares.ndim else shares.to(sharp))
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if target.is_floating_point():
        return loss.sum() / len(input)
    kept = target != ignore_index
    own = kept.to(loss) if weight is None else weight[target.where(kept, 0)] * kept
    return loss.sum() / own.sum()
