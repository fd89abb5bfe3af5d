"""The two plug-in packages of examples/plugins, installed into an environment of their own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples" / "plugins"
SHORT = ["--trainer.max_steps", "3", "--trainer.logger", "false", "--trainer.enable_checkpointing", "false",
         "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
         "--trainer.limit_val_batches", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment that sees what is installed here, with both plug-ins in it; nothing is fetched."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("plugins")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    where = [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    here = subprocess.run([str(python), *where[1:]], capture_output=True, text=True, check=True).stdout.strip()
    (Path(here) / "beside.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    for name in ("hypernet_decoded", "hypernet_ring"):
        shutil.copytree(EXAMPLES / name, folder / name)  # building writes beside the source
        install = [str(python), "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--prefix",
                   str(folder / "venv"), str(folder / name)]  # fmt: skip
        subprocess.run(install, check=True, capture_output=True)
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LIGHTNING_HYPERNET_PLUGINS")}

    def run(*arguments):
        command = [str(python), "-W", "ignore", "-m", "lightning_hypernet", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES, env=variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_command_line_lists_what_both_brought(environment):
    found = json.loads(environment("plugins", "--json"))
    brought = {(kind, name): package for kind, names in found["registered"].items() for name, package in names.items()}
    assert brought["diversity loss", "decoded"] == "hypernet-decoded 0.1.0"
    ring = [("prior", "sphere"), ("gauge", "energy"), ("layer with a filter rule", "hypernet_ring.RingLinear")]
    assert {brought[key] for key in ring} == {"hypernet-ring 0.1.0"}
    assert brought["prior", "normal"].startswith("lightning_hypernet")
    assert not [one for one in found["plugins"] if one["error"]]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["decoded.yaml", "ring.yaml"])
def test_they_are_chosen_from_yaml(environment, tmp_path, config):
    environment("fit", "--config", config, *SHORT, "--trainer.enable_checkpointing", "true",
                "--trainer.default_root_dir", str(tmp_path))  # fmt: skip
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    out = tmp_path / "networks"
    printed = environment("sample", str(checkpoint), "--config", config, "-n", "2", "--out", str(out))
    assert printed == f"2 plain networks of Sequential in {out}\n"
