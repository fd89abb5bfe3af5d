"""Calibration: what a fixed set of members learned of data that none of them was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet.archive import Stored
from lightning_hypernet.uncertainty.conformal import CLASS_SCORES, NUMBER_SCORES, Conformal
from lightning_hypernet.uncertainty.reading import TASKS, VARIANCES, Reading

_VERSION = 1
_KINDS = (None, "noise", *VARIANCES)
_SCORES = (None, *CLASS_SCORES, *NUMBER_SCORES)
_DTYPES = {"reading": torch.int64, "noise": torch.float64, "temperature": torch.float64, "own": torch.float64,
           "scores": torch.float64}  # fmt: skip


class Calibration(nn.Module):
    """Temperatures, scores of conformal sets, and how outputs were read; all of it tensors, which are stored with the ensemble.

    Its tensors stay in double precision on the CPU, whatever becomes of the ensemble. Nothing is there until something was
    fitted.

    Attributes:
        reading: ``(5,)``, codes: version, task, variance, axis, kind of scores.
        noise: The variance of the noise where it is a number, a scalar; 0 elsewhere.
        temperature: Of the mean prediction, a scalar.
        own: Of the members, ``(members,)``; None: they have none.
        scores: ``(n, outputs)``, see `Conformal`; None: there are none.
    """

    reading: Tensor | None
    noise: Tensor | None
    temperature: Tensor | None
    own: Tensor | None
    scores: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for name in _DTYPES:
            self.register_buffer(name, None)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return self

    def __bool__(self) -> bool:
        return self.reading is not None

    def extra_repr(self) -> str:
        """What it holds, in words."""
        if self.reading is None:
            return "nothing"
        own = "" if self.own is None else f", members' own {', '.join(f'{one:.3g}' for one in self.own.tolist())}"
        scores = "" if self.scores is None else f", {len(self.scores)} scores"
        return f"{self.read().task}, temperature {self.degree():.4g}{own}{scores}"

    def __repr__(self) -> str:
        return f"Calibration({self.extra_repr()})"

    def read(self) -> Reading:
        """How outputs were read; call it where there is something."""
        assert self.reading is not None
        _, task, kind, dim, _ = self.reading.tolist()
        variance = _KINDS[kind]
        return Reading(TASKS[task], float(self.noise) if variance == "noise" and self.noise is not None else variance, dim)

    def degree(self) -> float:
        """The temperature of the mean prediction; 1 where none was fitted."""
        return 1.0 if self.temperature is None else float(self.temperature)

    def conformal(self) -> Conformal | None:
        """The scores, if there are some."""
        if self.scores is None or self.reading is None:
            return None
        return Conformal(str(_SCORES[int(self.reading[4])]), self.scores)

    def keep(self, reading: Reading, temperature: float, own: Tensor | None) -> None:
        """Keep temperatures; scores, which depend on them, are gone."""
        self._put(
            {
                **self._codes(reading, None),
                "temperature": torch.tensor(temperature, dtype=torch.float64),
                **({} if own is None else {"own": own.detach().double().cpu().clone()}),
            }
        )

    def keep_scores(self, reading: Reading, conformal: Conformal) -> None:
        """Keep scores of conformal sets, beside the temperatures that they were computed with."""
        degree = torch.tensor(self.degree(), dtype=torch.float64)
        own = {} if self.own is None else {"own": self.own}
        scores = conformal.scores.detach().double().cpu().clone()
        self._put({**self._codes(reading, conformal.kind), "temperature": degree, **own, "scores": scores})

    def forget(self) -> None:
        """Hold nothing."""
        self._put({})

    def part(self, index: slice, members: int) -> Calibration:
        """What holds for some of the members: all of it for all of them, else the temperatures of their own alone."""
        twin = Calibration()
        held = {name: value for name, value in self._buffers.items() if value is not None}
        if not held:
            return twin
        if len(range(members)[index]) == members:
            twin._put({name: value.clone() for name, value in held.items()})
        elif self.own is not None:
            twin.keep(self.read(), 1.0, self.own[index])
        return twin

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what a file held, once `problems` found nothing."""
        self._put({name: value.detach().cpu().clone() for name, value in tensors.items()})

    def _codes(self, reading: Reading, kind: str | None) -> dict[str, Tensor]:
        number = isinstance(reading.variance, float)
        variance = _KINDS.index("noise" if number else reading.variance)
        codes = [_VERSION, TASKS.index(reading.task), variance, reading.dim, _SCORES.index(kind)]
        noise = torch.tensor(reading.variance if number else 0.0, dtype=torch.float64)
        return {"reading": torch.tensor(codes), "noise": noise}

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.inference_mode(False):
            for name in _DTYPES:
                self._buffers[name] = tensors.get(name)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        held = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        found = [f"{prefix}{text}" for text in problems({name: Stored.of(value) for name, value in held.items()}, None)]
        error_msgs.extend(found)
        if not found:
            self.take(held)


def problems(held: Mapping[str, Stored], members: int | None) -> Iterator[str]:
    """What is wrong with the tensors of a calibration, in words.

    Args:
        held: The tensors; none at all are a calibration that holds nothing.
        members: Of how many members they must be; None: of any number.
    """
    if not held:
        return
    shapes = {"reading": 1, "noise": 0, "temperature": 0, "own": 1, "scores": 2}
    yield from (f"{name} is unknown" for name in held if name not in shapes)
    yield from (f"{name} is missing" for name in ("reading", "noise", "temperature") if name not in held)
    odd = [
        name for name, one in held.items() if name in shapes and (one.dtype != _DTYPES[name] or len(one.shape) != shapes[name])
    ]
    yield from (f"{name} is {held[name].dtype} {held[name].shape}" for name in odd)
    if odd or any(name not in held for name in ("reading", "noise", "temperature")):
        return
    yield from _odd_codes(held)
    yield from _odd_numbers({name: one.read() for name, one in held.items() if name in shapes})
    if members is not None and "own" in held and held["own"].shape[0] != members:
        yield f"own holds {held['own'].shape[0]} temperatures of {members} members"


def _odd_codes(held: Mapping[str, Stored]) -> Iterator[str]:
    codes = held["reading"].read().tolist()
    if len(codes) != 5 or codes[0] != _VERSION:
        yield f"reading is {codes}, not of version {_VERSION}; read it with the version that wrote it"
        return
    _, task, kind, _, scores = codes
    fits = 0 <= task < len(TASKS) and 0 <= kind < len(_KINDS) and 0 <= scores < len(_SCORES)
    allowed = (CLASS_SCORES, NUMBER_SCORES)[task] if fits else ()
    if not fits or (kind and TASKS[task] == "classification") or (scores and _SCORES[scores] not in allowed):
        yield f"reading is {codes}, which names no way to read outputs"
    elif bool(scores) != ("scores" in held):
        yield "reading and scores do not belong together"
    elif (_KINDS[kind] == "noise") != bool(held["noise"].read() > 0):
        yield "noise is no variance"


def _odd_numbers(values: Mapping[str, Tensor]) -> Iterator[str]:
    tests: Mapping[str, Callable[[Tensor], Tensor]] = {
        "temperature": lambda one: one > 0,
        "own": lambda one: one > 0,
        "scores": lambda one: one >= 0,
    }
    for name, test in tests.items():
        if name in values and not bool((test(values[name]) & values[name].isfinite()).all()):
            yield f"{name} holds numbers that are out of range"
    scores = values.get("scores")
    if scores is not None and (not scores.numel() or bool((scores[1:] < scores[:-1]).any())):
        yield "scores are none, or not in order"
