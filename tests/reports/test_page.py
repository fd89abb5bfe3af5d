"""The page: whole, well-formed, without the network, and with the numbers of the metrics."""

import html.parser
import re
import shutil
import subprocess
from html import escape, unescape

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet, HypernetCallback
from lightning_hypernet.metrics import MemberAccuracy, population_metrics
from lightning_hypernet.reports import measure, write_report
from lightning_hypernet.reports.charts import ticks
from lightning_hypernet.reports.scoring import as_classes

VOID = {"meta", "br", "link"}


class Checker(html.parser.HTMLParser):
    """Sees that tags are closed in order, and reads the tables."""

    def __init__(self):
        super().__init__()
        self.open, self.tables, self.ids, self.links = [], [], set(), set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        self.links |= {attrs["href"]} if "href" in attrs else set()
        assert not attrs.get("src")
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += data


def read(path):
    text = path.read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.links == {f"#{name}" for name in checker.ids - {"theme"}}
    assert re.search(r"https?://|url\(|@import|<link|<img", text) is None
    for rows in checker.tables:
        assert {len(row) for row in rows} == {len(rows[0])}
        assert all(cell.strip() for row in rows for cell in row)
    return text, checker.tables


@pytest.fixture(scope="module")
def hypernet():
    torch.manual_seed(0)
    target = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return Hypernet(target, example_inputs=torch.randn(2, 1, 6, 6), members=5)


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(1)
    return [(torch.randn(20, 1, 6, 6), torch.randint(0, 3, (20,))) for _ in range(2)]


def predictions(hypernet, batches):
    hypernet.eval()
    population = hypernet.member_population()
    with torch.no_grad():
        return [(hypernet.run(population, x), y) for x, y in batches]


def test_the_figures_are_those_of_the_metrics(hypernet, batches):
    metrics = population_metrics(3)
    for pair in predictions(hypernet, batches):
        metrics.update(*pair)
    found = measure(hypernet, batches, deep=False)
    assert found.kind == "classes" and found.examples == 40
    for name, value in metrics.compute().items():
        assert found.figures[name] == pytest.approx(float(value), abs=1e-6), name


def test_the_networks_one_by_one_are_those_of_the_metrics(hypernet, batches):
    metric = MemberAccuracy("none")
    for pair in predictions(hypernet, batches):
        metric.update(*pair)
    found = measure(hypernet, batches, deep=False)
    assert [row["accuracy"] for row in found.members] == pytest.approx(metric.compute().tolist())
    off = found.disagreement.sum() / (5 * 4)
    assert found.figures["disagreement"] == pytest.approx(float(off), abs=1e-6)


def test_the_reliability_diagram_adds_up_to_the_calibration_error(hypernet, batches):
    found = measure(hypernet, batches, deep=False)
    counts, confidence, accuracy = found.reliability.T
    assert counts.sum() == 40
    assert found.figures["ece"] == pytest.approx(float((counts * (confidence - accuracy).abs()).sum() / 40), abs=1e-5)


def test_measuring_changes_neither_modes_nor_draws(hypernet, batches):
    hypernet.train()
    draws, state = hypernet.prior.draws, torch.get_rng_state()
    measure(hypernet, batches)
    assert hypernet.training and hypernet.prior.draws == draws
    assert torch.equal(torch.get_rng_state(), state)


def test_the_page_is_whole_and_asks_for_nothing_from_outside(hypernet, batches, tmp_path):
    text, tables = read(write_report(hypernet, batches, tmp_path / "new" / "page.html"))
    found = measure(hypernet, batches, deep=False)
    compared = next(rows for rows in tables if rows[0][-1] == "all together")
    assert compared[1][3] == f"{100 * found.figures['ensemble_accuracy']:.2f} %"
    assert compared[3][3] == f"{found.figures['ensemble_nll']:.4g}"
    assert len(next(rows for rows in tables if rows[0][0] == "network")) == 1 + 5
    assert text.count("<svg") == 8
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_every_name_of_the_page_stands_for_one_thing(batches, tmp_path):
    torch.manual_seed(0)
    target = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    made = Hypernet(target, example_inputs=torch.randn(2, 1, 6, 6), members=4, components=2)
    text, tables = read(write_report(made, batches, tmp_path / "page.html"))
    assert "mean network" not in text
    heads = ["figure", "single network, mean", "best single network", "all together"]
    assert heads in [rows[0] for rows in tables]
    scatter = text[text.index("Weights of many networks") :].partition("</figure>")[0]
    assert re.findall(r"principal axis (\d), ", scatter) == ["1", "2"]
    assert re.findall(r'<i class="key-(.)"></i>component (\d) of the prior', scatter) == [("a", "0"), ("b", "1")]


