"""The tutorials run from end to end, print their figures and draw their picture."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "examples" / "tutorials"
SECOND = {"tabular": "rmse", "image": "accuracy", "segmentation": "iou", "tokens": "accuracy", "time_series": "rmse"}


def test_every_tutorial_is_tried_and_told_of():
    assert {path.stem for path in TUTORIALS.glob("*.py")} == set(SECOND)
    page = (ROOT / "docs" / "tutorials.md").read_text()
    assert all(f"examples/tutorials/{name}.py" in page for name in SECOND)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "second"), SECOND.items())
def test_it_prints_its_figures_and_draws(name, second, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    picture = tmp_path / "picture.png"
    command = [sys.executable, str(TUTORIALS / f"{name}.py"), "--seed", "100", "--epochs", "1", "--out", str(picture)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    figures = dict(line.split(": ") for line in run.stdout.splitlines())
    better = figures.pop("ensemble_is_better")
    numbers = {key: float(value) for key, value in figures.items()}
    networks = (
        "plain",
        "plain_stopped",
        *(f"{one}_{kind}" for one in ("defaults", "families") for kind in ("ensemble", "member")),
    )
    assert {f"{network}_{figure}" for network in networks for figure in ("nll", second)} <= set(numbers)
    assert all(math.isfinite(value) for value in numbers.values())
    plain = min(numbers["plain_nll"], numbers["plain_stopped_nll"])
    assert numbers["nll_gain"] == pytest.approx(plain - numbers["families_ensemble_nll"], abs=2e-4)
    assert better == ("yes" if numbers["nll_gain"] > 0 else "no")
    assert numbers["families_ensemble_nll"] <= numbers["families_member_nll"]  # Jensen's inequality
    assert picture.read_bytes().startswith(b"\x89PNG")
