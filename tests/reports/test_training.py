"""HypernetReport beside training: the same training, the same data as validation, and a fit that goes on."""

import warnings
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import HypernetCallback
from lightning_hypernet.reports import HypernetReport, measure


class Classifier(pl.LightningModule):
    def __init__(self, model=None):
        super().__init__()
        self.model = nn.Linear(4, 3) if model is None else model

    def outputs(self, batch):
        return self.model(batch[0])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.outputs(batch).float(), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self.outputs(batch).argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Transferred(Classifier):
    """Standardises batches while it validates and blinds the others, once they are on the device."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        seen = self.trainer.validating or self.trainer.sanity_checking
        return ((batch[0] - 100) / 50 * seen, batch[1])


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return {"logits": self.layer(x)}


class NamedClassifier(Classifier):
    def outputs(self, batch):
        return self.model(batch[0])["logits"]


class Flattening(Classifier):
    def outputs(self, batch):
        return self.model(batch[0].flatten(1))


def examples(count=48):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator)
    return x, (x @ torch.randn(4, 3, generator=generator)).argmax(-1)


def fit(tmp_path, module, callbacks, data=None, epochs=2, logger=False, **options):
    x, y = examples() if data is None else data
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=callbacks, logger=logger, accelerator="cpu", log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        **{"enable_checkpointing": False, **options},
    )  # fmt: skip
    loaders = DataLoader(TensorDataset(x, y), 16, shuffle=True), DataLoader(TensorDataset(x, y), 24)
    trainer.fit(module, *loaders)
    return trainer


def callback(shape=(2, 4)):
    return HypernetCallback("model", samples=2, members=3, execution="loop", example_inputs=torch.zeros(shape))


@pytest.mark.parametrize("pictures", [False, True])
def test_shuffled_batches_and_dropout_are_the_same_with_the_report_and_without(tmp_path, pictures):
    states = []
    for report in ([], [HypernetReport(tmp_path / "page.html", pictures=pictures)]):
        torch.manual_seed(0)
        module = Classifier(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)))
        fit(tmp_path, module, [callback(), *report], epochs=3, logger=CSVLogger(tmp_path) if report else False)
        states.append((module.state_dict(), torch.rand(3)))
    (one, drawn), (other, again) = states
    assert all(torch.equal(value, other[name]) for name, value in one.items() if isinstance(value, torch.Tensor))
    assert torch.equal(drawn, again)


def test_the_data_are_those_that_validation_sees(tmp_path):
    torch.manual_seed(0)
    x, y = examples()
    report = HypernetReport(tmp_path / "page.html")
    made = callback()
    trainer = fit(tmp_path, Transferred(), [made, report], (50 * x + 100, y), num_sanity_val_steps=0)
    expected = measure(made.hypernet, [(x, y)], deep=False).figures["ensemble_accuracy"]
    assert float(trainer.callback_metrics["report/ensemble_accuracy"]) == pytest.approx(expected)
    page = report.written.read_text()
    assert f"{100 * expected:.2f} %" in page


def test_the_logged_accuracy_is_that_of_validation(tmp_path):
    torch.manual_seed(0)
    x, y = examples()
    options = {"reduce": {"name": "log_mean_prob", "dim": 1}}
    made = HypernetCallback("model", samples=2, members=3, example_inputs=torch.zeros(2, 4), **options)
    trainer = fit(tmp_path, Transferred(), [made, HypernetReport(tmp_path / "page.html")], (50 * x + 100, y))
    logged = trainer.callback_metrics
    assert float(logged["report/ensemble_accuracy"]) == pytest.approx(float(logged["accuracy"]))


def test_weights_of_half_precision_get_inputs_of_it(tmp_path):
    torch.manual_seed(0)
    report = HypernetReport(tmp_path / "page.html")
    trainer = fit(tmp_path, Classifier(), [callback(), report], precision="bf16-true")
    assert "report/ensemble_accuracy" in trainer.callback_metrics and report.written is not None


@pytest.mark.parametrize("logger", [False, True])
def test_named_outputs_are_measured_and_spare_the_fit(tmp_path, logger):
    torch.manual_seed(0)
    report = HypernetReport(tmp_path / "page.html")
    module = NamedClassifier(Named())
    trainer = fit(tmp_path, module, [callback(), report], logger=CSVLogger(tmp_path) if logger else False)
    assert "report/ensemble_accuracy" in trainer.callback_metrics and report.written is not None


def test_what_can_not_be_measured_is_one_warning_and_the_fit_goes_on(tmp_path, monkeypatch):
    torch.manual_seed(0)

    def failing(*args, **kwargs):
        raise KeyError("of any kind")

    monkeypatch.setattr("lightning_hypernet.reports.callback.measure", failing)
    monkeypatch.setattr("lightning_hypernet.reports.callback.write_report", failing)
    report = HypernetReport(tmp_path / "page.html")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(tmp_path, Classifier(), [callback(), report], epochs=3)
    told = [str(one.message) for one in caught if "training goes on" in str(one.message)]
    assert told == ["nothing was reported, and training goes on: KeyError: 'of any kind'"]
    assert trainer.current_epoch == 3 and report.written is None
    assert not [name for name in trainer.callback_metrics if name.startswith("report/")]


def test_a_step_that_changes_batches_spares_the_fit(tmp_path):
    torch.manual_seed(0)
    x, y = examples()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module, report = Flattening(), HypernetReport(tmp_path / "page.html")
        trainer = fit(tmp_path, module, [callback(), report], (x.view(-1, 2, 2), y))
    assert trainer.current_epoch == 2
    assert any("training goes on" in str(one.message) for one in caught)


def test_figures_are_there_at_every_validation_and_measured_at_every_second(tmp_path, monkeypatch):
    torch.manual_seed(0)
    measured = []

    def counted(*args, **kwargs):
        measured.append(measure(*args, **kwargs))
        return measured[-1]

    monkeypatch.setattr("lightning_hypernet.reports.callback.measure", counted)
    report = HypernetReport(tmp_path / "page.html", every=2)
    kept = ModelCheckpoint(tmp_path / "kept", monitor="report/ensemble_nll", save_top_k=-1)
    trainer = fit(tmp_path, Classifier(), [callback(), report, kept], epochs=4, enable_checkpointing=True)
    assert [at for at, _ in report.history] == [1.0, 3.0] and len(measured) == 2
    assert len(kept.best_k_models) == 4
    assert float(trainer.callback_metrics["report/ensemble_nll"]) == pytest.approx(measured[1].figures["ensemble_nll"])
    trainer.validate(trainer.lightning_module, trainer.val_dataloaders, verbose=False)
    assert len(measured) == 3


def test_a_function_tells_the_report_where_the_targets_are(tmp_path):
    torch.manual_seed(0)
    x, y = examples()
    report = HypernetReport(tmp_path / "page.html", targets=lambda batch: (batch[1] + 1) % 3)
    made = callback()
    trainer = fit(tmp_path, Classifier(), [made, report])
    expected = measure(made.hypernet, [(x, (y + 1) % 3)], deep=False).figures["ensemble_accuracy"]
    assert float(trainer.callback_metrics["report/ensemble_accuracy"]) == pytest.approx(expected)
    with pytest.raises(TypeError, match="targets must be a function"):
        HypernetReport(targets=1)


class ModelParallelStrategy:
    def __init__(self):
        self.device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 1)}


def test_sharded_generators_are_refused():
    report, trainer = HypernetReport(), SimpleNamespace(callbacks=[callback()], strategy=ModelParallelStrategy())
    with pytest.raises(ValueError, match="HypernetReport draws networks on one rank, and ModelParallelStrategy"):
        report.setup(trainer, Classifier(), "fit")