@pytest.mark.parametrize(("reduce", "told"), [("mean", True), ("log_mean_prob", False)])
def test_the_page_says_where_validation_joins_otherwise_than_the_figures(batches, tmp_path, reduce, told):
    target = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    made = Hypernet(target, example_inputs=torch.randn(2, 1, 6, 6), members=2, reduce=reduce)
    text = write_report(made, batches, tmp_path / "page.html").read_text()
    assert "whose probabilities are averaged" in text
    assert ("its validation in fit has somewhat other figures" in text) == told


def test_names_are_escaped(hypernet, batches, tmp_path):
    title = "<script>alert('x')</script> & \"more\""
    text, _ = read(write_report(hypernet, batches, tmp_path / "page.html", title, checkpoint="a</code><b>.ckpt"))
    assert escape(title) in text and title not in text and "<b>" not in text


def test_regression_has_errors_and_a_spread(tmp_path):
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(3, 1), example_inputs=torch.randn(2, 3), members=4)
    x, y = torch.randn(30, 3), torch.randn(30, 1)
    found = measure(hypernet, [(x, y)])
    [(outputs, _)] = predictions(hypernet, [(x, y)])
    assert found.kind == "numbers"
    assert found.figures["ensemble_rmse"] == pytest.approx(float((outputs.mean(0) - y).square().mean().sqrt()), rel=1e-5)
    assert found.figures["member_rmse"] == pytest.approx(float((outputs - y).square().mean((1, 2)).sqrt().mean()), rel=1e-5)
    assert found.figures["spread"] == pytest.approx(float(outputs.var(0, correction=0).mean().sqrt()), rel=1e-5)
    text, _ = read(write_report(hypernet, [(x, y)], tmp_path / "page.html"))
    assert "Error and spread" in text


@pytest.mark.parametrize("loader", [[torch.zeros(6, 3)], None])
def test_without_labels_nothing_is_said_of_how_good_they_are(loader, tmp_path):
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(3, 2), example_inputs=torch.randn(2, 3), members=3)
    text, _ = read(write_report(hypernet, loader, tmp_path / "page.html"))
    assert "Nobody said what is right" in text and "all together" not in text


def test_one_network_equals_its_ensemble(batches, tmp_path):
    torch.manual_seed(0)
    target = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    hypernet = Hypernet(target, example_inputs=torch.randn(2, 1, 6, 6), members=1)
    figures = measure(hypernet, batches).figures
    assert "disagreement" not in figures
    for one, all_together in (("member_accuracy", "ensemble_accuracy"), ("member_nll", "ensemble_nll"), ("member_ece", "ece")):
        assert figures[one] == pytest.approx(figures[all_together], abs=1e-6)
    read(write_report(hypernet, batches, tmp_path / "page.html"))


def test_every_place_of_a_map_is_an_example_and_places_without_a_class_are_left_out():
    outputs = torch.arange(2 * 1 * 3 * 2 * 2).view(2, 1, 3, 2, 2).double().sin().softmax(2)
    flat, labels = as_classes(outputs, torch.tensor([[[0, -100], [2, 1]]]))
    assert labels.tolist() == [0, 2, 1]
    assert torch.allclose(
        flat, torch.stack([outputs[:, 0, :, 0, 0], outputs[:, 0, :, 1, 0], outputs[:, 0, :, 1, 1]], 1), rtol=1e-12
    )


def test_a_folder_is_no_page(hypernet, tmp_path):
    with pytest.raises(ValueError, match="is a folder: name the file"):
        write_report(hypernet, None, tmp_path)


