"""The command line, called as its entry point calls it."""

import importlib
import json
import logging
import os
import re
import stat
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet
from lightning_hypernet.cli import main
from lightning_hypernet.cli.commands import COMMANDS, TRAINING
from lightning_hypernet.cli.problems import sentence
from lightning_hypernet.hub import save_pretrained
from lightning_hypernet.plugins import Plugins

pytest.importorskip("jsonargparse")
HERE = "tests.test_cli"


def network(width=6):
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


class Classifier(pl.LightningModule):
    def __init__(self, width: int = 6, lr: float = 1e-2):
        super().__init__()
        self.lr = lr
        self.model = network(width)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.model(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.model(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Data(pl.LightningDataModule):
    def setup(self, stage):
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        self.both = TensorDataset(x, x[:, :3].argmax(1))

    def train_dataloader(self):
        return DataLoader(self.both, batch_size=16)  # predict takes no size by its place

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Regression(Data):
    def setup(self, stage):
        super().setup(stage)
        self.both = TensorDataset(self.both.tensors[0], self.both.tensors[0][:, :3])


CONFIG = f"""
seed_everything: 0
model: {HERE}.Classifier
data: {HERE}.Data
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_hypernet.HypernetCallback
      init_args: {{target: model, samples: 3, members: 4, diversity: {{variance: 0.01}}}}
"""


@pytest.fixture(autouse=True)
def quiet_logging(monkeypatch):
    """Lightning's loggers write where they were made to, which may be closed by now."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


def call(capsys, *arguments, code=0):
    """What a command prints; or, if it shall fail, its one sentence."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning|torch")
        warnings.filterwarnings("ignore", message=".*(logging interval|num_workers|`isinstance|checkpoint dir).*")
        given = main([str(one) for one in arguments])
    printed = capsys.readouterr()
    assert given == code, printed.err
    if code == 0:
        return printed.out
    errors = [line for line in printed.err.splitlines() if line.startswith("lightning-hypernet: error: ")]
    assert len(errors) == 1
    assert "Traceback" not in printed.err
    return errors[0].removeprefix("lightning-hypernet: error: ")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the YAML file and a checkpoint of it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "fit.yaml").write_text(CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["fit", "--config", str(folder / "fit.yaml"), "--trainer.default_root_dir", str(folder)]) == 0
    (checkpoint,) = folder.rglob("*.ckpt")
    return types.SimpleNamespace(config=folder / "fit.yaml", checkpoint=checkpoint, folder=folder)


def test_help_names_every_command_and_each_has_its_own(capsys):
    text = call(capsys, "--help")
    assert all(f"    {name} " in text for name in [*COMMANDS, *TRAINING])
    for name, command in COMMANDS.items():
        assert command.text in " ".join(call(capsys, name, "--help").split())
    for name, text in TRAINING.items():
        told = " ".join(call(capsys, name, "--help").split())
        assert text in told
        assert "--trainer.max_epochs" in told


def test_the_version_is_that_of_the_package(capsys):
    assert call(capsys, "--version").split()[0] == "lightning_hypernet"


