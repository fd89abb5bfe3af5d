"""Choice: which backend a call takes, measured."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.backends import BACKENDS, is_cast
from lightning_hypernet.target.networks import Networks
from lightning_hypernet.target.trial import Trial

_ROUNDS = 3
_LONG = 0.1
_CLEAR = 2.0


class Choices:
    """For every signature of a call the backend that was fastest, forward and backward.

    The loop and its rivals run in turn, once to warm up and three times measured, the best of each counts; beside the training,
    with weights, random numbers and replicas of their own. Rivals are, where they fit, batched products for chains of layers,
    or else vmap and blocks of examples; blocks only if they give what the loop gives. A network that takes more than a tenth
    of a second by itself on a CPU has nothing to gain from vmap, which is not measured then, nor is further what took twice as
    long as the fastest when it warmed up. Under `torch.use_deterministic_algorithms` the loop is taken unmeasured, since no
    clock is deterministic.

    Attributes:
        made: For every signature the name of the backend and the seconds that each took; None: not measured.
    """

    def __init__(self, made: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.made: dict[str, dict[str, Any]] = {key: dict(value) for key, value in (made or {}).items()}
        self._choosing = threading.Lock()

    def __reduce__(self) -> Any:
        return Choices, (self.made,)

    def of(self, networks: Networks, arguments: Arguments, method: str) -> str:
        """The backend of a call, measured if it is the first of its signature."""
        if torch.are_deterministic_algorithms_enabled() or (arguments.parts or len(networks)) == 1:
            return "loop"
        signature = signature_of(networks, arguments, method)
        if signature not in self.made:
            if not _rivals(networks, arguments, method):
                return "loop"
            with self._choosing:
                if signature not in self.made:
                    self.made[signature] = _measured(networks, arguments, method)
        return str(self.made[signature]["backend"])

    def refuse(self, networks: Networks, arguments: Arguments, method: str) -> None:
        """Take the loop for a call from now on, since the other could not run it."""
        self.made[signature_of(networks, arguments, method)] = {"backend": "loop", "loop": None}

    def summary(self) -> list[str]:
        """One line for every signature: the backend, and the milliseconds that each took.

        Sizes of inputs are told as they are compared, rounded up to powers of two.
        """
        lines = []
        for signature, made in self.made.items():
            times = ", ".join(f"{name} {1000 * made[name]:.1f} ms" for name in BACKENDS if made.get(name) is not None)
            about = signature.replace(", inputs ", ", inputs (sizes rounded up to powers of two) ", 1)
            lines.append(f"{made['backend']} for {about}: {times or 'not measured'}")
        return lines


def signature_of(networks: Networks, arguments: Arguments, method: str) -> str:
    """What a call is measured by: sizes are rounded up to powers of two, so that lengths that vary are not measured anew."""
    template = networks.replicas.template
    shapes = [
        f"{leaf.dtype} ".removeprefix("torch.")
        + "x".join(str(1 << (size - 1).bit_length() if size else 0) for size in leaf.shape)
        for leaf in (arguments.stacked() if arguments.even else arguments.leaves)
        if isinstance(leaf, Tensor)
    ]
    weights = next(iter(networks.weights.values()))
    mode = "train" if template.training else "eval"
    graph = "gradients" if torch.is_grad_enabled() else "no gradients"
    count = arguments.parts or len(networks)
    graph += ("" if arguments.even else ", uneven") + (", autocast" if is_cast() else "")
    graph += "" if networks.replicas.compiler.options is None else ", compiled"
    if len(arguments.leaves) > 1 or {*arguments.axes} - {0, None}:
        method += f" {arguments.kinds()} {arguments.axes}"
    return f"{method}, {mode}, {graph}, {count} networks, inputs {' '.join(shapes)}, {weights.dtype}, {weights.device.type}"


def _rivals(networks: Networks, arguments: Arguments, method: str) -> list[str]:
    """The backends that the loop is measured against."""
    fits = [name for name in ("batched", "vmap", "blocked") if BACKENDS[name].fits(networks.replicas, arguments, method)]
    return fits[:1] if fits[:1] == ["batched"] else fits


def _measured(networks: Networks, arguments: Arguments, method: str) -> dict[str, Any]:
    trial = Trial(networks, arguments, method)
    on_cpu = trial.device.type == "cpu"
    times: dict[str, float | None] = dict.fromkeys(["loop", *_rivals(networks, arguments, method)])
    seen: dict[str, float] = {}
    try:
        for name in times:
            if name != "vmap" or not on_cpu or seen["loop"] < _LONG * trial.count:
                with suppress(Exception) if seen else nullcontext():
                    seconds = trial.seconds(name)
                    if trial.agrees(name):
                        seen[name] = seconds
        near = [name for name in seen if not on_cpu or seen[name] <= _CLEAR * min(seen.values())]
        if len(near) > 1:
            rounds = [{name: trial.seconds(name) for name in near} for _ in range(_ROUNDS)]
            seen |= {name: min(one[name] for one in rounds) for name in near}
        times |= seen
    except Exception:
        return {"backend": "loop", **times}
    return {"backend": min(seen, key=seen.__getitem__), **times}
