"""Choice: which backend a call takes, measured."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.networks import Networks
from lightning_hypernet.target.trial import Trial

_ROUNDS = 3
_LONG = 0.1
_CLEAR = 2.0


class Choices:
    """For every signature of a call the backend that was faster, forward and backward.

    The loop and vmap run in turn, once to warm up and three times measured, the best of each counts; beside the training, with
    weights, random numbers and replicas of their own. A network that takes more than a tenth of a second by itself on a CPU has
    nothing to gain from vmap, and neither has one whose warm-up took twice as long there: they are not measured further. Under
    `torch.use_deterministic_algorithms` the loop is taken unmeasured, since no clock is deterministic.

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
            with self._choosing:
                if signature not in self.made:
                    self.made[signature] = _measured(networks, arguments, method)
        return str(self.made[signature]["backend"])

    def refuse(self, networks: Networks, arguments: Arguments, method: str) -> None:
        """Take the loop for a call from now on, since vmap could not run it."""
        self.made[signature_of(networks, arguments, method)] = {"backend": "loop", "loop": None, "vmap": None}

    def summary(self) -> list[str]:
        """One line for every signature: the backend, and the milliseconds that each took."""
        lines = []
        for signature, made in self.made.items():
            times = ", ".join(f"{name} {1000 * made[name]:.1f} ms" for name in ("loop", "vmap") if made[name] is not None)
            lines.append(f"{made['backend']} for {signature}: {times or 'not measured'}")
        return lines


def signature_of(networks: Networks, arguments: Arguments, method: str) -> str:
    """What a call is measured by: sizes are rounded up to powers of two, so that lengths that vary are not measured anew."""
    template = networks.replicas.template
    shapes = [
        f"{leaf.dtype} ".removeprefix("torch.")
        + "x".join(str(1 << (size - 1).bit_length() if size else 0) for size in leaf.shape)
        for leaf in arguments.stacked()
        if isinstance(leaf, Tensor)
    ]
    weights = next(iter(networks.weights.values()))
    mode = "train" if template.training else "eval"
    graph = "gradients" if torch.is_grad_enabled() else "no gradients"
    count = arguments.parts or len(networks)
    return f"{method}, {mode}, {graph}, {count} networks, inputs {' '.join(shapes)}, {weights.dtype}, {weights.device.type}"


def _measured(networks: Networks, arguments: Arguments, method: str) -> dict[str, Any]:
    trial = Trial(networks, arguments, method)
    on_cpu = trial.device.type == "cpu"
    times: dict[str, float | None] = {"loop": None, "vmap": None}
    try:
        first = {"loop": trial.seconds("loop")}
        times["loop"] = first["loop"]
        if not on_cpu or first["loop"] < _LONG * trial.count:
            first["vmap"] = trial.seconds("vmap")
            clear = on_cpu and max(first.values()) > _CLEAR * min(first.values())
            rounds = [first] if clear else [{name: trial.seconds(name) for name in first} for _ in range(_ROUNDS)]
            times = {name: min(one[name] for one in rounds) for name in first}
    except Exception:
        times["vmap"] = None
    loop, vmap = times["loop"], times["vmap"]
    return {"backend": "vmap" if loop is not None and vmap is not None and vmap < loop else "loop", **times}