def test_importing_the_package_does_not_import_the_command_line():
    code = "import sys, lightning_hypernet; print({'jsonargparse', 'lightning_hypernet.cli'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_a_missing_extra_is_told_by_its_name(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        wanted = importlib.import_module("lightning_utilities.core.imports").RequirementCache("jsonargparse[signatures]>=999")
        patch.setattr(importlib.import_module("pytorch_lightning.cli"), "_JSONARGPARSE_SIGNATURES_AVAILABLE", wanted)
        told = call(capsys, "fit", "--help", code=2)
    assert told == "the command line needs jsonargparse: pip install 'lightning_hypernet[cli]'"
    for name in [name for name in sys.modules if name.partition(".")[0] == "jsonargparse"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    told = call(capsys, "plugins", code=2)
    assert told == "the command line needs jsonargparse: pip install 'lightning_hypernet[cli]'"


def test_plugins_lists_every_registered_name_with_its_package(capsys):
    found = json.loads(call(capsys, "plugins", "--json"))
    plugins = Plugins()
    assert list(found["registered"]["diversity loss"]) == list(plugins.losses)
    assert list(found["registered"]["prior"]) == list(plugins.priors)
    assert {one["name"] for one in found["plugins"]} == {info.name for info in plugins.listing()}
    text = call(capsys, "plugins")
    assert all(name in text for name in [*plugins.losses, *plugins.gauges, "torch.nn.modules.linear.Linear"])


def test_inspect_shows_banks_gauges_sizes_and_the_backend(capsys):
    text = call(capsys, "inspect", f"{HERE}:network", "--init_args.width", "5", "--input", "4", "--samples", "2")
    banks = r"0 +0.weight, 0.bias, 1.weight, 1.bias +5 x 7 +[\d,]+ +scale"
    assert re.search(banks, text)
    for name in ("default", "compact", "adapter", "pretrained"):
        hypernet = Hypernet(network(5), generator=name)
        count = sum(one.numel() for one in hypernet.generator.parameters())
        assert re.search(rf"^{name} +{count:,} +{count / hypernet.banks.weights:.2f} ", text, re.MULTILINE)
    assert re.search(r"^(loop|vmap|batched|blocked) for forward, train, gradients, 2 networks", text, re.MULTILINE)


def test_inspect_takes_timms_names_and_parts_of_a_lightning_module(capsys):
    few = ["--presets", "none", "--backend", "false", "--init_args", '{"num_classes": 7}']
    text = call(capsys, "inspect", "test_resnet", *few)
    plain = timm.create_model("test_resnet", num_classes=7)
    assert text.startswith(f"ResNet, {sum(one.numel() for one in plain.parameters()):,} parameters\n")
    assert re.search(r"^conv1.0 +conv1.0.weight, ", text, re.MULTILINE)
    text = call(capsys, "inspect", f"{HERE}.Classifier", "--target", "model", "--presets", "compact", "--input", "4")
    assert text.startswith("Sequential, 63 parameters\n")
    told = call(capsys, "inspect", f"{HERE}.Classifier", "--presets", "compact,adaptor", code=2)
    assert "did you mean 'adapter'?" in told


def test_sampled_networks_load_into_the_plain_target_and_give_what_the_hypernetwork_gives(capsys, trained, tmp_path):
    out = tmp_path / "networks"
    text = call(capsys, "sample", trained.checkpoint, "--config", trained.config, "-n", 3, "--seed", 5, "--out", out)
    assert text == f"3 plain networks of Sequential in {out}\n"
    hypernet = Hypernet.from_checkpoint(trained.checkpoint, network())
    hypernet.prior.seed, hypernet.prior.draws = 5, 0
    data = Data()
    data.setup("fit")
    expected = hypernet.ensemble(3, loader=data.train_dataloader()).materialize()
    x = torch.randn(8, 4)
    for index, one in enumerate(expected):
        plain = network()
        plain.load_state_dict(load_file(out / f"member_{index:02}.safetensors"), strict=True)
        assert torch.equal(plain.eval()(x), one.eval()(x))
    about = json.loads((out / "members.json").read_text())
    assert [one["file"] for one in about["members"]] == [f"member_{index:02}.safetensors" for index in range(3)]
    assert about["seed"] == 5
    assert "load_state_dict" in (out / "README.md").read_text()
    (tmp_path / "plain").touch()
    assert len({stat.S_IMODE(os.stat(one).st_mode) for one in (tmp_path / "plain", *out.iterdir())}) == 1
    told = call(capsys, "evaluate", out, "--config", trained.config, code=2)
    assert told.startswith(f"{out} holds plain networks that sample wrote")
    assert "name what they were drawn from" in told
    told = call(capsys, "sample", trained.checkpoint, "--config", trained.config, "--out", out, code=2)
    assert told == f"{out} holds networks already: name another folder by --out"


def test_the_members_of_validation_need_no_data(capsys, trained, tmp_path, monkeypatch):
    named = ["--model", f"{HERE}:Classifier"]
    told = call(capsys, "sample", trained.checkpoint, *named, "--out", tmp_path / "none", code=2)
    assert "need norm statistics: name the training data" in told
    call(capsys, "sample", trained.checkpoint, *named, "--members", "--out", tmp_path / "members")
    assert len(list((tmp_path / "members").glob("*.safetensors"))) == 4
    page = (tmp_path / "members" / "README.md").read_text()
    lines = "\n".join(line.strip() for line in page.splitlines() if line.startswith("    "))
    monkeypatch.chdir(tmp_path / "members")
    names = {}
    exec(compile(lines, "README.md", "exec"), names)
    assert torch.equal(names["network"].state_dict()["0.weight"], load_file("member_00.safetensors")["0.weight"])


def test_a_saved_ensemble_is_sampled_without_more_than_it_holds(capsys, tmp_path):
    ensemble = Hypernet(nn.Linear(4, 3)).ensemble(3)
    recipe = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 3}}
    ensemble.save(tmp_path / "saved", recipe)
    call(capsys, "sample", tmp_path / "saved", "-n", 2, "--out", tmp_path / "two")
    for index in range(2):
        state = load_file(tmp_path / "two" / f"member_{index:02}.safetensors")
        assert torch.equal(state["weight"], ensemble.weights.tensors()["weight"][index])
    told = call(capsys, "sample", tmp_path / "saved", "-n", 4, "--out", tmp_path / "four", code=2)
    assert told == "the ensemble holds 3 networks, not 4: more come of a Hypernet alone"
    assert "leave out --seed" in call(capsys, "sample", tmp_path / "saved", "--seed", 1, "--out", tmp_path / "seed", code=2)


