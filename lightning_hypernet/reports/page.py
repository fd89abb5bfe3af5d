"""The page of a report: what a hypernetwork is, how good and how different its networks are, how to use it."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.reports import pictures
from lightning_hypernet.reports.findings import Findings, measure
from lightning_hypernet.reports.markup import Cell, cards, code, document, paragraph, table, terms, text_of, tiles
from lightning_hypernet.summary import fixed_filters
from lightning_hypernet.target.reduction import check_reduction
from lightning_hypernet.values import instance

_COMPARED = {
    "classes": (
        ("accuracy", ("member_accuracy", "best_member_accuracy", "ensemble_accuracy"), True, True),
        ("accuracy, by majority", (None, None, "majority_accuracy"), True, True),
        ("negative log-likelihood, nats", ("member_nll", None, "ensemble_nll"), False, False),
        ("Brier score", ("member_brier", None, "brier"), False, False),
        ("calibration error", ("member_ece", None, "ece"), True, False),
    ),
    "numbers": (
        ("root mean square error", ("member_rmse", "best_member_rmse", "ensemble_rmse"), False, False),
        ("mean absolute error", ("member_mae", "best_member_mae", "ensemble_mae"), False, False),
    ),
}
"""For every row its name, its figures, whether they are shares and whether more is better."""
_DIFFERENCES = (
    ("disagreement", "disagreement", "share of examples on which two networks say different classes", True),
    ("variation_ratio", "variation ratio", "share of networks that do not say what most say", True),
    ("mutual_information", "mutual information, nats", "what the networks know apart: 0 if all say the same", False),
    ("pairwise_kl", "pairwise KL, nats", "how far two networks' probabilities are apart", False),
    ("double_fault", "double fault", "share of examples on which two networks are wrong together", True),
    ("q_statistic", "Q statistic", "1: two networks err on the same examples; 0: independently", False),
    ("spread", "spread", "root mean square deviation of the networks' outputs from their mean", False),
    ("weight_cosine", "cosine of weights", "of two networks{gauge}: 1 if they point the same way", False),
)
_OWN = {
    "accuracy": "accuracy, %", "nll": "NLL, nats", "brier": "Brier", "ece": "calibration error, %", "rmse": "RMSE",
    "mae": "MAE", "disagreement": "disagreement, %", "cosine": "mean cosine",
}  # fmt: skip


def write_report(
    hypernet: Hypernet,
    loader: Iterable[Any] | None,
    path: str | Path,
    title: str | None = None,
    checkpoint: str | Path | None = None,
    history: Sequence[tuple[float, Mapping[str, float]]] = (),
    batches: int | None = None,
    targets: Callable[[Any], Any] | None = None,
) -> Path:
    """Measure the networks of a Hypernet and write one page about them, which needs nothing beside itself.

    Args:
        hypernet: The Hypernet; its members are measured.
        loader: Batches that end with their labels: classes, also of maps, or numbers. Without labels, or without a loader, the
            page tells what can be told.
        path: Where the page is written; folders are made. What was there is replaced once the page is whole.
        title: Its title; None: the class of the target.
        checkpoint: Named in the code that loads it.
        history: Epochs and the figures of their validations.
        batches: How many batches are read; None: all.
        targets: Gives the targets of a batch, where they are not its last part, nor named as targets or labels.

    Returns:
        The path.

    Raises:
        TypeError: If this is no Hypernet, the loader gives no batches, or `targets` is no function or gives no tensor.
        ValueError: If the loader is empty, labels are no classes, or the path is a folder.

    Example:
        >>> import tempfile
        >>> hypernet = Hypernet(torch.nn.Linear(4, 2), example_inputs=torch.randn(2, 4), members=3)
        >>> batches = [(torch.randn(8, 4), torch.randint(0, 2, (8,)))]
        >>> write_report(hypernet, batches, Path(tempfile.mkdtemp()) / "report.html").name
        'report.html'
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the file, as {path / 'report.html'}")
    page = render(hypernet, measure(hypernet, loader, batches, targets=targets), title, checkpoint, history)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / path.name
        whole.write_text(page, encoding="utf-8")
        whole.replace(path)
    return path


