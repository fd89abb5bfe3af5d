"""The page of the documentation runs from top to bottom."""

import re
from pathlib import Path

import matplotlib as mpl
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "uncertainty.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*num_workers.*")
def test_the_code_runs_in_one_go(tmp_path, monkeypatch, capsys):
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, "uncertainty.md", "exec"), namespace)
    mpl.pyplot.close("all")
    out = capsys.readouterr().out
    print(out)
    assert "held by their sets" in out
    held = namespace["ensemble"].predict(namespace["test_images"]).sets(0.95)
    assert held.gather(1, namespace["test_labels"][:, None]).float().mean() > 0.9
    assert {"ensemble.json", "ensemble.safetensors"} == {path.name for path in (tmp_path / "digits").iterdir()}
