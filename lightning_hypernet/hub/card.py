"""Card: the page that tells what a folder holds and how it is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.values import number, shown

_SPECIAL = "\\`*_[]()#|~$!@:{}"
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_COLUMNS = {"member_": "mean member", "best_member_": "best member", "ensemble_": "ensemble", "majority_": "majority"}
_URL = "https://arxiv.org/abs/1905.02898"


def card(
    what: Hypernet | Ensemble,
    name: str,
    recipe: Mapping[str, Any] | None,
    figures: Mapping[str, float],
    pictures: Mapping[str, str],
) -> str:
    """The text of a model card, in Markdown under a head of YAML; what comes from elsewhere is escaped.

    Args:
        what: What the folder holds.
        name: By which it is loaded.
        recipe: How its target is built; None: whoever loads it has one.
        figures: Names and values of metrics, as `figures_of` gives them.
        pictures: Names and paths of pictures.
    """
    kind = "ensemble" if isinstance(what, Ensemble) else "hypernetwork"
    target = escaped(type(what.target).__name__)
    parts = [
        f"---\nlibrary_name: lightning_hypernet\ntags:\n- {kind}\n- lightning_hypernet\n- pytorch\n- uncertainty\n---",
        f"# {escaped(name)}",
        f"{_lead(what, target)} [The paper]({_URL}).",
        table(("", ""), _facts(what, target, recipe)),
        f"## How to load\n\n```python\n{_use(what, name, recipe)}\n```",
        "Tensors are safetensors and the rest is JSON: nothing is pickled, and all is looked at before anything is built.",
    ]
    if figures:
        parts.append(f"## Metrics\n\n{_metrics(figures)}")
    if pictures:
        shown = [f"![{escaped(title)}]({path})" for title, path in pictures.items()]
        parts.append("\n\n".join(["## Pictures", *shown]))
    return "\n\n".join(parts) + "\n"


def figures_of(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Names and values of metrics.

    Raises:
        TypeError: If they are no mapping of names and numbers.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics must be a mapping, as population_metrics(...).compute() gives it, not {shown(metrics)}")
    found = {}
    for name, value in metrics.items():
        one = value.reshape(()) if getattr(value, "ndim", None) and value.numel() == 1 else value
        one = number(one)
        if not isinstance(name, str) or isinstance(one, bool) or not isinstance(one, (int, float)):
            raise TypeError(f"the metric {shown(name)} must be a text and one number, not {shown(value)}")
        found[name] = float(one)
    return found


def escaped(text: str) -> str:
    """A text as Markdown shows it letter by letter, in one line."""
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return "".join(_ENTITIES.get(one) or (f"\\{one}" if one in _SPECIAL else one) for one in line)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, of texts that are escaped already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lead(what: Hypernet | Ensemble, target: str) -> str:
    if isinstance(what, Ensemble):
        return f"{len(what)} networks of one {target}, drawn from a hypernetwork and evaluated together."
    return f"A hypernetwork of {target}: its generator maps a random z to all weights, so that another z is another network."


def _facts(what: Hypernet | Ensemble, target: str, recipe: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    built = "by whoever loads it" if recipe is None else f"as {escaped(recipe['class_path'])}"
    facts = [("target", f"{target}, built {built}")]
    if isinstance(what, Ensemble):
        weights = sum(math.prod(value.shape[1:]) for value in what.weights.tensors().values())
        facts += [
            ("members", str(len(what))),
            ("components", f"{len(what.latents.component.unique())} among the members"),
            ("weights of each", f"{weights:,}"),
            ("joined by", escaped(str(what.reduce))),
            ("calibrated", "yes" if what.calibration.fitted else "no"),
        ]
        return facts
    size = sum(parameter.numel() for parameter in what.generator.parameters())
    return [
        *facts,
        ("members", f"{len(what.members)} in evaluation, as many more as are drawn"),
        ("components", str(what.components)),
        ("weights of each", f"{what.banks.weights:,}, generated"),
        (
            "generator",
            f"{escaped(type(what.generator).__name__)}, {size:,} parameters, {size / what.banks.weights:.2f} times the weights",
        ),
        ("z", f"{what.latent_dim} numbers, {escaped(type(what.prior).__name__)}"),
        ("joined by", escaped(str(what.reduce))),
    ]


def _use(what: Hypernet | Ensemble, name: str, recipe: Mapping[str, Any] | None) -> str:
    kind, given = ascii(type(what.target).__name__)[1:-1], "" if recipe is not None else ", target=target"
    lines = ["from lightning_hypernet import from_pretrained", ""]
    if recipe is None:
        lines.append(f"target = ...  # a {kind} like the one that was trained; its weights do not matter")
    elif all(part.isidentifier() for part in recipe["class_path"].split(".")) and recipe["class_path"] != "timm.create_model":
        lines.insert(0, f"import {recipe['class_path'].rpartition('.')[0]}  # a file imports nothing\n")
    noun = "ensemble" if isinstance(what, Ensemble) else "hypernet"
    lines += [f"{noun} = from_pretrained({name!a}{given})", f"joined = {noun}(inputs)"]
    lines.append(
        "each = ensemble.members(inputs)  # (members, batch, ...)"
        if noun == "ensemble"
        else "networks = hypernet.materialize(hypernet.sample(5))  # five new plain modules"
    )
    return "\n".join(lines)


def _metrics(figures: Mapping[str, float]) -> str:
    """What members and the ensemble have of the same metric stands in one row, and every other metric in one of its own."""
    compared = [name.removeprefix("ensemble_") for name in figures if name.startswith("ensemble_")]
    rows, left = [], dict(figures)
    for name in compared:
        cells = [left.pop(f"{prefix}{name}", None) for prefix in _COLUMNS]
        rows.append([escaped(name), *map(_cell, cells)])
    used = [index for index in range(1, 5) if any(row[index] for row in rows)]
    heads = ["metric", *_COLUMNS.values()]
    tables = [table([heads[0], *(heads[index] for index in used)], [[row[0], *(row[index] for index in used)] for row in rows])]
    others = [(escaped(name), _cell(value)) for name, value in left.items()]
    return "\n\n".join([*(tables if rows else []), *([table(("metric", "value"), others)] if others else [])])


def _cell(value: float | None) -> str:
    return "" if value is None else "-" if math.isnan(value) else f"{value:.4g}"