def render(
    hypernet: Hypernet,
    found: Findings,
    title: str | None = None,
    checkpoint: str | Path | None = None,
    history: Sequence[tuple[float, Mapping[str, float]]] = (),
) -> str:
    """The page of findings that were measured, as HTML.

    Args:
        hypernet: The Hypernet.
        found: What was measured of it.
        title: The title; None: the class of the target.
        checkpoint: Named in the code that loads it.
        history: Epochs and the figures of their validations.
    """
    kind = type(hypernet.target).__name__
    measured = f", run on {found.examples:,} {'outputs' if found.kind in ('numbers', 'outputs') else 'examples'}"
    networks = f"{found.networks} network{'s' if found.networks > 1 else ''}"
    lead = f"{networks} of one hypernetwork for {kind}{measured if found.examples else ''}."
    sections = [
        ("what", "What it is", _what(hypernet)),
        ("good", "How good", _good(found, history, check_reduction(hypernet.reduce)[0] == "mean")),
        ("different", "How different", _different(found)),
        ("networks", "Every network", _networks(found)),
        ("use", "How to use it", _use(hypernet, checkpoint)),
    ]
    return document(title or kind, lead, tiles(_first(found, hypernet)), [one for one in sections if one[2]], _footer(found))


def _first(found: Findings, hypernet: Hypernet) -> list[tuple[str, str]]:
    wanted = {
        "ensemble_accuracy": ("accuracy, all together", True), "member_accuracy": ("accuracy of a single network", True),
        "disagreement": ("disagreement of two networks", True), "ece": ("calibration error", True),
        "ensemble_rmse": ("RMSE, all together", False), "member_rmse": ("RMSE of a single network", False),
        "spread": ("spread of the networks", False),
    }  # fmt: skip
    figures = [(text_of(found.figures[key], share), name) for key, (name, share) in wanted.items() if key in found.figures]
    return [*figures, (f"{hypernet.banks.weights:,}", "weights generated for each network")]


def _what(hypernet: Hypernet) -> str:
    generator, banks = hypernet.generator, hypernet.banks
    count = sum(parameter.numel() for parameter in generator.parameters())
    unread = hypernet.symmetries.unread
    groups = None if unread else hypernet.symmetries.groups
    prior = type(hypernet.prior).__name__
    facts = {
        "target": type(hypernet.target).__name__,
        "weights": f"{banks.weights:,} in {len(banks)} banks of {banks.filters:,} filters",
        "generator": f"{type(generator).__name__}, {count:,} parameters, {count / banks.weights:.2f} times the weights",
        "latent": f"{hypernet.latent_dim} numbers, {prior}, {hypernet.components} component{'s' * (hypernet.components > 1)}",
        "condition": f"{hypernet.context_dim} numbers" if hypernet.context_dim else "none",
        "gauge": f"symmetries not read: {unread}"
        if groups is None
        else f"{hypernet.options['gauge']}, {groups.count:,} groups of channels",
        "in a training step": f"{hypernet.samples} networks",
    }
    rows: list[list[Cell]] = []
    for bank in banks:
        names = [" = ".join(banks.aliases[name]) for name in dict.fromkeys(slot.parameter for slot in bank.slots)]
        fixed = None if groups is None else int(fixed_filters(bank, banks.shapes, groups).sum())
        rows.append([bank.name, ", ".join(names), bank.filters, bank.filter_size, fixed])
    left: list[list[Cell]] = [[name, reason] for name, reason in banks.ordinary.items()]
    intro = "A generator turns a latent z into all of these weights at once. Another z is another network."
    parts = [paragraph(intro), terms(facts), table(["bank", "parameters", "filters", "numbers in each", "scale fixed"], rows)]
    return "".join([*parts, table(["not generated", "why"], left) if left else ""])


