"""The example of information runs, and prints every figure beside its maximum."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_prints_each_figure_with_its_maximum(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(ROOT / "examples" / "information.py"), "--steps", "60", "--networks", "200"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    figures = dict(line.split(": ") for line in run.stdout.splitlines())
    for name, most in figures.items():
        if name.endswith("_maximum") and most != "none":
            assert float(figures[name.removesuffix("_maximum")]) <= float(most) + 0.05, name
    assert figures["plain_z_from_weights_maximum"] == "none"
    assert float(figures["generator_most_shared_by_layers"]) > float(figures["mean_field_most_shared_by_layers"])
    assert (tmp_path / "information.png").exists()