@pytest.mark.parametrize(
    "command", ["evaluate --json", "sample --seed 3 -n 2 --out", pytest.param("report --out", marks=pytest.mark.slow)]
)
def test_a_saved_hypernet_stands_for_its_checkpoint(capsys, trained, tmp_path, command):
    saved = save_pretrained(Hypernet.from_checkpoint(trained.checkpoint, network()), tmp_path / "saved")
    name, *options = command.split()
    told, written = [], []
    for index, source in enumerate((trained.checkpoint, saved)):
        out = [tmp_path / str(index)] if options[-1] == "--out" else []
        told.append(call(capsys, name, source, *options, *out, "--config", trained.config))
        written.append([load_file(path) for path in sorted(tmp_path.glob(f"{index}/*.safetensors"))])
    assert told[0] == told[1] or out
    assert len(written[0]) == (2 if name == "sample" else 0)
    for one, other in zip(*written, strict=True):
        assert one and all(torch.equal(one[key], other[key]) for key in one)
    assert name != "report" or "of two networks, gauge-fixed" in out[0].read_text()


def test_a_folder_of_a_part_names_it_and_a_recipe_is_not_imported(capsys, trained, tmp_path):
    saved = save_pretrained(Hypernet.from_checkpoint(trained.checkpoint, network()), tmp_path / "saved")
    named = ["evaluate", saved, "--model", f"{HERE}:Classifier", "--data", f"{HERE}:Data"]
    assert "4 members" in call(capsys, *named, "--target", "model")
    assert call(capsys, *named, code=2).endswith("; if it is of a part of Classifier, name that by --target model")
    (saved / "hypernet.safetensors").write_bytes(b"cut")
    assert "--target" not in call(capsys, *named, code=2)
    recipe = {"class_path": "nobodys.module.Network", "init_args": {}}
    other = save_pretrained(Hypernet(nn.Linear(4, 3)), tmp_path / "other", recipe=recipe)
    told = call(capsys, "evaluate", other, "--data", f"{HERE}:Data", code=2)
    assert told.endswith("; here by --model, the YAML file of fit by --config, or --trust")


def test_a_folder_without_a_recipe_asks_for_what_builds_its_target(capsys, tmp_path):
    saved = save_pretrained(Hypernet(nn.Linear(4, 3)), tmp_path / "saved")
    told = call(capsys, "evaluate", saved, "--data", f"{HERE}:Data", code=2)
    assert told.endswith("pass target=..., a module built like it; here by --model, the YAML file of fit by --config")


def test_evaluate_measures_what_the_metrics_do(capsys, trained):
    figures = json.loads(call(capsys, "evaluate", trained.checkpoint, "--config", trained.config, "--json"))
    hypernet = Hypernet.from_checkpoint(trained.checkpoint, network())
    data = Data()
    data.setup("fit")
    x, y = data.both.tensors
    with torch.no_grad():
        outputs = torch.stack([one.eval()(x) for one in hypernet.materialize(hypernet.member_population())])
        joined = outputs.softmax(-1).mean(0)
    assert figures["accuracy_of_members"] == pytest.approx((outputs.argmax(-1) == y).double().mean(1).tolist())
    assert figures["ensemble_accuracy"] == pytest.approx((joined.argmax(-1) == y).double().mean().item())
    assert figures["ensemble_nll"] == pytest.approx(F.nll_loss(joined.log(), y).item(), rel=1e-4)
    text = call(capsys, "evaluate", trained.checkpoint, "--config", trained.config)
    accuracy = re.search(r"^accuracy +(\S+) +(\S+) +(\S+)$", text, re.MULTILINE)
    assert [float(one) for one in accuracy.groups()] == pytest.approx(
        [figures["member_accuracy"], figures["best_member_accuracy"], figures["ensemble_accuracy"]], abs=1e-4
    )


