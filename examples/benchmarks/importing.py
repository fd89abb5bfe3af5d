"""Importing: the package, beside what it rests on."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

from outcome import Outcome
from timing import FULL, QUICK, child_seconds, interleaved, medians, ratio

BASELINE = "import torch"
STATEMENTS = (
    BASELINE,
    "import pytorch_lightning",
    "import lightning_hypernet",
    "from lightning_hypernet import HypernetCallback",
)


def importing(quick: bool) -> Iterator[Outcome]:
    """Every statement in a new process, whose start is in the time."""
    systems = {text: lambda text=text: subprocess.run([sys.executable, "-c", text], check=True) for text in STATEMENTS}
    seconds = interleaved(systems, replace(QUICK if quick else FULL, warmup=0), child_seconds)
    lines = [
        [name, f"{medians(seconds)[name]['median']:.2f}", str(ratio(some, seconds[BASELINE]))] for name, some in seconds.items()
    ]
    yield Outcome("imports", ["statement", "s", "ratio to torch"], lines, {"seconds": medians(seconds)})
