"""Pictures: findings as charts of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_hypernet.reports.charts import Chart, heat, roomy, shades, widened
from lightning_hypernet.reports.findings import Findings
from lightning_hypernet.reports.markup import card

_SHOWN_LAYERS = 24
_SHOWN_MEMBERS = 40


def binned(values: Sequence[float]) -> tuple[list[float], list[int]]:
    """Edges of evenly spaced bins and how many values lie in each.

    Args:
        values: The values, one or more.
    """
    low, high = widened(min(values), max(values))
    count = max(5, min(20, len(values) // 2))
    edges = [low + (high - low) * index / count for index in range(count + 1)]
    counts = [0] * count
    for value in values:
        counts[min(int((value - low) / (high - low) * count), count - 1)] += 1
    return edges, counts


def histogram(found: Findings) -> str:
    """The members' accuracy or error, with that of the ensemble."""
    classes = found.kind == "classes"
    name, factor = ("accuracy", 100) if classes else ("rmse", 1)
    joined = factor * found.figures["ensemble_accuracy" if classes else "ensemble_rmse"]
    edges, counts = binned([factor * row[name] for row in found.members])
    unit = "accuracy, %" if classes else "root mean square error"
    room = 0.04 * (max(*edges, joined) - min(*edges, joined))
    chart = Chart((min(*edges, joined) - room, max(*edges, joined) + room), (0, max(counts) * 1.05), (unit, "networks"), unit)
    for index, count in enumerate(counts):
        if count:
            left, right = edges[index : index + 2]
            chart.bar(left, right, count, f"{left:.4g} to {right:.4g}: {count}")
    chart.upright(joined, "b", f"all together: {joined:.2f} %" if classes else f"all together: {joined:.4g}")
    note = "How many of the networks are how good, each by itself."
    return card("Networks one by one", note, chart.html())


def reliability(rows: Tensor) -> str:
    """Accuracy over confidence, of the ensemble."""
    chart = Chart((0, 1), (0, 1), ("confidence", "accuracy"), "Accuracy over confidence")
    for index, (count, confidence, accuracy) in enumerate(rows.tolist()):
        if count:
            tip = f"{count:.0f} examples: confidence {confidence:.3f}, accuracy {accuracy:.3f}"
            chart.bar(index / len(rows), (index + 1) / len(rows), accuracy, tip)
    chart.line([(0, 0), (1, 1)], "c", "as confident as right")
    seen = [(confidence, accuracy) for count, confidence, accuracy in rows.tolist() if count]
    chart.dots(seen, colour="b", size=4, name="bins, at their mean confidence")
    return card(
        "Reliability",
        "Bars on the dashed line: the ensemble is right as often as it says. Few examples make noise.",
        chart.html(),
    )


def agreement(points: Tensor) -> str:
    """What the ensemble says over what is right."""
    rows = points.tolist()
    bounds = min(min(row[:2]) for row in rows), max(max(row[:2]) for row in rows)
    chart = Chart(roomy(*bounds), roomy(*bounds), ("what is right", "mean of the networks"), "Prediction over what is right")
    chart.line([(bounds[0], bounds[0]), (bounds[1], bounds[1])], "c", "no error")
    chart.dots([(row[0], row[1]) for row in rows], [f"{row[1]:.4g} ± {row[2]:.2g}, right: {row[0]:.4g}" for row in rows])
    return card(
        "Predictions", "The mean of the networks against what is right; points on the line have no error.", chart.html()
    )


def spread(points: Tensor) -> str:
    """The error over the spread of the networks."""
    rows = [(row[2], abs(row[1] - row[0])) for row in points.tolist()]
    x, y = max(row[0] for row in rows), max(row[1] for row in rows)
    chart = Chart((0, x), (0, y), ("standard deviation of the networks", "error of their mean"), "Error over spread")
    chart.dots(rows)
    return card("Error and spread", "Where the networks differ more, their mean should be further off.", chart.html())