def test_an_empty_loader_is_refused(hypernet, tmp_path):
    with pytest.raises(ValueError, match="the loader is empty"):
        write_report(hypernet, [], tmp_path / "page.html")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 7), (88.1, 88.4), (1e-6, 3e-6), (0, 12345)])
def test_ticks_are_few_and_within(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 8 and min(found) >= low and max(found) <= high


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CLICKS = """<script>
const told = {};
const button = document.getElementById("theme");
const colour = () => getComputedStyle(document.body).backgroundColor;
told.before = colour(); button.click(); told.after = colour(); button.click(); told.again = colour();
told.sorted = [...document.querySelectorAll("table")].every((table) => [...table.tHead.rows[0].cells].every((head, column) => {
  const read = () => [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.value ?? row.cells[column].textContent);
  const before = read().sort();
  head.querySelector("button").click();
  const values = read();
  if (JSON.stringify([...values].sort()) !== JSON.stringify(before)) return false;
  const numbers = values.map(Number);
  return numbers.some(Number.isNaN) || numbers.every((value, index) => !index || numbers[index - 1] <= value);
}));
told.wide = document.documentElement.scrollWidth > innerWidth;
told.cut = innerWidth > 1000 && [...document.querySelectorAll(".scroll")].some((box) => box.scrollWidth > box.clientWidth);
document.body.dataset.told = JSON.stringify(told);
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed, which renders the page")
@pytest.mark.parametrize("width", [500, 1280])
def test_in_a_browser_themes_switch_tables_sort_and_nothing_overflows(hypernet, batches, tmp_path, width):
    page = write_report(hypernet, batches, tmp_path / "page.html")
    page.write_text(page.read_text().replace("</body>", CLICKS))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'user'}",
        f"--window-size={width},900",
    ]
    command = [BROWSER, *options, "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    told = re.search(r'data-told="([^"]*)"', dom).group(1).replace("&quot;", '"')
    assert '"sorted":true' in told and '"wide":false' in told and '"cut":false' in told
    before, after, again = re.findall(r'"(?:before|after|again)":"([^"]*)"', told)
    assert before == again != after


def test_the_scatter_has_fewer_networks_of_larger_targets(hypernet, batches, monkeypatch):
    assert len(measure(hypernet, batches).scatter.points) == 300
    monkeypatch.setattr("lightning_hypernet.reports.findings._NUMBERS", 50 * hypernet.banks.weights)
    assert len(measure(hypernet, batches).scatter.points) == 50
    monkeypatch.setattr("lightning_hypernet.reports.findings._NUMBERS", 1)
    assert len(measure(hypernet, batches).scatter.points) == 20


def code_of(page):
    return unescape(re.search(r"<pre[^>]*><code>(.*?)</code></pre>", page.read_text(), re.DOTALL).group(1))


@pytest.mark.parametrize("normed", [False, True])
def test_the_code_of_the_page_runs_and_gives_norm_statistics_to_fresh_networks(tmp_path, normed, monkeypatch):
    torch.manual_seed(0)

    def build():
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6) if normed else nn.ReLU(), nn.Linear(6, 3))

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = build()

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    x, y = 5 + 3 * torch.randn(64, 4), torch.randint(0, 3, (64,))
    data = DataLoader(TensorDataset(x, y), 32)
    made = HypernetCallback("model", samples=2, members=2, execution="loop", example_inputs=x[:2])
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[made], logger=False, enable_checkpointing=False, accelerator="cpu", log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    code = code_of(write_report(made.hypernet, [(x, y)], tmp_path / "page.html", checkpoint=tmp_path / "last.ckpt"))
    assert ("loader=loader" in code) == normed
    code = re.sub("^target = ...", "target = build()", code, flags=re.MULTILINE)
    code = re.sub("^loader = ...", "loader = data", code, flags=re.MULTILINE)
    names = {"build": build, "data": data, "x": x}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    assert names["each"].shape == (10, 64, 3)
    assert (tmp_path / "ensemble").is_dir() and (tmp_path / "network.pt").is_file()
