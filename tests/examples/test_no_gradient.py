"""The example of losses without a gradient runs, and its estimators are unbiased."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_prints_its_figures(tmp_path):
    short = ["--draws", "1000", "--epochs", "2", "--steps", "20", "--probes", "5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "no_gradient.py"), *short]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    figures = dict(line.split(": ") for line in lines[lines.index(next(one for one in lines if one.startswith("toy_"))) :])
    assert all(abs(float(value)) < 4.5 for name, value in figures.items() if name.endswith("standard_errors"))
    assert {"toy_relax_variance", "test_error_of_error", "variance_at_end_lax"} <= set(figures)
