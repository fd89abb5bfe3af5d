"""GeneratorConfig: what a generator is made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from lightning_hypernet.values import choice, real, switch, whole, wholes


@dataclass(frozen=True)
class GeneratorConfig:
    """What a generator is made of. Every field is plain, so that YAML and the command line reach it.

    Args:
        code_size: Numbers in the code of a filter; None: what the target's size allows, see `sizes.settled`.
        hidden: Widths of the hidden layers of the weight generators: one list for all banks, or one for each bank; None: what
            the target's size allows.
        shared: Whether the filters of all banks go through the same hidden layers, and only the last layer is each bank's own;
            where `hidden` lists widths for every bank, none are shared.
        extractor: Name of the extractor, or a mapping with its ``name`` and options: ``"matrix"``, which writes the codes of a
            bank as a product of thin matrices around z; ``"mlp"``, the paper's, whose last layer holds filters x code size x
            width numbers; or one of a plug-in.
        extractor_hidden: Widths of the hidden layers of the extractor; of none z itself makes the codes.
        start: Where training starts, one of the five starts below.
        spread: Share of z in a code at the start; beside mean weights the size of what is generated is `gain`,
            but for shares below a thousandth or so.
        gain: Root mean square of what is generated beside mean weights at the start, relative to a fresh target's weights;
            mean weights that are fresh themselves hold the rest of the variance.
        pace: How much faster than by itself an optimizer such as Adam moves what is generated beside mean weights: the last
            layers hold numbers so many times smaller, and what they give is multiplied. None: 4 where networks answer to
            conditions or to an encoder; 1 elsewhere, which a learning rate that is high for the plain target bears as well.
        activation: ``"leaky_relu"``, ``"relu"``, ``"tanh"``, ``"gelu"`` or ``"silu"``.
        slope: Negative slope of the leaky ReLU.
        norm: ``"batch"`` over all codes of a bank, ``"layer"`` or ``"none"``; it follows the activation. None: none where
            what is generated lies beside trained mean weights, batch elsewhere.
        norm_eps: Added to the variance.
        norm_momentum: Share of the newest batch in the running statistics of the batch norm.
        bias: Whether linear layers have a bias.
        residual: Whether a hidden layer as wide as its input adds its input to its output.
        merge: Which linear and convolution layers of the target, by position, are one filter.
        merge_limit: Layers with more weights than this are never merged.

    The five starts:

    ================== ============================ ====================================== ================================
    start              a code is                    weights are                            what components have of their own
    ================== ============================ ====================================== ================================
    ``"mean_weights"`` its filter's trained mean,   trained means, plus what is generated  mean codes and mean weights: the
                       plus `spread` times what z   from the code less what is from that   first component's are the
                       gives                        of z = 0. Means are in the target's    target's own, the others' random
                                                    units, so that the learning rate of    with the same deviation
                                                    the plain target fits
    ``"mean_code"``    the same                     generated from the code; means only    mean codes
                                                    where a bank is a single filter
    ``"pretrained"``   the same                     as above, but so that the mean of all  mean codes; mean weights all start
                                                    networks is the target itself          from the target's own
    ``"adapter"``      the same                     the target's own, which are not        mean codes
                                                    trained, plus what is generated
    ``"paper"``        what z gives                 generated from the code; every matrix  nothing, so there is one
                                                    starts at a tenth of the usual size
    ================== ============================ ====================================== ================================

    Parameters that no rule reads may hold a table: under ``"mean_weights"`` all components start from the target's.
    """

    code_size: int | None = None
    hidden: Sequence[int] | Sequence[Sequence[int]] | None = None
    shared: bool = False
    extractor: str | Mapping[str, Any] = "matrix"
    extractor_hidden: Sequence[int] = ()
    start: Literal["mean_weights", "mean_code", "pretrained", "adapter", "paper"] = "mean_weights"
    spread: float = 1.0
    gain: float = 0.3
    pace: float | None = None
    activation: str = "leaky_relu"
    slope: float = 0.05
    norm: Literal["batch", "layer", "none"] | None = None
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    bias: bool = True
    residual: bool = False
    merge: Sequence[int] = (-1,)
    merge_limit: int = 1024

    def __post_init__(self) -> None:
        readers: dict[str, Callable[[str, Any], Any]] = {
            "code_size": _or_none(whole),
            "hidden": _or_none(_widths),
            "extractor_hidden": wholes,
            "spread": partial(real, least=0),
            "gain": partial(real, least=0),
            "pace": _or_none(partial(real, least=0, above=True)),
            "slope": real,
            "norm_eps": partial(real, least=0),
            "norm_momentum": partial(real, least=0, most=1),
            "bias": switch,
            "residual": switch,
            "shared": switch,
            "merge": partial(wholes, least=None),
            "merge_limit": partial(whole, least=0),
            "start": partial(choice, allowed=("mean_weights", "mean_code", "pretrained", "adapter", "paper")),
            "norm": _or_none(partial(choice, allowed=("batch", "layer", "none"))),
            "activation": partial(choice, allowed=("leaky_relu", "relu", "tanh", "gelu", "silu")),
        }
        problems = []
        for name, reader in readers.items():
            try:
                object.__setattr__(self, name, reader(f"generator's {name}", getattr(self, name)))
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))

    @classmethod
    def paper(cls, target: Literal["mnist", "cifar_lenet", "cifar_resnet32"] = "mnist") -> GeneratorConfig:
        """The hypernetworks of Deutsch, Nijkamp and Yang (2019), to the parameter count where it can be known.

        MNIST takes 300 latent numbers, uniform on [-1, 1]: 631,240 weights, 633,640 with those of its norm layers. The
        CIFAR ones take 100, standard normal; their extractor gives every filter a code of 8, which the paper's table
        counts as one number.

        Args:
            target: The paper's target network.

        Returns:
            The configuration, with one list of widths for each bank of the MNIST target.
        """
        choice("target", target, ("mnist", "cifar_lenet", "cifar_resnet32"))
        common = cls(start="paper", extractor="mlp", bias=False, norm_eps=1e-7, norm_momentum=0.02, merge_limit=1 << 20)
        if target == "mnist":
            hidden = ((40, 40), (100, 100), (100, 100), (60, 60))
            return replace(common, code_size=15, hidden=hidden, extractor_hidden=(300, 300))
        if target == "cifar_lenet":
            return replace(common, code_size=8, hidden=(400, 400), extractor_hidden=(200, 200), merge=(-2, -1))
        return replace(common, code_size=8, hidden=(800, 800), extractor_hidden=(1200, 1200), residual=True)

    @classmethod
    def pretrained(cls, gain: float = 0.01) -> GeneratorConfig:
        """Start around the target's own weights; `gain` is the relative size of the first deviations from them."""
        return cls(start="pretrained", gain=gain)

    @classmethod
    def compact(cls) -> GeneratorConfig:
        """A generator that is smaller than its target: no mean weights, all is made from the filters' codes."""
        return cls(start="mean_code", spread=0.3, shared=True)

    @classmethod
    def adapter(cls, gain: float = 0.01) -> GeneratorConfig:
        """Only a change of low rank is generated and trained; the target's own weights, frozen ones too, stay beneath it.

        References:
            | LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021)
            | https://arxiv.org/abs/2106.09685
        """
        return cls(start="adapter", hidden=(), gain=gain, merge=())

    @property
    def codes(self) -> int:
        """Numbers in a code, where they are known."""
        assert self.code_size is not None
        return self.code_size

    def anchors(self, filters: int) -> bool:
        """Whether weights of their own, trained or the target's, lie under what is generated for a bank."""
        return self.start in ("mean_weights", "pretrained", "adapter") or (self.start == "mean_code" and filters == 1)

    @property
    def relative(self) -> bool:
        """Whether what a code makes is added to trained mean weights, less what that of z = 0 makes."""
        return self.start in ("mean_weights", "pretrained")

    @property
    def trunk(self) -> tuple[int, ...]:
        """Widths of the hidden layers that all banks share."""
        return self._flat if self.shared else ()

    @property
    def _flat(self) -> tuple[int, ...]:
        """The widths that are given for all banks."""
        return tuple(width for width in self.hidden or () if isinstance(width, int))

    @property
    def _nested(self) -> list[tuple[int, ...]]:
        """The widths that are given for each bank."""
        return [tuple(entry) for entry in self.hidden or () if not isinstance(entry, int)]

    def least(self, latent_dim: int) -> int:
        """How many numbers the largest matrix between two layers of the built-in generator has at least."""
        named = self.extractor if isinstance(self.extractor, str) else self.extractor.get("name")
        code_size = self.code_size or 1
        chains = [[code_size, *widths] for widths in self._nested or [self._flat]]
        if named in ("mlp", "matrix"):
            chains.append([latent_dim, *self.extractor_hidden])
        pairs = [one * other for chain in chains for one, other in itertools.pairwise(chain)]
        return max([code_size, *pairs])

    def widths(self, bank: int, banks: int) -> tuple[int, ...]:
        """Widths of the hidden layers that are one bank's own, checked against the number of banks."""
        if self.trunk:
            return ()
        nested = self._nested
        if not nested:
            return self._flat
        if len(nested) != banks:
            raise ValueError(f"`hidden` lists widths for {len(nested)} banks, the target has {banks}; give one list a bank")
        return nested[bank]


def _widths(name: str, value: Any) -> tuple[int, ...] | tuple[tuple[int, ...], ...]:
    """Widths of layers, or a list of them for every bank."""
    if isinstance(value, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in value):
        if not all(isinstance(one, (list, tuple)) for one in value):
            raise ValueError(f"{name} must be widths, or a list of widths for every bank, not both: {value!r}")
        return tuple(wholes(name, one) for one in value)
    return wholes(name, value)


def _or_none(reader: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else reader(name, value)
