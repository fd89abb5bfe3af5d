"""The reproductions run from end to end, on made data and for a few steps."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "examples" / "reproduce"


def run(script, *arguments):
    command = [sys.executable, SCRIPTS / script, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def make(folder, name, shape):
    random = np.random.RandomState(0)
    arrays = {}
    for part, count in (("train", 2600), ("test", 120)):
        arrays[f"x_{part}"] = random.randint(0, 255, (count, *shape)).astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 10
    np.savez(folder / f"{name}.npz", **arrays)


@pytest.mark.slow
def test_bake_off(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    diversity = importlib.import_module("diversity")
    every = list(diversity.settings())
    assert {name for setting in every for name in setting["diversity"]} == set(diversity.WEIGHTS)
    monkeypatch.setattr(diversity, "settings", lambda: every[2:40:37])
    monkeypatch.setattr(sys, "argv", ["diversity.py", "digits", "--steps", "2", "--out", str(tmp_path)])
    for _ in range(2):
        diversity.main()
    lines = [json.loads(line) for line in (tmp_path / "diversity_digits.jsonl").read_text().splitlines()]
    assert [line["diversity"] for line in lines] == [every[2]["diversity"], every[39]["diversity"]]
    assert all(0 <= line["ensemble_accuracy"] <= 1 and line["symmetry_distance"] > 0 for line in lines)


@pytest.mark.slow
def test_toy(tmp_path):
    run("toy.py", "--steps", 30, "--out", tmp_path)
    assert json.loads((tmp_path / "toy.json").read_text())["steps"] == 30
    assert (tmp_path / "toy.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "data", "shape", "name"),
    [("mnist.py", "mnist", (28, 28), "mnist"), ("cifar_lenet.py", "cifar10", (32, 32, 3), "cifar_lenet")],
)
def test_training_and_evaluation(tmp_path, script, data, shape, name):
    make(tmp_path, data, shape)
    folders = ("--data-dir", tmp_path, "--out", tmp_path)
    for what in ("paper", "ours"):
        for _ in range(2):
            run(script, what, "--steps", 4, *folders)
        folder = tmp_path / f"{name}_{what}_0"
        run("evaluate.py", folder / "at.ckpt", *folders, "--ensembles", 2, "--members", 3)
        result = json.loads((tmp_path / f"{folder.name}.json").read_text())
        assert result["step"] == 4
        assert 0 <= result["ten_members"]["majority_accuracy"] <= 1
        assert len(list(tmp_path.glob(f"{folder.name}_*.png"))) == (9 if what == "paper" else 10)


@pytest.mark.slow
def test_resnet32(tmp_path):
    make(tmp_path, "cifar10", (32, 32, 3))
    few = ("--steps", 2, "--networks", 2, "--images", 4)
    run("cifar_resnet.py", "ours", "--data-dir", tmp_path, "--out", tmp_path, *few)
    assert (tmp_path / "cifar_resnet_ours_0" / "at.ckpt").exists()


@pytest.mark.slow
def test_a_folder_of_another_training_is_refused(tmp_path):
    options = ("sgd", "digits", "--out", tmp_path, "--results", tmp_path, "--networks", 2, "--steps")
    run("baselines.py", *options, 2)
    with pytest.raises(subprocess.CalledProcessError) as error:
        run("baselines.py", *options, 3)
    assert "at.ckpt was trained with {" in error.value.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "constant", "dropout", "gaussian", "mnf", "filter_norms"])
def test_baselines(tmp_path, kind):
    folders = ("--out", tmp_path, "--results", tmp_path)
    for _ in range(2):
        run("baselines.py", kind, "digits", *folders, "--steps", 20, "--networks", 3)
    result = json.loads((tmp_path / f"baseline_digits_{kind}_0.json").read_text())
    assert result["images"] == 2560 * {"sgd": 3, "constant": 2}.get(kind, 1)
    assert 0 <= result["ensemble_accuracy"] <= 1