def _good(found: Findings, history: Sequence[tuple[float, Mapping[str, float]]], logits: bool) -> str:
    compared = _COMPARED.get(found.kind)
    if compared is None:
        told = found.left_out.get("figures") or found.left_out.get("outputs")
        if told:
            return paragraph(f"Nothing is said of how good the networks are: {told}.")
        why = "Nobody said what is right, so nothing is said of how good the networks are: give batches with labels."
        return paragraph(why)
    rows: list[list[Cell]] = []
    best = {}
    for name, keys, _, more in compared:
        figures = [None if key is None else found.figures.get(key) for key in keys]
        rows.append([name, *figures])
        if figures[0] is not None and figures[2] is not None and figures[0] != figures[2]:
            best[len(rows) - 1] = 3 if (figures[2] > figures[0]) == more else 1
    heads = ["figure", "single network, mean", "best single network", "all together"]
    shares = [one[2] for one in compared]
    intro = "Each network by itself against all of them together, whose outputs are averaged. Green is the better of the two."
    if found.kind == "classes":
        intro = intro.replace("outputs", "probabilities")
        if logits:
            intro += (
                ' The hypernetwork itself averages what its networks return (reduce="mean"), so that of logits its validation '
                "in fit has somewhat other figures."
            )
    drawn = [*pictures.good(found), pictures.history(history)]
    return paragraph(intro) + table(heads, rows, shares, best) + cards([one for one in drawn if one])


def _different(found: Findings) -> str:
    rows: list[list[Cell]] = []
    shares = []
    for key, name, meaning, share in _DIFFERENCES:
        if key in found.figures:
            gauge = ", gauge-fixed" if found.gauged else ", as they are, since no gauge is fixed"
            rows.append([name, found.figures[key], meaning.format(gauge=gauge)])
            shares.append(share)
    told = table(["figure", "value", "what it means"], rows, shares) if rows else ""
    banks: list[list[Cell]] = [[one.name, one.filters, one.size, one.spread] for one in found.layers]
    listed = table(["bank", "filters", "numbers in each", "relative spread"], banks)
    intro = "Networks that are good and alike are one network; these figures say how much there is to average."
    alone = "There is a single network, so there is nothing to compare."
    return paragraph(intro if found.networks > 1 else alone) + told + cards(pictures.different(found)) + listed


def _networks(found: Findings) -> str:
    columns = [name for name in _OWN if any(name in row for row in found.members)]
    rows: list[list[Cell]] = [[index, *(row.get(name) for name in columns)] for index, row in enumerate(found.members, 1)]
    if not columns:
        return ""
    return paragraph("Click on the head of a column to sort by it.") + table(
        ["network", *(_OWN[name] for name in columns)], rows
    )


def _use(hypernet: Hypernet, checkpoint: str | Path | None) -> str:
    file = "last.ckpt" if checkpoint is None else str(checkpoint)
    kind, normed = type(hypernet.target).__name__, hypernet.executor.statistics.possible
    data = " and training data, from which fresh networks get their norm statistics, are" if normed else " is"
    given = "loader = ...  # batches of training data\n" if normed else ""
    arguments = f"{file!r}, target{', loader=loader' if normed else ''}"
    return paragraph(f"The checkpoint{data} all that is needed, with a module built like the target.") + code(
        f"""import torch
from lightning_hypernet import Hypernet

target = ...  # a {kind}, built as for training; its weights do not matter
{given}hypernet = Hypernet.from_checkpoint({arguments})

ensemble = hypernet.ensemble(10)                     # ten fresh networks
prediction = ensemble(x)                             # their joined outputs
each = ensemble.members(x)                           # (10, batch, ...)

network = hypernet.materialize(hypernet.sample(1))[0]  # one plain module
torch.save(network.state_dict(), "network.pt")       # loads into a plain target
ensemble.save("ensemble")                            # safetensors and JSON"""
    )


def _footer(found: Findings) -> str:
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    lines = [f"Written on {day} by lightning_hypernet, PyTorch {torch.__version__}."]
    lines += [f"Left out: {name}: {reason}." for name, reason in found.left_out.items()]
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
