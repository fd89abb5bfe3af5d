"""The example of the neighbour estimate's bias runs, and the entropies that it compares with are right."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("entropy_bias", ROOT / "examples" / "entropy_bias.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("d", [2, 3, 8])
def test_the_flow_knows_its_log_determinant(example, d):
    torch.manual_seed(0)
    flow = example.Flow(d)
    z = torch.randn(5, d, dtype=torch.float64)
    exact = [torch.linalg.slogdet(torch.autograd.functional.jacobian(lambda x: flow(x[None])[0][0], one)) for one in z]
    assert all(one.sign > 0 for one in exact)
    torch.testing.assert_close(flow(z)[1].detach(), torch.stack([one.logabsdet for one in exact]))


@pytest.mark.parametrize(("d", "numbers"), [(1, 1), (3, 3), (3, 10)])
def test_the_entropy_of_a_gaussian_is_that_of_its_covariance(example, d, numbers):
    torch.manual_seed(0)
    draws, exact = example.gaussian(d, numbers, 0)
    x = draws(100_000)
    variances = torch.linalg.eigvalsh(x.T.cov().reshape(numbers, numbers))[-d:]
    found = 0.5 * d * math.log(2 * math.pi * math.e) + 0.5 * variances.log().sum().item()
    assert x.shape == (100_000, numbers)
    assert found == pytest.approx(exact, abs=4 * math.sqrt(d / 2 / 100_000))


@pytest.mark.slow
def test_it_prints_its_figures(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "entropy_bias.py"), "--repeats", "4", "--steps", "20"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    figures = {
        name: float(value) for name, value in (line.split(": ") for line in lines if line.startswith(("gau", "fl", "dig")))
    }
    for d in (1, 2):
        assert abs(figures[f"gaussian_d{d}_n3000_bias"]) < 0.1
    assert figures["gaussian_d16_n3000_bias"] < figures["gaussian_d16_n100_bias"]
    assert {"flat_d8_n100_bias", "flow_d8_n1000_standard_error", "digits_diverse_d4_n3000_neighbour"} <= set(figures)
    assert (tmp_path / "entropy_bias.png").exists()