def test_an_ensemble_is_of_the_target_that_the_yaml_names(capsys, trained, tmp_path):
    hypernet = Hypernet.from_checkpoint(trained.checkpoint, network())
    hypernet.ensemble(hypernet.member_population()).save(tmp_path / "saved")
    figures, again = (
        json.loads(call(capsys, "evaluate", source, "--config", trained.config, "--json"))
        for source in (trained.checkpoint, tmp_path / "saved")
    )
    assert again == figures
    named = ["evaluate", tmp_path / "saved", "--model", f"{HERE}:Classifier", "--data", f"{HERE}:Data"]
    told = call(capsys, *named, code=2)
    assert "another model than the one that was trained: 0 of 63 parameters fit" in told
    assert told.endswith("; if it is of a part of Classifier, name that by --target model")
    assert "4 members" in call(capsys, *named, "--target", "model")


def test_another_model_is_called_that_before_its_names_are_told(capsys, trained):
    named = ["sample", trained.checkpoint, "--model", f"{HERE}:network", "--out", "x", "--init_args.width"]
    told = call(capsys, *named, 300, code=2).partition("can't be loaded: ")[2]
    assert re.match(r"this is another model than the one that was trained: [\d,]+ of [\d,]+ parameters fit; ", told)
    assert told.count("; ") == 4 and re.search(r"; and [\d,]+ more$", told)
    near = call(capsys, *named, 7, code=2)
    assert "another model" not in near
    assert all(f"members.statistics.1/{name} is float32 (4, 6)" in near for name in ("running_mean", "running_var"))


def loader():
    data = Data()
    data.setup("fit")
    return data.train_dataloader()


def test_what_is_evaluated_on_is_nobodys_training_data(capsys, trained):
    named = ["evaluate", trained.checkpoint, "--model", f"{HERE}:Classifier", "--data", f"{HERE}:loader"]
    assert "4 members" in call(capsys, *named)
    assert "need norm statistics: name the training data" in call(capsys, *named, "-n", 2, code=2)


def test_evaluate_refuses_what_is_no_classification(capsys, trained):
    model = ["--model", f"{HERE}:Classifier"]
    told = call(capsys, "evaluate", trained.checkpoint, *model, "--data", f"{HERE}:Regression", code=2)
    assert told.startswith("what is measured are classifiers")
    assert "there is no data for val" in call(capsys, "evaluate", trained.checkpoint, *model, code=2)


