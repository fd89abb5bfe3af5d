"""The benchmarks run from end to end, on small networks and for two rounds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "examples" / "benchmarks"))
from timing import Effort, interleaved, medians, peak_memory, ratio

SCRIPTS = Path(__file__).parents[2] / "examples" / "benchmarks"


def run(row, out):
    command = [sys.executable, SCRIPTS / "run.py", row, "--quick", "--out", out]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kept = json.loads((out / f"{row}.json").read_text())
    assert kept["row"] == row
    assert kept["settings"]["quick"]
    assert all(title in printed for title in kept["cases"])
    return kept["cases"], printed


def test_every_round_runs_every_system_in_an_order_of_its_own():
    calls = []
    systems = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = interleaved(systems, Effort(warmup=2, least=3, most=40, seconds=60.0))
    rounds = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert len(rounds) == 2 + 40
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) == 6
    assert [len(some) for some in seconds.values()] == [40, 40, 40]
    again = interleaved(systems, Effort(warmup=1, least=3, most=40, seconds=0.0))
    assert {name: one["rounds"] for name, one in medians(again).items()} == {"a": 3, "b": 3, "c": 3}


def test_time_is_told_by_the_clock_that_is_given():
    now = 0.0

    def wait(seconds):
        nonlocal now
        now += seconds

    systems = {"short": lambda: wait(1.0), "long": lambda: wait(2.5)}
    seconds = interleaved(systems, Effort(1, 4, 4, 0.0), clock=lambda: now)
    assert seconds == {"short": [1.0] * 4, "long": [2.5] * 4}
    assert str(ratio(seconds["short"], seconds["short"])) == "1"


def test_a_ratio_is_that_of_medians_with_percentiles_of_rounds():
    baseline, some = np.arange(1.0, 12.0), 2 * np.arange(1.0, 12.0) + np.array([0.0] * 10 + [11.0])
    told = ratio(some.tolist(), baseline.tolist())
    assert (told.median, told.low, told.high) == (2.0, 2.0, 2.0)
    assert ratio([2.0, 3.0, 4.0], [1.0, 1.0, 2.0]).median == 3.0


def test_peak_memory_counts_what_was_made_since_the_system_was_built():
    before = torch.zeros(1000)

    def build():
        kept = torch.zeros(3000)

        def step():
            between = before + 1.0
            return (between + kept[:1000]).sum()

        return step

    assert 4 * 5000 <= peak_memory(build) < 4 * 5000 + 1000


@pytest.mark.slow
def test_entropy(tmp_path):
    cases, printed = run("entropy", tmp_path)
    assert len(cases) == 4
    assert all(set(case["memory"]) == {"all distances", "ours"} for case in cases.values())
    assert "memory in units of the vectors" in printed


@pytest.mark.slow
def test_train(tmp_path):
    cases, printed = run("train", tmp_path)
    assert len(cases) == 6
    for title, case in cases.items():
        assert {"bare loop", "one shared network", "ours, default", "ours, compact, with gauge and entropy"} <= set(
            case["seconds"]
        )
        assert ("ours, paper's" in case["seconds"]) == title.startswith(("training step: MNIST", "training step: LeNet"))
        assert "hyperlight" in case["seconds"] or "hyperlight" in printed


@pytest.mark.slow
def test_sampling(tmp_path):
    cases, _ = run("sampling", tmp_path)
    assert [case["networks"] for case in cases.values()] == [2, 3, 2, 3]
    assert all({"memcpy", "ours, default", "ours, compact"} <= set(case["seconds"]) for case in cases.values())


@pytest.mark.slow
def test_evaluation(tmp_path):
    cases, _ = run("evaluation", tmp_path)
    assert len(cases) == 6
    assert all(len(case["seconds"]) == 3 for case in cases.values())


@pytest.mark.slow
def test_wrapping(tmp_path):
    cases, _ = run("wrapping", tmp_path)
    (models,) = cases.values()
    assert all(model["groups"] > 0 and model["blocks"] > 0 and model["compact"] > 0 for model in models.values())


@pytest.mark.slow
def test_growth(tmp_path):
    cases, _ = run("growth", tmp_path)
    assert len(cases) == 3
    assert all(set(case["exponents"]) == set(case["points"]) for case in cases.values())
    assert (tmp_path / "growth.png").exists()


@pytest.mark.slow
def test_import(tmp_path):
    cases, _ = run("import", tmp_path)
    assert "import lightning_hypernet" in cases["imports"]["seconds"]


@pytest.mark.slow
def test_quality(tmp_path):
    cases, _ = run("quality", tmp_path)
    (systems,) = cases.values()
    trained = {name: system["runs"][0][0] for name, system in systems.items()}
    assert trained["compact"] < trained["network"] < trained["default"]
    assert (tmp_path / "quality.png").exists()


@pytest.mark.slow
def test_a_row_that_is_not_there_is_refused():
    told = subprocess.run([sys.executable, SCRIPTS / "run.py", "trian"], capture_output=True, text=True)
    assert told.returncode == 2
    assert "there is no row trian" in told.stderr
