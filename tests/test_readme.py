import ast
import os
import re
import subprocess
import sys
from importlib.metadata import metadata, version
from pathlib import Path

import pytest

import lightning_hypernet

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*num_workers.*")
def test_the_code_runs_in_one_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == 2
    namespace = {"__name__": "readme"}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)


def test_exactly_two_set_up_commands():
    commands = [line for line in README.splitlines() if line.startswith("pip install")]
    assert commands == [
        'pip install -e ".[examples]" && python examples/digits.py',
        'pip install -e ".[test]" && pytest',
    ]
    assert {"examples", "test", "cli"} <= set(metadata("lightning_hypernet").get_all("Provides-Extra"))


def test_it_is_short_and_all_it_points_to_is_there():
    assert len(README.splitlines()) <= 150
    linked = [path for path in re.findall(r"\]\(([^)]+)\)", README) if "://" not in path]
    assert linked
    assert [path for path in linked if not (ROOT / path).exists()] == []


def test_public_names_exist():
    assert all(hasattr(lightning_hypernet, name) for name in lightning_hypernet.__all__)
    assert lightning_hypernet.__version__ == version("lightning_hypernet")


# torchmetrics imports matplotlib itself, so what counts is who asks, not what is loaded.
IMPORTING = """
import builtins, importlib, pkgutil
asked, plain = {}, builtins.__import__

def recording(name, globals=None, locals=None, fromlist=(), level=0):
    module = (globals or {}).get("__name__", "")
    if module.partition(".")[0] == "lightning_hypernet":
        asked.setdefault(name.partition(".")[0], module)
    return plain(name, globals, locals, fromlist, level)

builtins.__import__ = recording
import sys, lightning_hypernet
HEAVY = ("pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics", "timm", "scipy", "matplotlib")
for name in ("Hypernet", "HypernetCallback"):
    getattr(lightning_hypernet, name)
    print([module for module in HEAVY if module in sys.modules])
for module in pkgutil.walk_packages(lightning_hypernet.__path__, "lightning_hypernet."):
    importlib.import_module(module.name)
print(asked)
"""


def test_importing_brings_lightning_with_the_callback_alone_and_needs_the_dependencies_alone():
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    run = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, check=True, env=environment)
    light, full, last = run.stdout.splitlines()  # no more: importing prints nothing
    assert light == "[]"
    assert full.startswith("['pytorch_lightning'")
    asked = ast.literal_eval(last)
    assert {"torch", "pytorch_lightning"} <= set(asked)
    known = {"torch", "pytorch_lightning", "lightning", "torchmetrics", "pluggy", "safetensors", "scipy", "numpy"}
    known |= {"lightning_hypernet", *sys.stdlib_module_names}
    assert {name: module for name, module in asked.items() if name not in known} == {}


@pytest.mark.parametrize(
    ("example", "arguments", "expected"),
    [
        pytest.param("custom_diversity.py", [], "mean cosine between sampled networks", marks=pytest.mark.slow),
        pytest.param("timm_resnet.py", ["--steps", "2", "--members", "2"], "exported_resnets: 2", marks=pytest.mark.slow),
        pytest.param("hyperparameters.py", ["--quick"], "grid_dropout: ", marks=pytest.mark.slow),
        pytest.param("tradeoff.py", ["--steps", "20", "--seeds", "1"], "cost_against_five: ", marks=pytest.mark.slow),
        pytest.param(
            "ode_flow.py",
            ["--steps", "2", "--networks", "2", "--grid", "11"],
            "mixture_nll_of_fixed_steps: ",
            marks=pytest.mark.slow,
        ),
        pytest.param("digits.py", ["--epochs", "2"], "both trainings saw 1,024 images", marks=pytest.mark.slow),
    ],
)
def test_examples_run(example, arguments, expected, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / example), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert expected in run.stdout