def test_report_writes_a_page_on_the_checkpoint(capsys, trained, tmp_path):
    page = tmp_path / "pages" / "one.html"
    given = ["--config", trained.config, "--out", page, "--title", "Mine"]
    assert call(capsys, "report", trained.checkpoint, *given) == f"report: {page}\n"
    text = page.read_text()
    assert "<title>Mine" in text
    assert Path(trained.checkpoint).name in text
    assert "auto, 12 groups of channels" in text and "of two networks, gauge-fixed" in text  # of the training loader's inputs
    assert "How many networks it takes" in text and "Between two networks" in text
    assert "Left out" not in text
    Hypernet(nn.Linear(4, 3)).ensemble(2).save(tmp_path / "saved", {"class_path": "torch.nn.Linear",
        "init_args": {"in_features": 4, "out_features": 3}})  # fmt: skip
    assert "a report is on a hypernetwork" in call(capsys, "report", tmp_path / "saved", "--out", page, code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fitt"], "invalid choice: 'fitt'"),
        (["fit"], "arguments are required: fit.model; name the YAML file of the training by --config"),
        (["inspect", "resnet81"], "timm has no model 'resnet81'; did you mean 'resnet18'?"),
        (["inspect", f"{HERE}:netwrk"], "holds no 'netwrk'; did you mean 'network'?"),
        (["inspect", "nobodys.package:thing"], "there is no module 'nobodys' to import nobodys.package:thing from"),
        (["inspect", f"{HERE}:CONFIG"], "gives a str, and a model is a module of torch"),
        (["inspect", f"{HERE}:network", "--input", "big"], "--input must be the size of one example, as 3x32x32, not 'big'"),
        (["sample", "nowhere.ckpt", "--out", "x"], "there is no file or folder nowhere.ckpt"),
        (["evaluate", "tests", "--data", f"{HERE}:Data"], "is no folder that save_pretrained or save() wrote"),
        (["evalute"], "did you mean 'evaluate'?"),
        (["evaluate", "x", "--splitt", "val"], "evaluate has no option --splitt; did you mean '--split'?"),
        (["evaluate", "x", "y", "--init-arg", "{}"], "evaluate has no option --init-arg; did you mean '--init_args'?"),
        (["evaluate", "x", "--nothing"], "evaluate has no option --nothing; lightning-hypernet evaluate --help lists"),
        (["inspect", "sklaern.svm:SVC"], "or install it; did you mean 'sklearn'?"),
        (["inspect", "trane:Net"], "run the command where it lies, or install it"),
        (["inspect", "torch.nnn.Linear"], "did you mean 'torch.nn'?"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(capsys, arguments, said):
    assert said in call(capsys, *arguments, code=2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("target: model", "taget: model"),
            "HypernetCallback: Option 'taget' is not accepted; did you mean 'target'? --trainer.callbacks.help lightning_hyp",
        ),
        (("samples", "sampels"), "Option 'sampels' is not accepted; did you mean 'samples'? --tr"),  # of the Hypernet
        (("variance", "varance"), "unknown diversity loss 'varance'; did you mean 'variance'?"),
        ((".Classifier", ".Clasifier"), "has no attribute 'Clasifier'; did you mean 'Classifier'?"),
        ((".HypernetCallback", ".HypernetCalback"), "has no attribute 'HypernetCalback'; did you mean 'HypernetCallback'?"),
        (("max_epochs: 2", "max_epochs: two"), "trainer.max_epochs: Expected a"),
        (("max_epochs", "max_epoch"), "does not accept option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        (("trainer:", "trainr:"), "does not accept option 'trainr.max_epochs'; did you mean 'trainer.max_epochs'?"),
        (("target: model", "target: net"), "net"),
    ],
)
def test_a_slip_in_the_yaml_is_told_in_one_sentence(capsys, tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fit.yaml").write_text(CONFIG.replace(*change))
    assert said in call(capsys, "fit", "-c", "fit.yaml", code=2)


def test_an_untold_architecture_points_to_the_yaml_beside_the_checkpoint(capsys, trained, tmp_path):
    told = call(capsys, "sample", trained.checkpoint, "--out", tmp_path / "x", code=2)
    assert "keeps weights, not what they are the weights of: name it by --model" in told
    beside = trained.checkpoint.parent / "config.yaml"
    beside.write_text(CONFIG)
    assert f"if {beside} is yours, it is this one" in call(capsys, "sample", trained.checkpoint, "--out", "x", code=2)
    beside.unlink()


def test_debug_keeps_the_traceback():
    with pytest.raises(ValueError, match="there is no file or folder nowhere"):
        main(["sample", "nowhere", "--out", "x", "--debug"])


def test_every_error_is_one_line():
    assert sentence(ValueError("one\n  two")) == "one two"
    assert sentence(AssertionError()) == "AssertionError"
    assert sentence(KeyError("x")) == "KeyError: 'x'"
    assert sentence(ModuleNotFoundError("No module named 'yaml'", name="yaml")).startswith("the command line needs yaml")


def test_validate_test_and_predict_run_a_checkpoint(capsys, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("validate", "test", "predict"):
        text = call(capsys, name, "-c", trained.config, "--ckpt_path", trained.checkpoint)
        assert ("val_loss" in text) == (name != "predict")


def test_an_optimizer_of_the_yaml_trains_the_generator(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fit.yaml").write_text(
        CONFIG + "optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.05}}\n"
        "lr_scheduler: {class_path: torch.optim.lr_scheduler.ExponentialLR, init_args: {gamma: 0.5}}\n"
    )
    call(capsys, "fit", "-c", "fit.yaml")
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    (optimizer,) = state["optimizer_states"]
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(0.05 * 0.5**2)
    trained_names = [name for name in state["state_dict"] if ".generator." in name]
    assert len(optimizer["param_groups"][0]["params"]) >= len([n for n in trained_names if "running" not in n]) // 2


def test_completions_name_every_command(capsys):
    pytest.importorskip("shtab")
    text = call(capsys, "--completion", "bash")
    assert all(name in text for name in [*COMMANDS, *TRAINING, "--split"])
    assert "--completion must be one of" in call(capsys, "--completion", "cmd", code=2)


def test_python_m_runs_it_and_modules_of_the_working_directory_can_be_named(tmp_path):
    (tmp_path / "near.py").write_text("from torch import nn\n\ndef small():\n    return nn.Linear(3, 2)\n")
    command = [sys.executable, "-W", "ignore", "-m", "lightning_hypernet", "inspect", "near:small", "--presets", "none"]
    run = subprocess.run([*command, "--backend", "false"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert run.stdout.startswith("Linear, 8 parameters\n")
    run = subprocess.run([*command, "--input", "a"], capture_output=True, text=True, cwd=tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("lightning-hypernet: error: --input must be")
