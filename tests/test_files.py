"""Files of strangers: nothing that they name runs, nothing that is wrong with them loads, and what is wrong is told at once."""

import io
import json
import pickle
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import pytorch_lightning as pl
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_hypernet import Ensemble, Hypernet, HypernetCallback
from lightning_hypernet.archive import listed, plain, read_checkpoint
from tests.test_callback import QUIET, Classifier, data

TIMM = {"model_name": "test_resnet.r160_in1k", "num_classes": 3}
SIZE = 8


def network():
    return nn.Sequential(nn.Linear(4, SIZE), nn.BatchNorm1d(SIZE), nn.ReLU(), nn.Linear(SIZE, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    hypernet = Hypernet(network(), execution="loop")
    hypernet.update_statistics([torch.randn(16, 4)])
    path = tmp_path_factory.mktemp("saved") / "members"
    hypernet.eval().ensemble(3).save(path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    callback = HypernetCallback(samples=2, members=3, diversity={"entropy": 1e-3}, execution="loop")
    trainer = pl.Trainer(**QUIET, max_steps=2, limit_val_batches=0, callbacks=[callback])
    trainer.fit(Classifier(), data())
    path = tmp_path_factory.mktemp("saved") / "one.ckpt"
    trainer.save_checkpoint(path)
    return path


def copied(folder, to, change=None, tensors=None):
    """A copy of a folder, its recipe or its tensors changed."""
    to.mkdir()
    recipe = json.loads((folder / "ensemble.json").read_text())
    held = load_file(folder / "ensemble.safetensors")
    if change is not None:
        change(recipe)
    if tensors is not None:
        tensors(held)
    (to / "ensemble.json").write_text(json.dumps(recipe))
    if tensors is None:
        (to / "ensemble.safetensors").write_bytes((folder / "ensemble.safetensors").read_bytes())
    else:
        save_file(held, to / "ensemble.safetensors")
    return to


def one_sentence(error, path):
    text = str(error)
    assert "\n" not in text
    assert str(path) in text
    return text


# Folders


def with_recipe(class_path, **arguments):
    return lambda recipe: recipe.update(target={"class_path": class_path, "init_args": arguments})


STRANGERS = {
    "a class that fetches weights": (
        with_recipe("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", net_type="alex"),
        "whose package may fetch files",
    ),
    "a build without end": (
        with_recipe("torch.nn.LSTM", input_size=1, hidden_size=1, num_layers=10**9),
        "it asks for more than .* numbers",
    ),
    "a module beside the folder": (with_recipe("evil.Net"), "evil.Net, which is not loaded"),
    "a module of the library that acts when imported": (with_recipe("antigravity.Net"), "antigravity.Net, which is not loaded"),
    "a function that is loaded": (with_recipe("os.system", command="touch ran"), "a class of modules, not os.system"),
    "a function of torch": (with_recipe("torch.hub.load", repo_or_dir="."), "a class of modules, not torch.hub.load"),
    "an attribute that is computed": (with_recipe("lazy_module.Net"), "lazy_module.Net, which is not loaded"),
    "pickled weights": (with_recipe("timm.create_model", **TIMM, checkpoint_path="w.pt"), "read a file, by checkpoint_path"),
    "pretrained weights": (with_recipe("timm.create_model", **TIMM, pretrained=True), "read a file, by pretrained"),
    "weights of the configuration": (
        with_recipe("timm.create_model", **TIMM, pretrained_cfg={"file": "w.pt"}),
        "read a file, by pretrained_cfg",
    ),
    "a model of a hub": (with_recipe("timm.create_model", model_name="hf-hub:someone/model"), "timm has no model 'hf-hub:"),
    "a path among the arguments": (with_recipe("timm.create_model", **TIMM, act_layer="/tmp/x"), "read a file, by act_layer"),
    "a giant": (with_recipe("timm.create_model", **{**TIMM, "num_classes": 10**9}), "asks for more than .* numbers"),
    "a giant of torch": (with_recipe("torch.nn.Linear", in_features=10**6, out_features=10**6), "asks for more than"),
    "no class": (with_recipe("torch.nn.functional.relu"), "a class of modules, not torch.nn.functional.relu"),
    "a text for a recipe": (lambda recipe: recipe.update(target="timm"), "a recipe has a class_path"),
    "arguments that do not fit": (with_recipe("torch.nn.Linear", inputs=3), "recipe .* failed: .*unexpected keyword argument"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_recipe_of_a_stranger_runs_nothing(folder, tmp_path, monkeypatch, name):
    change, expected = STRANGERS[name]
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom torch.nn import Linear as Net\n")
    (tmp_path / "lazy_module.py").write_text(
        f"from torch import nn\n\n\ndef __getattr__(name):\n    open({str(tmp_path / 'ran')!r}, 'w')\n    return nn.Linear\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    if "lazy" in expected:
        __import__("lazy_module")
    before = set(sys.modules)
    path = copied(folder, tmp_path / "stranger", change)
    with pytest.raises(ValueError, match=expected) as told:
        Ensemble.load(path)
    one_sentence(told.value, path)
    assert not (tmp_path / "ran").exists()
    assert not {"evil", "antigravity"} & (set(sys.modules) - before)


def test_trust_imports_what_a_recipe_names(folder, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        f"    return nn.Sequential(nn.Linear(4, {SIZE}), nn.BatchNorm1d({SIZE}), nn.ReLU(), nn.Linear({SIZE}, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = copied(folder, tmp_path / "own", with_recipe("mine.net"))
    with pytest.raises(ValueError, match="mine.net, which is not loaded: import it first.*or trust=True"):
        Ensemble.load(path)
    x = torch.randn(5, 4)
    assert torch.equal(Ensemble.load(path, trust=True)(x), Ensemble.load(folder, network())(x))


def test_a_class_that_is_loaded_and_a_model_of_timm_are_built(tmp_path):
    Hypernet(nn.Linear(4, 3)).ensemble(2).double().save(
        tmp_path / "linear", {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 3}}
    )
    assert Ensemble.load(tmp_path / "linear")(torch.randn(2, 4).double()).dtype == torch.float64
    hypernet = Hypernet(timm.create_model(**TIMM), execution="loop")
    networks = hypernet.eval().ensemble(1, loader=[torch.randn(2, 3, 64, 64)])
    networks.save(tmp_path / "timm", {"class_path": "timm.create_model", "init_args": TIMM})
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(Ensemble.load(tmp_path / "timm")(x), networks(x))


def shortened(held):
    for name in list(held):
        held[name] = held[name][:2].clone() if not name.startswith("target.") else held[name]


def without(*names):
    return lambda held: [held.pop(name) for name in list(held) if name.startswith(names)]


def filled(name, value, dtype=None):
    def change(held):
        held[name] = held[name].to(dtype) if dtype else held[name].index_fill(held[name].ndim - 1, torch.tensor(0), value)

    return change


def changed(**values):
    return lambda recipe: recipe.update(values)


DAMAGED = {
    "a list of no tensors": (
        lambda recipe: recipe["tensors"].update({"weights.0/weight": None}),
        None,
        "tensors.'weights.0/weight' is None",
    ),
    "aliases that are not there": (
        lambda recipe: recipe["aliases"].update({"0.bias": ["0.bias", "1.bias"]}),
        None,
        r"aliases of 0.bias are \['0.bias', '1.bias'\], and \['0.bias'\] in Sequential",
    ),
    "an unknown choice": (
        lambda recipe: recipe.update(choices={"forward": {"backend": "nope"}}),
        None,
        "choices is {'forward': {'backend': 'nope'}}",
    ),
    "a missing bias": (None, without("weights.3/bias"), "weights.3/bias is missing"),
    "fewer members": (None, shortened, r"weights.0/weight is float32 \(2, 8, 4\), and float32 \(3, 8, 4\) in what was saved"),
    "no statistics": (
        None,
        without("statistics."),
        "statistics.1/running_mean is missing.*statistics.1/running_var is missing",
    ),
    "not a number": (None, filled("weights.0/weight", float("nan")), "weights.0/weight holds NaN"),
    "infinite": (None, filled("weights.0/bias", float("inf")), "weights.0/bias holds infinite numbers"),
    "wrong type": (
        None,
        filled("weights.0/bias", 0, torch.float64),
        r"weights.0/bias is float64 \(3, 8\), and float32 \(3, 8\)",
    ),
    "other numbers": (None, filled("weights.0/bias", 1.0), "is not the one that ensemble.json was saved with"),
    "more than was saved": (None, lambda held: held.update(more=torch.zeros(3)), "more is none of what was saved"),
    "format 2": (changed(format=2), None, "has the format 2, not"),
    "no format": (lambda recipe: recipe.pop("format"), None, "has the format None"),
    "a format that is true": (changed(format=True), None, "has the format True"),
    "another number of members": (changed(members=10**9), None, r"weights.0/weight holds \(3,\) members, not 1000000000"),
    "members in words": (changed(members="three"), None, "members is 'three'"),
    "an unknown field": (changed(hook="x"), None, "hook is unknown"),
    "a missing field": (lambda recipe: recipe.pop("aliases"), None, "aliases is None"),
    "an unknown reduction": (changed(reduce="median"), None, "reduce must be one of"),
    "an unknown backend": (changed(execution="lopp"), None, "unknown backend 'lopp'; did you mean 'loop'"),
    "an odd batch_dim": (changed(batch_dim=-1), None, "batch_dim must be an axis"),
    "unknown modules": (changed(frozen=["5"]), None, "'5' of frozen is no module of Sequential"),
    "odd choices": (changed(choices={"a": 3}), None, "choices is"),
    "an odd feed": (changed(feed=3), None, "feed is 3"),
    "another target": (changed(aliases={"0.weight": ["0.weight"]}), None, "3.bias is none of 3 networks of Sequential"),
}


FORGED = {
    "one statistic less": (without("statistics.1/running_var"), "statistics.1.running_var is missing"),
    "a negative variance": (filled("statistics.1/running_var", -1.0), "statistics.1.running_var holds negative variances"),
    "statistics of another type": (
        filled("statistics.1/running_var", 1.0, torch.float64),
        "statistics.1.running_var is torch.float64 here and torch.float32 in Sequential",
    ),
    "an odd component": (filled("stored.component", 0.5), "stored.component holds what is no number of a component"),
    "one name twice": (
        lambda held: held.update({"weights.0.weight": held["weights.0/weight"] + 1}),
        "weights.0.weight has a dot in its name",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_folder_that_only_the_target_tells_is_wrong_is_refused(folder, tmp_path, name):
    tensors, expected = FORGED[name]
    path = copied(folder, tmp_path / "forged", None, tensors)
    held = load_file(path / "ensemble.safetensors")
    recipe = json.loads((path / "ensemble.json").read_text())
    recipe |= {"tensors": listed(held), "checksum": zlib.crc32((path / "ensemble.safetensors").read_bytes())}
    (path / "ensemble.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=expected) as told:
        Ensemble.load(path, network())
    one_sentence(told.value, path)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_folder_is_refused(folder, tmp_path, name):
    change, tensors, expected = DAMAGED[name]
    path = copied(folder, tmp_path / "damaged", change, tensors)
    with pytest.raises(ValueError, match=expected) as told:
        Ensemble.load(path, network())
    one_sentence(told.value, path)


def test_one_error_lists_all(folder, tmp_path):
    def change(held):
        filled("weights.0/weight", 0, torch.float64)(held)
        without("statistics.1/running_var", "weights.3/bias")(held)

    with pytest.raises(ValueError, match="weights.3/bias is missing") as told:
        Ensemble.load(copied(folder, tmp_path / "damaged", None, change), network())
    assert all(name in str(told.value) for name in ("weights.0/weight is float64", "statistics.1/running_var is missing"))


@pytest.mark.parametrize("file", ["ensemble.json", "ensemble.safetensors"])
def test_a_folder_cut_off_anywhere_is_refused(folder, tmp_path, file):
    path = copied(folder, tmp_path / "cut")
    whole = (folder / file).read_bytes()
    for tenth in range(10):
        (path / file).write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(ValueError, match="can't be loaded") as told:
            Ensemble.load(path, network())
        assert len(one_sentence(told.value, path)) < 300
    (path / file).unlink()
    with pytest.raises(ValueError, match="can't be loaded.*No such file"):
        Ensemble.load(path, network())


def test_a_save_that_fails_leaves_what_was_there(folder, tmp_path, monkeypatch):
    path = copied(folder, tmp_path / "kept")
    before = {one.name: one.read_bytes() for one in path.iterdir()}
    networks = Ensemble.load(path, network())

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("lightning_hypernet.pair.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        networks.save(path)
    monkeypatch.undo()
    networks.weights.tensors()["0.weight"][1, 0] = float("nan")
    with pytest.raises(ValueError, match="can't be stored: weights.0/weight holds NaN"):
        networks.save(path)
    assert {one.name: one.read_bytes() for one in path.iterdir()} == before


def test_a_mask_of_the_target_may_be_infinite(tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0]))

        def forward(self, x):
            return (self.inner(x) + self.mask).softmax(1)

    networks = Hypernet(Masked(), execution="loop").ensemble(2)
    networks.save(tmp_path)
    x = torch.randn(5, 4)
    assert torch.equal(Ensemble.load(tmp_path, Masked())(x), networks(x))


# Checkpoints


def test_the_reader_gives_what_torch_gives(saved):
    held, loaded = read_checkpoint(saved), torch.load(saved, weights_only=True)
    assert held.keys() == loaded.keys()
    assert held["state_dict"]._metadata == loaded["state_dict"]._metadata
    for name, value in loaded["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(held["state_dict"][name].read(), value)
    odd = {
        "cut": torch.arange(24.0).reshape(2, 3, 4)[:, 1].T,
        "half": torch.ones(3, dtype=torch.bfloat16),
        "none": torch.zeros(0, 3),
        "number": torch.tensor(3),
        "parameter": nn.Parameter(torch.ones(2)),
        "small": torch.ones(4).to(torch.float8_e4m3fn),
    }
    torch.save(odd, saved.with_name("odd.pt"))
    for name, one in read_checkpoint(saved.with_name("odd.pt")).items():
        assert torch.equal(one.read().float(), odd[name].detach().float()), name
        assert (one.shape, one.dtype) == (odd[name].shape, odd[name].dtype)


class Command:
    """A stranger's object, which acts when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def spoiled(saved, to, change):
    """A checkpoint with other contents."""
    content = torch.load(saved, weights_only=True)
    change(content)
    torch.save(content, to)
    return to


def in_recipe(**values):
    return lambda content, ran: content["hypernet"]["model"].update(values)


def in_options(**values):
    return lambda content, ran: content["hypernet"]["model"]["options"].update(values)


def in_generator(**values):
    return lambda content, ran: content["hypernet"]["model"]["options"]["generator"].update(values)


def in_state(name, change):
    def spoil(content, ran):
        state = content["state_dict"]
        state[f"model.{name}"] = change(state[f"model.{name}"], ran)

    return spoil


def looped(content, ran):
    options = content["hypernet"]["model"]["options"]
    options["generator"] = options


def doubled(content, ran):
    laughs = [0]
    for _ in range(60):
        laughs = [laughs, laughs]
    content["hypernet"]["model"]["options"]["generator"] = laughs


ATTACKS = {
    "an option less": (
        lambda content, ran: content["hypernet"]["model"]["options"].pop("reduce"),
        "the option reduce is missing",
    ),
    "layers without end": (in_generator(hidden=[1] * 10**5), "its generator asks for 100,00. hidden layers, and there are"),
    "components that are not there": (
        in_state("members.stored.component", lambda value, ran: value + 7),
        "members.stored.component is not in 0 to 0",
    ),
    "no number in the extra state": (
        in_state("members._extra_state", lambda value, ran: {"others": {"0.weight": torch.full((3, 2), float("nan"))}}),
        "members._extra_state.others.0.weight holds NaN",
    ),
    "a seed that is none": (
        in_state("prior._extra_state", lambda value, ran: {**value, "seed": "x"}),
        "the prior's seed must be a whole number, not 'x'",
    ),
    "what was never frozen": (
        in_state("_extra_state", lambda value, ran: {**value, "frozen": ["nope"]}),
        "frozen holds 'nope', which is no module of",
    ),
    "a hook that is none": (in_recipe(needs=[["hook", "spike", "evil"]]), "the plug-in evil for hook='spike'"),
    "code among the options": (
        lambda content, ran: content["hypernet"]["model"]["options"].update(prior=Command(ran)),
        "options.prior is a __builtin__.getattr, which is not imported",
    ),
    "code for the whole recipe": (lambda content, ran: content.update(hypernet=Command(ran)), "holds no Hypernet"),
    "code in place of a tensor": (
        in_state("generator.mean_codes", lambda value, ran: Command(ran)),
        "generator.mean_codes is missing",
    ),
    "code in the extra state": (
        in_state("_extra_state", lambda value, ran: {**value, "feed": Command(ran)}),
        "_extra_state.feed is a __builtin__.getattr",
    ),
    "a billion components": (in_options(components=10**9), "of 1 components, not 1000000000"),
    "a billion members": (in_options(members=10**9), r"members.stored.z is \(3, 64\), and \(1000000000, 64\)"),
    "a billion latent numbers": (in_options(latent_dim=10**9), r"members.stored.z is \(3, 64\)"),
    "wide layers": (in_generator(hidden=[10**6, 10**6]), "asks for 1,000,000,000,000 numbers"),
    "wide layers under noise": (
        lambda content, ran: [
            spoil(content, ran) for spoil in (in_options(distribution={"name": "noisy"}), in_generator(hidden=[10**6, 10**6]))
        ],
        "asks for 1,000,000,000,000 numbers",
    ),
    "a wide extractor": (in_generator(extractor_hidden=[10**9]), "asks for 64,000,000,000 numbers"),
    "an option that holds itself": (looped, "has no end"),
    "lists in lists": (doubled, "has no end"),
    "an unknown option": (in_options(hook=1), "the option hook is none of the Hypernet's"),
    "an unknown field": (in_generator(hook=1), "generator has no option hook"),
    "an option of another type": (in_options(gauge=3), "a gauge is chosen by its name"),
    "an unknown format": (in_recipe(format=99), "has the format 99, not"),
    "needs that are none": (in_recipe(needs=[["prior"]]), "needs is"),
    "a prefix that is none": (in_recipe(prefix=3), "prefix is 3"),
    "a missing tensor": (
        lambda content, ran: content["state_dict"].pop("model.generator.mean_codes"),
        "generator.mean_codes is missing",
    ),
    "another shape": (
        in_state("generator.mean_codes", lambda value, ran: value[..., :1]),
        r"generator.mean_codes is float32 \(",
    ),
    "another type": (in_state("generator.mean_codes", lambda value, ran: value.double()), "generator.mean_codes is float64"),
    "not a number": (in_state("generator.mean_codes", lambda value, ran: value * torch.nan), "generator.mean_codes holds NaN"),
    "infinite": (in_state("generator.mean_codes", lambda value, ran: value / 0), "mean_codes holds infinite numbers"),
    "no extra state": (lambda content, ran: content["state_dict"].pop("model._extra_state"), "_extra_state is missing"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_checkpoint_of_a_stranger_runs_nothing_and_does_not_load(saved, tmp_path, name):
    change, expected = ATTACKS[name]
    ran = tmp_path / "ran"
    path = spoiled(saved, tmp_path / "two.ckpt", lambda content: change(content, ran))
    ran.unlink(missing_ok=True)
    target = Classifier().model
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=expected) as told:
        Hypernet.from_checkpoint(path, target)
    one_sentence(told.value, path)
    assert not ran.exists()
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_a_training_does_not_go_on_from_a_checkpoint_of_another_format(saved, tmp_path):
    path = spoiled(saved, tmp_path / "two.ckpt", lambda content: in_recipe(format=4)(content, None))
    callback = HypernetCallback(samples=2, members=3, diversity={"entropy": 1e-3}, execution="loop")
    with pytest.raises(ValueError, match="the checkpoint has the format 4, not"):
        pl.Trainer(**QUIET, max_epochs=9, callbacks=[callback]).fit(Classifier(), data(), ckpt_path=path)


def test_plain_values_come_back_as_they_were(tmp_path):
    problems = []
    torch.save({"a": {"b": (1, [2, (3,)]), 4: None}, "c": {(1, 2): 3}}, tmp_path / "one.pt")
    held = read_checkpoint(tmp_path / "one.pt")
    assert plain(held["a"], "a", problems) == {"b": (1, [2, (3,)]), 4: None} and not problems
    plain(held["c"], "c", problems)
    assert problems == ["c has keys that are neither texts nor numbers"]


def test_what_else_a_checkpoint_holds_is_not_read(saved, tmp_path):
    ran = tmp_path / "ran"
    path = spoiled(
        saved, tmp_path / "two.ckpt", lambda content: content.update(hyper_parameters={"net": Command(ran), "a": {1, 2}})
    )
    ran.unlink(missing_ok=True)
    x = torch.randn(5, 4)
    expected = Hypernet.from_checkpoint(saved, Classifier().model)(x)
    assert torch.equal(Hypernet.from_checkpoint(path, Classifier().model)(x), expected)
    assert not ran.exists()
    assert torch.equal(Hypernet.from_checkpoint(path, Classifier().model, trust=True)(x), expected)
    assert ran.exists()


def rewritten(saved, to, change=lambda name, content: content, packed=zipfile.ZIP_STORED):
    """The records of a checkpoint, changed and written again."""
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(to, "w", packed) as new:
        for one in old.infolist():
            new.writestr(one.filename, change(one.filename.partition("/")[2], old.read(one)))
    return to


def pickled(*opcodes):
    return b"\x80\x02" + b"".join(opcodes) + b"."


class Huge:
    """A tensor that is larger than its numbers."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (torch.zeros(3).untyped_storage(), 0, (10**9,), (1,), False, {})


def instead(record, content):
    return lambda name, kept: content if name == record else kept


ARCHIVES = {
    "a command": (
        instead("data.pkl", pickled(b"cos\nsystem\n", b"X\x09\x00\x00\x00touch ran", b"\x85R")),
        "it holds a Unknown",
    ),
    "lists without end": (instead("data.pkl", pickled(b"]" * 10**6)), "it holds a list"),
    "no pickle": (instead("data.pkl", b"hello"), "no whole checkpoint of torch"),
    "fewer bytes": (lambda name, kept: kept[: len(kept) // 2] if name == "data/3" else kept, r"data/3 has \d+ bytes"),
    "another order of bytes": (instead("byteorder", b"big"), "another order of bytes"),
    "a state for a class": (
        instead("data.pkl", pickled(b"ccollections\nOrderedDict\n", b"}X\x03\x00\x00\x00getK\x01sb")),
        "no whole checkpoint of torch",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_of_a_stranger_is_refused(saved, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, expected = ARCHIVES[name]
    path = rewritten(saved, tmp_path / "two.ckpt", change)
    with pytest.raises(ValueError, match=expected) as told:
        Hypernet.from_checkpoint(path, Classifier().model)
    one_sentence(told.value, path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["two.ckpt"]


def test_a_compressed_archive_is_refused(saved, tmp_path):
    path = rewritten(saved, tmp_path / "two.ckpt", packed=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed, as no checkpoint is"):
        Hypernet.from_checkpoint(path, Classifier().model)


def test_a_tensor_larger_than_its_numbers_is_refused(tmp_path):
    torch.save({"state_dict": {"a": Huge()}}, tmp_path / "huge.pt")
    with pytest.raises(ValueError, match=r"a tensor \(1000000000,\) reaches beyond its numbers"):
        read_checkpoint(tmp_path / "huge.pt")


def test_flipped_bits_are_told(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        at = max((one for one in archive.infolist() if "/data/" in one.filename), key=lambda one: one.file_size)
    content[at.header_offset + at.file_size] ^= 1  # the header is shorter than the numbers
    (tmp_path / "two.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match="CRC"):
        Hypernet.from_checkpoint(tmp_path / "two.ckpt", Classifier().model)


def test_a_checkpoint_cut_off_anywhere_is_refused(saved, tmp_path):
    whole = saved.read_bytes()
    path = tmp_path / "cut.ckpt"
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(ValueError, match="can't be loaded") as told:
            Hypernet.from_checkpoint(path, Classifier().model)
        assert len(one_sentence(told.value, path)) < 300
    for other in (tmp_path / "absent.ckpt", tmp_path):
        with pytest.raises(ValueError, match="can't be loaded: (No such file|Is a directory)"):
            Hypernet.from_checkpoint(other, Classifier().model)
    path.write_bytes(pickle.dumps({"hypernet": {}}))
    with pytest.raises(ValueError, match="can't be loaded"):
        Hypernet.from_checkpoint(path, Classifier().model)


def test_a_checkpoint_of_another_target_is_refused(saved):
    with pytest.raises(ValueError, match=r"generator.* is float32 .* in the Hypernet of this Sequential"):
        Hypernet.from_checkpoint(saved, nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)))
    with pytest.raises(ValueError, match="float32 .*, and float64 .* in the Hypernet of this Sequential"):
        Hypernet.from_checkpoint(saved, Classifier().model.double())


def test_a_plain_pickle_is_no_checkpoint(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer, _use_new_zipfile_serialization=False)
    Path(tmp_path / "old.pt").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="no whole checkpoint of torch"):
        read_checkpoint(tmp_path / "old.pt")
