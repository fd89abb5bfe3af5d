"""HypernetReport: figures through whatever logger there is, a page at the end, training left as it was."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import HypernetCallback
from lightning_hypernet.reports import HypernetReport, measure
from lightning_hypernet.reports.loggers import figures, send


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.model(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(24, 4, generator=generator), torch.randint(0, 3, (24,), generator=generator)
    return DataLoader(TensorDataset(x, y), 8)


def fit(tmp_path, callbacks, logger=False, validate=True):
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_epochs=2, callbacks=callbacks, logger=logger, enable_checkpointing=False, accelerator="cpu", log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Classifier(), data(), data(1) if validate else None)
    return trainer


def callback():
    return HypernetCallback("model", samples=2, members=4, execution="loop", example_inputs=torch.zeros(2, 4))


def test_figures_are_logged_and_the_page_is_written_beside_the_log(tmp_path):
    made, report = callback(), HypernetReport()
    trainer = fit(tmp_path, [made, report], CSVLogger(tmp_path))
    logged = trainer.callback_metrics
    found = measure(made.hypernet, data(1), deep=False)
    for name, value in {**found.figures, **{f"spread/{one.name}": one.spread for one in found.layers}}.items():
        assert float(logged[f"report/{name}"]) == pytest.approx(value, abs=1e-6)
    assert str(report.written.parent) == trainer.log_dir and report.written.name == "report.html"
    assert "While it trained" in report.written.read_text()
    assert "report/ensemble_accuracy" in (report.written.parent / "metrics.csv").read_text()
    assert [at for at, _ in report.history] == [1.0, 2.0]


def test_training_is_the_same_with_the_report_and_without(tmp_path):
    alone, beside = callback(), callback()
    fit(tmp_path, [alone])
    fit(tmp_path, [beside, HypernetReport(tmp_path / "page.html")], TensorBoardLogger(tmp_path))
    one, other = alone.hypernet.generator.state_dict(), beside.hypernet.generator.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_without_validation_the_page_tells_of_the_weights(tmp_path):
    report = HypernetReport(tmp_path / "page.html")
    fit(tmp_path, [callback(), report], validate=False)
    assert "Nobody said what is right" in report.written.read_text()


def test_without_a_hypernet_callback_it_refuses(tmp_path):
    with pytest.raises(ValueError, match="the trainer has none"):
        fit(tmp_path, [HypernetReport()])


class Experiment:
    def __init__(self, taken, name):
        setattr(self, name, lambda *args, **kwargs: taken.append((name, args, kwargs)))


class Logger:
    def __init__(self, kind):
        self.taken = []
        if kind in ("add_figure", "log_figure"):
            self.experiment = Experiment(self.taken, kind)
            self.run_id = "7"
        elif kind == "log_image":
            self.log_image = lambda **kwargs: self.taken.append((kind, (), kwargs))


@pytest.mark.parametrize("kind", ["add_figure", "log_figure", "log_image"])
def test_loggers_get_pictures_in_the_way_they_take_them(kind):
    logger, figure = Logger(kind), object()
    assert send(logger, "report/layers", figure, 12)
    expected = {
        "add_figure": (("report/layers", figure), {"global_step": 12}),
        "log_figure": (("7", figure, "report/layers/00000012.png"), {}),
        "log_image": ((), {"key": "report/layers", "images": [figure], "step": 12}),
    }[kind]
    assert logger.taken == [(kind, *expected)]


def test_loggers_that_take_no_pictures_get_none():
    assert not send(Logger("none"), "report/layers", object(), 1)


def test_every_picture_of_classes_is_drawn(tmp_path):
    made = callback()
    fit(tmp_path, [made])
    drawn = dict(figures(measure(made.hypernet, data(1))))
    assert list(drawn) == ["members", "disagreement", "reliability", "layers", "scatter"]