def layers(found: Findings) -> str:
    """The spread in every bank."""
    shown = found.layers[:_SHOWN_LAYERS]
    most = max(layer.spread for layer in shown) or 1.0
    marks = [(index + 0.5, str(index + 1)) for index in range(0, len(shown), max(1, len(shown) // 12))]
    chart = Chart(
        (0, len(shown)), (0, most * 1.05), ("bank, in the order of the table", "relative spread"), "Spread by layer", marks
    )
    for index, layer in enumerate(shown):
        chart.bar(index + 0.15, index + 0.85, layer.spread, f"{layer.name}: {layer.spread:.3g}")
    cut = f" The first {_SHOWN_LAYERS} are drawn." if len(found.layers) > len(shown) else ""
    note = "How far weights lie from their mean over the networks, against their size; 0 means that all networks share them."
    return card("Spread by layer", note + cut, chart.html())


def different(found: Findings) -> list[str]:
    """How the networks differ: pictures of what could be made."""
    pictures = []
    if found.disagreement is not None:
        rows = (100 * found.disagreement[:_SHOWN_MEMBERS, :_SHOWN_MEMBERS]).tolist()
        note = "Share of examples on which two networks say different classes; hover for the number."
        pictures.append(card("Who disagrees with whom", note, heat(rows, "Disagreement of pairs", " %")))
    pictures.append(layers(found))
    if found.scatter is not None and found.scatter.points.shape[1] > 1:
        points = found.scatter.points[:, :2]
        (left, low), (right, high) = points.amin(0).tolist(), points.amax(0).tolist()
        shares = [
            f"principal axis {index + 1}, {100 * share:.0f} % of the variance"
            for index, share in enumerate(found.scatter.explained.tolist())
        ]
        chart = Chart(roomy(left, right), roomy(low, high), (shares[0], shares[1]), "Principal components of weights")
        for index in sorted(set(found.scatter.components.tolist())):
            chosen = points[found.scatter.components == index].tolist()
            chart.dots([(x, y) for x, y in chosen], colour="abc"[index % 3], name=f"component {index} of the prior")
        note = f"{len(points)} fresh networks, all their weights, on the two axes along which these differ most."
        pictures.append(card("Weights of many networks", note, chart.html()))
    if found.paths is not None:
        curves = found.paths
        both = [100 * value for value in (*curves.direct.flatten().tolist(), *curves.interpolated.flatten().tolist())]
        names = ("way from one network to the other", "accuracy, %")
        chart = Chart((0, 1), roomy(min(both), max(both)), names, "Accuracy on the way between two networks")
        for values, colour, name in ((curves.direct, "b", "straight in weights"), (curves.interpolated, "a", "straight in z")):
            for one in values:
                chart.line(list(zip(curves.at.tolist(), (100 * one).tolist(), strict=True)), colour, name, thin=True)
        note = "A dip on the way that is straight in weights says that the good networks do not lie on a line."
        pictures.append(card("Between two networks", note, chart.html()))
    if found.images is not None:
        note = f"{found.images.name}, in twelve networks: the same place of the network, each time another filter."
        pictures.append(card("One filter, many networks", note, shades(found.images.images.tolist(), found.images.name)))
    return pictures


def good(found: Findings) -> list[str]:
    """How good the networks are: pictures of what could be made."""
    pictures = []
    if found.kind in ("classes", "numbers"):
        pictures.append(histogram(found))
    if found.reliability is not None:
        pictures.append(reliability(found.reliability))
    if found.points is not None:
        pictures += [agreement(found.points), spread(found.points)]
    if found.averaging is not None:
        curves = found.averaging
        pairs = ((curves.ensemble, "a", "ensemble"), (curves.average, "b", "one network with the mean of their weights"))
        lines = [(list(map(float, curves.counts)), (100 * values).tolist(), colour, name) for values, colour, name in pairs]
        every = [value for _, values, _, _ in lines for value in values]
        chart = Chart(
            (1, max(curves.counts)), roomy(min(every), max(every)), ("networks", "accuracy, %"), "Accuracy over networks"
        )
        for counts, values, colour, name in lines:
            points = list(zip(counts, values, strict=True))
            chart.line(points, colour, name)
            chart.dots(points, colour=colour)
        pictures.append(
            card(
                "How many networks it takes",
                "On the first examples, with networks of one component of the prior.",
                chart.html(),
            )
        )
    return pictures


def history(rows: Sequence[tuple[float, Mapping[str, float]]]) -> str:
    """Accuracy or error over the validations of a training; empty where there are not two."""
    kinds = (("accuracy", "accuracy, %", 100), ("rmse", "root mean square error", 1))
    for name, unit, factor in kinds:
        keys = (f"member_{name}", f"ensemble_{name}")
        chosen = [(at, figures) for at, figures in rows if all(key in figures for key in keys)]
        if len(chosen) > 1:
            lines = [[(at, factor * figures[key]) for at, figures in chosen] for key in keys]
            every = [value for line in lines for _, value in line]
            chart = Chart(
                (chosen[0][0], chosen[-1][0]), roomy(min(every), max(every)), ("epoch", unit), "Validation over epochs"
            )
            for line, colour, label in zip(lines, "ba", ("mean of the networks", "all together"), strict=True):
                chart.line(line, colour, label)
            return card("While it trained", "After every validation.", chart.html())
    return ""
