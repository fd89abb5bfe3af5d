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

    They belong to its state, and are no buffers: whatever becomes of the ensemble, they stay in double precision on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, Tensor] = {}

    @property
    def fitted(self) -> bool:
        """Whether it holds anything."""
        return bool(self._held)

    @property
    def own(self) -> Tensor | None:
        """The temperatures of the members, ``(members,)``; None: they have none."""
        return self._held.get("own")

    @property
    def temperature(self) -> float:
        """Of the mean prediction; 1 where none was fitted."""
        return float(self._held["temperature"]) if self._held else 1.0

    @property
    def reading(self) -> Reading | None:
        """How outputs were read; None: nothing was fitted."""
        if not self._held:
            return None
        _, task, kind, dim, _ = self._held["reading"].tolist()
        variance = _KINDS[kind]
        return Reading(TASKS[task], float(self._held["noise"]) if variance == "noise" else variance, dim)

    @property
    def conformal(self) -> Conformal | None:
        """The scores of conformal sets; None: there are none."""
        if "scores" not in self._held:
            return None
        return Conformal(str(_SCORES[int(self._held["reading"][4])]), self._held["scores"])

    def extra_repr(self) -> str:
        """What it holds, in words."""
        if self.reading is None:
            return "nothing"
        own = "" if self.own is None else f", members' own {', '.join(f'{one:.3g}' for one in self.own.tolist())}"
        scores = "" if self.conformal is None else f", {len(self.conformal.scores)} scores"
        return f"{self.reading.task}, temperature {self.temperature:.4g}{own}{scores}"

    def __repr__(self) -> str:
        return f"Calibration({self.extra_repr()})"

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
        before = {name: value for name, value in self._held.items() if name in ("temperature", "own")}
        scores = conformal.scores.detach().double().cpu().clone()
        one = torch.ones((), dtype=torch.float64)
        self._put({"temperature": one, **before, **self._codes(reading, conformal.kind), "scores": scores})

    def forget(self) -> None:
        """Hold nothing."""
        self._put({})

    def part(self, index: slice, members: int) -> Calibration:
        """What holds for some of the members: all of it for all of them, else the temperatures of their own alone."""
        twin = Calibration()
        if len(range(members)[index]) == members:
            twin.take(self._held)
        elif self.own is not None and self.reading is not None:
            twin.keep(self.reading, 1.0, self.own[index])
        return twin

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what a file held, once `problems` found nothing."""
        with torch.inference_mode(False):
            self._put({name: value.detach().cpu().clone() for name, value in tensors.items()})

    def _codes(self, reading: Reading, kind: str | None) -> dict[str, Tensor]:
        number = isinstance(reading.variance, float)
        variance = _KINDS.index("noise" if number else reading.variance)
        codes = [_VERSION, TASKS.index(reading.task), variance, reading.dim, _SCORES.index(kind)]
        noise = torch.tensor(reading.variance if number else 0.0, dtype=torch.float64)
        return {"reading": torch.tensor(codes), "noise": noise}

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        self._held = dict(tensors)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination.update({f"{prefix}{name}": value for name, value in self._held.items()})

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
