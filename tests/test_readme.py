import os
import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

import lightning_hypernet
from lightning_hypernet import hookspecs
from lightning_hypernet.plugins import Plugins

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*num_workers.*")
def test_the_code_runs_in_one_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) >= 3
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


def test_every_hook_and_loss_is_named():
    assert all(name in README for name in vars(hookspecs) if name.startswith("hypernet_"))
    assert all(f"`{name}`" in README for name in Plugins().losses)


def test_public_names_exist_and_importing_does_nothing_else():
    assert all(hasattr(lightning_hypernet, name) for name in lightning_hypernet.__all__)
    code = (
        "import sys, pytorch_lightning, safetensors.torch, pluggy; before = set(sys.modules)\n"
        "import lightning_hypernet; new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'timm', 'torchvision', 'matplotlib', 'jsonargparse', 'scipy', 'sklearn'}))"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("example", "arguments", "expected"),
    [
        ("custom_diversity.py", [], "mean cosine between sampled networks"),
        ("timm_resnet.py", ["--steps", "3"], "ten plain resnets"),
        ("digits.py", ["--epochs", "2"], "both trainings saw 1,024 images"),
    ],
)
def test_examples_run(example, arguments, expected, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / example), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert expected in run.stdout
