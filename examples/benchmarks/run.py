"""Benchmarks: time and memory beside plain loops and other packages, row by row.

By processor time of one thread, all systems of a case in turn in one process: ratios count. On a GPU by the time of the clock.
"""

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch

from entropy import entropy
from evaluation import evaluation
from growth import growth
from importing import importing
from outcome import Outcome
from quality import quality
from sampling import sampling
from timing import DEVICE, FULL, QUICK
from training import train
from wrapping import wrapping

PACKAGES = ("torch", "pytorch-lightning", "timm", "lightning_hypernet", "hypnettorch", "hyperlight")


def rows(out: Path) -> dict[str, Callable[[bool], Iterator[Outcome]]]:
    """The rows, by name."""
    return {
        "train": train,
        "sampling": sampling,
        "evaluation": evaluation,
        "entropy": entropy,
        "wrapping": wrapping,
        "growth": partial(growth, picture=out / "growth.png"),
        "import": importing,
        "quality": partial(quality, picture=out / "quality.png"),
    }


def settings(quick: bool) -> dict[str, Any]:
    """What the numbers depend on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": device,
        "threads": torch.get_num_threads(),
        "quick": quick,
        "effort": asdict(QUICK if quick else FULL),
    }


def main() -> None:
    known = list(rows(Path()))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(known)}; none: all")
    parser.add_argument("--out", type=Path, default=Path("benchmark_results"), help="folder of the JSON files and the picture")
    parser.add_argument("--quick", action="store_true", help="small networks and two rounds, to see that it runs")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(known):
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(known)}")

    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, row in rows(options.out).items():
        if options.rows and name not in options.rows:
            continue
        kept: dict[str, Any] = {"row": name, "settings": settings(options.quick), "cases": {}}
        for outcome in row(options.quick):
            outcome.show()
            kept["cases"][outcome.title] = outcome.numbers
            (options.out / f"{name}.json").write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
