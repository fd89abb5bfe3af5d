"""Folders with a model card, and repos on a hub: what is stored comes back bit for bit; what is wrong is told in a sentence."""

import base64
import copy
import functools
import json
import os
import pickle
import re
import sys
import zlib

import pytest
import pytorch_lightning as pl
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_hypernet import Ensemble, Hypernet, HypernetCallback, from_pretrained, push_to_hub, save_pretrained
from lightning_hypernet.archive import listed
from lightning_hypernet.hub.card import escaped
from lightning_hypernet.metrics import population_metrics
from tests.hub_endpoint import TOKEN, running
from tests.test_callback import QUIET, Classifier, data
from tests.test_files import Command, one_sentence

# What huggingface_hub says to its own HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "me/digits"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
TIMM = {"class_path": "timm.create_model", "init_args": {"model_name": "test_resnet.r160_in1k", "num_classes": 3}}
LOADER = [torch.randn(16, 4, generator=torch.Generator().manual_seed(0))]
LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 3}}


class Counting(nn.Module):
    """A module with a buffer of its own that training changes."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.register_buffer("level", torch.zeros(3))

    def forward(self, x):
        y = self.inner(x)
        if self.training:
            self.level = 0.5 * self.level + 0.5 * y.detach().mean(0)
        return y - self.level


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def trained(target, steps=2, **options):
    """A Hypernet after a few steps, in evaluation."""
    hypernet = Hypernet(target, **{"execution": "loop", "samples": 2, "members": 3, **options})
    optimizer = torch.optim.SGD(hypernet.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        hypernet(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    return hypernet.eval()


def same(one, other):
    """Whether two Hypernets are the same, bit for bit, down to the networks that they draw next."""
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == states[1][name].dtype
            assert torch.equal(value, states[1][name]), name
    drawn = copy.deepcopy(one).sample(4), copy.deepcopy(other).sample(4)
    assert drawn[0].weights.keys() == drawn[1].weights.keys()
    return all(torch.equal(value, drawn[1].weights[name]) for name, value in drawn[0].weights.items())


@pytest.fixture(scope="module")
def kept():
    torch.manual_seed(0)
    return trained(network(), components=2)


@pytest.fixture
def hypernet(kept):
    return copy.deepcopy(kept)


@pytest.fixture(scope="module")
def folder(kept, tmp_path_factory):
    return save_pretrained(kept, tmp_path_factory.mktemp("saved") / "one")


def names(monkeypatch, url):
    """Let the environment name a hub; huggingface_hub reads ``HF_ENDPOINT`` when it is imported, into these two."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A small hub, in place of the one that the environment names."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with running() as hub:
        names(monkeypatch, hub.url)
        yield hub


# Round trips

KINDS = {
    "norm statistics and components": (network, {"components": 2}),
    "buffers of its own": (Counting, {}),
    "a mixture": (network, {"prior": "mixture", "components": 3}),
    "noise": (network, {"distribution": "noisy"}),
    "mean field": (functools.partial(nn.Linear, 4, 3), {"distribution": "mean_field"}),
    "an encoder": (functools.partial(nn.Linear, 4, 3), {"encoder": {"name": "deep_sets", "inputs": 4}}),
    "a compact generator": (functools.partial(nn.Linear, 4, 3), {"generator": "compact", "gauge": "none"}),
    "parts left out, double": (lambda: network().double(), {"exclude": ["3.*"], "steps": 0}),
}


@pytest.mark.filterwarnings("ignore:.*norm statistics")
@pytest.mark.parametrize("name", KINDS)
def test_a_hypernet_comes_back_bit_for_bit(tmp_path, name):
    make, options = KINDS[name]
    hypernet = trained(make(), **options)
    x = torch.randn(5, 4, dtype=hypernet.target.state_dict().popitem()[1].dtype if "double" in name else None)
    expected = hypernet(x)
    torch.manual_seed(1)  # what the target's own weights are does not matter
    assert save_pretrained(hypernet, tmp_path / "one") == tmp_path / "one"
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["README.md", "hypernet.json", "hypernet.safetensors"]
    loaded = from_pretrained(tmp_path / "one", target=make())
    assert not loaded.training
    assert torch.equal(loaded(x), expected)
    assert same(hypernet, loaded)


def test_tensors_among_other_values_come_back(tmp_path):
    hypernet = trained(Counting())
    hypernet(torch.randn(2, 4))  # the members' own levels are estimated
    others = hypernet.members.others
    assert others["level"].shape == (3, 3)
    loaded = from_pretrained(save_pretrained(hypernet, tmp_path), target=Counting())
    assert torch.equal(loaded.members.others["level"], others["level"])
    held = json.loads((tmp_path / "hypernet.json").read_text())
    name = "members._extra_state.others.level"
    assert held["extra"]["members._extra_state"] == {"others": {"level": {"$tensor": name}}}
    assert torch.equal(load_file(tmp_path / "hypernet.safetensors")[name], others["level"])


def test_an_ensemble_comes_back_bit_for_bit(hypernet, tmp_path):
    ensemble, x = hypernet.ensemble(4, loader=LOADER), torch.randn(5, 4)
    ensemble.update_statistics([torch.randn(16, 4)])
    ensemble.reduce = "log_mean_prob"
    save_pretrained(ensemble, tmp_path / "four")
    assert sorted(path.name for path in (tmp_path / "four").iterdir()) == ["README.md", "ensemble.json", "ensemble.safetensors"]
    loaded = from_pretrained(tmp_path / "four", target=network())
    assert isinstance(loaded, Ensemble)
    assert torch.equal(loaded(x), ensemble(x))
    ensemble.save(tmp_path / "plain")
    assert torch.equal(from_pretrained(str(tmp_path / "plain"), target=network())(x), ensemble(x))


def test_a_timm_model_is_built_from_its_recipe(tmp_path):
    x = torch.randn(2, 3, 32, 32)
    made = timm.create_model(**TIMM["init_args"])
    only = {"generate": ["fc.*"], "structure": {"output": "fc.weight"}}
    hypernet = Hypernet(made, execution="loop", members=2, gauge="none", **only).eval()
    hypernet.update_statistics([x])
    ensemble = hypernet.ensemble(2, loader=[x])
    loaded = from_pretrained(save_pretrained(hypernet, tmp_path / "hypernet", recipe=TIMM))
    assert type(loaded.target).__name__ == type(hypernet.target).__name__
    assert torch.equal(loaded(x), hypernet(x))
    loaded = from_pretrained(save_pretrained(ensemble, tmp_path / "ensemble", recipe=TIMM))
    assert torch.equal(loaded(x), ensemble(x))


def test_the_part_of_a_lightning_module_comes_back_without_it(tmp_path):
    callback = HypernetCallback("model", samples=2, members=3, diversity={"entropy": 1e-3}, execution="loop")
    trainer = pl.Trainer(**QUIET, max_steps=2, limit_val_batches=0, callbacks=[callback])
    module = Classifier()
    trainer.fit(module, data())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    x = torch.randn(5, 4)
    loaded = from_pretrained(save_pretrained(callback.hypernet, tmp_path / "one"), target=Classifier().model)
    assert torch.equal(loaded(x), callback.hypernet.eval()(x))
    assert same(Hypernet.from_checkpoint(tmp_path / "one.ckpt", Classifier().model), loaded)
    with pytest.raises(TypeError, match=r"what must be a Hypernet or an Ensemble, as callback.hypernet.*, not a Classifier"):
        save_pretrained(module, tmp_path / "two")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_target_is_built_in_the_type_of_its_weights(tmp_path, dtype):
    hypernet, x = Hypernet(nn.Linear(4, 3), execution="loop", members=2).to(dtype).eval(), torch.randn(5, 4, dtype=dtype)
    loaded = from_pretrained(save_pretrained(hypernet, tmp_path, recipe=LINEAR))
    assert loaded(x).dtype == dtype
    assert torch.equal(loaded(x), hypernet(x))


def test_a_hypernet_of_a_folder_takes_other_options_and_trains_on(hypernet, folder):
    loaded = Hypernet.from_checkpoint(folder, network(), reduce="majority")
    assert loaded.reduce == "majority"
    loaded.train()(torch.randn(8, 4)).sum().backward()
    assert all(one.grad is not None for one in loaded.generator.parameters())


def test_what_has_no_name_or_is_no_plain_value_is_refused(tmp_path):
    named = Hypernet(nn.Linear(4, 3), prior=torch.distributions.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="the prior.* can't be stored: given as an object, it has no name"):
        save_pretrained(named, tmp_path / "one")
    spoiled = trained(nn.Linear(4, 3))
    spoiled.options["generator"] = {1: 2}
    with pytest.raises(TypeError, match="options.generator can't be stored: its key 1 is no text"):
        save_pretrained(spoiled, tmp_path / "one")
    spoiled = trained(nn.Linear(4, 3))
    with torch.no_grad():
        next(spoiled.generator.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"one can't be stored: generator\.\S+ holds NaN"):
        save_pretrained(spoiled, tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_a_folder_holds_one_thing_and_takes_a_newer_one(hypernet, tmp_path):
    save_pretrained(hypernet, tmp_path / "one", metrics={"ece": 0.5})
    with pytest.raises(ValueError, match="one holds a Hypernet already, and a folder holds one thing: name another"):
        save_pretrained(hypernet.ensemble(2, loader=LOADER), tmp_path / "one")
    other = trained(network())
    save_pretrained(other, tmp_path / "one")
    assert same(other, from_pretrained(tmp_path / "one", target=network()))
    assert "ece" not in (tmp_path / "one" / "README.md").read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file, and a Hypernet is stored in a folder"):
        save_pretrained(other, tmp_path / "file")


# Cards


def front(text):
    _, head, rest = text.split("---\n", 2)
    return yaml.safe_load(head), rest


def rows(text):
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_a_card_tells_what_it_is(hypernet, tmp_path):
    ensemble = hypernet.ensemble(4, component=1, loader=LOADER)
    head, text = front((save_pretrained(hypernet, tmp_path / "one") / "README.md").read_text())
    assert head == {
        "library_name": "lightning_hypernet",
        "tags": ["hypernetwork", "lightning_hypernet", "pytorch", "uncertainty"],
    }
    facts = {row[0]: row[1] for row in rows(text)}
    size = sum(one.numel() for one in hypernet.generator.parameters())
    weights = sum(one.numel() for one in network().parameters())
    assert facts["target"].startswith("Sequential")
    assert (facts["components"], facts["members"].split()[0]) == ("2", "3")
    assert facts["weights of each"] == f"{weights}, generated"
    assert f"{size:,} parameters, {size / weights:.2f} times the weights" in facts["generator"]
    assert "## Metrics" not in text
    head, text = front((save_pretrained(ensemble, tmp_path / "four") / "README.md").read_text())
    facts = {row[0]: row[1] for row in rows(text)}
    assert head["tags"][0] == "ensemble"
    assert (facts["members"], facts["components"], facts["weights of each"]) == ("4", "1 among the members", str(weights))


@pytest.mark.parametrize("recipe", [None, LINEAR])
@pytest.mark.parametrize("kind", ["hypernet", "ensemble"])
def test_the_code_of_a_card_runs(tmp_path, monkeypatch, kind, recipe):
    hypernet, inputs = trained(nn.Linear(4, 3)), torch.randn(5, 4)
    what = hypernet if kind == "hypernet" else hypernet.ensemble(3, loader=LOADER)
    monkeypatch.chdir(tmp_path)
    text = (save_pretrained(what, "it's", recipe=recipe) / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert ("target = ..." in code) == (recipe is None)
    names = {"inputs": inputs, "network": lambda: nn.Linear(4, 3)}
    exec(code.replace("target = ...", "target = network()"), names)
    assert torch.equal(names["joined"], what(inputs))


def test_a_card_sets_members_against_the_ensemble(hypernet, tmp_path):
    metrics = population_metrics(3)
    metrics.update(torch.randn(5, 40, 3), torch.arange(40) % 3)
    figures = metrics.compute()
    text = (save_pretrained(hypernet, tmp_path, metrics=figures) / "README.md").read_text().partition("## Metrics")[2]
    (heads, _, accuracy, nll), others = rows(text)[:4], rows(text)[4:]
    assert heads == ["metric", "mean member", "best member", "ensemble", "majority"]
    names = ["member_accuracy", "best_member_accuracy", "ensemble_accuracy", "majority_accuracy"]
    assert accuracy == ["accuracy", *(f"{float(figures[name]):.4g}" for name in names)]
    assert nll == ["nll", f"{float(figures['member_nll']):.4g}", "", f"{float(figures['ensemble_nll']):.4g}", ""]
    told = {row[0].replace("\\", "") for row in others[2:]}
    assert told == set(figures) - {*names, "member_nll", "ensemble_nll"}


def test_what_a_card_is_given_is_escaped(tmp_path):
    odd = type("A`b|c\n<script>", (nn.Linear,), {})
    evil = "x|y\n# <img src=x onerror=alert(1)> [a](javascript:b) `c` $d$ &amp;"
    save_pretrained(trained(odd(4, 3)), tmp_path, metrics={evil: 0.25}, report={evil: SVG})
    head, text = front((tmp_path / "README.md").read_text())
    assert set(head) == {"library_name", "tags"}
    assert "<img" not in text
    assert "<script" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert [line for line in text.splitlines() if line.startswith("#") and "img" in line] == []
    assert rows(text)[-1] == [escaped(evil), "0.25"]
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    compile(code, "card", "exec")
    assert escaped(r"a_b*c\d`e|f") == r"a\_b\*c\\d\`e\|f"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([0.5], "metrics must be a mapping, as population_metrics"),
        ({"ece": torch.zeros(2)}, "the metric 'ece' must be a text and one number"),
        ({"ece": "much"}, "the metric 'ece' must be a text and one number"),
        ({3: 0.5}, "the metric 3 must be a text"),
    ],
)
def test_metrics_that_are_none(hypernet, tmp_path, metrics, message):
    with pytest.raises(TypeError, match=message):
        save_pretrained(hypernet, tmp_path / "one", metrics=metrics)
    assert not (tmp_path / "one").exists()


def test_a_card_shows_pictures(hypernet, tmp_path):
    shown = tmp_path / "report"
    shown.mkdir()
    (shown / "b.svg").write_text(f"<?xml version='1.0'?>\n<!-- a -->\n{SVG}")
    (shown / "a.png").write_bytes(PNG)
    (shown / "report.html").write_text("<html>")
    text = (save_pretrained(hypernet, tmp_path / "one", report=shown) / "README.md").read_text()
    assert text.partition("## Pictures\n\n")[2].split() == ["![a](pictures/01-a.png)", "![b](pictures/02-b.svg)"]
    assert (tmp_path / "one" / "pictures" / "01-a.png").read_bytes() == PNG
    named = {"Who errs: with whom?": SVG, "../up": PNG, "of a file": shown / "b.svg"}
    save_pretrained(hypernet, tmp_path / "two", report=named)
    names = sorted(path.name for path in (tmp_path / "two" / "pictures").iterdir())
    assert names == ["01-who-errs-with-whom.svg", "02-up.png", "03-of-a-file.svg"]


@pytest.mark.parametrize(
    ("report", "error", "message"),
    [
        ("nowhere", ValueError, "report is 'nowhere', which is no folder of pictures"),
        (3, TypeError, "report must be a folder or a mapping"),
        ({"a": b"GIF89a"}, ValueError, "the picture 'a' is neither PNG nor SVG"),
        ({"a": "<html><svg></svg></html>"}, ValueError, "the picture 'a' is neither PNG nor SVG"),
        ({"a": "nowhere.png"}, ValueError, "the picture 'a' can't be read: No such file"),
        ({"a": 3}, TypeError, "the picture 'a' must be a path, bytes or"),
    ],
)
def test_pictures_that_are_none(hypernet, tmp_path, monkeypatch, report, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        save_pretrained(hypernet, tmp_path / "one", report=report)
    assert not (tmp_path / "one").exists()


# Folders of strangers


def stranger(folder, to, change=None, tensors=None, names=True):
    """A copy of a folder, changed by someone who knows the format; with `names` what it says of its tensors is made to fit."""
    to.mkdir()
    recipe, held = json.loads((folder / "hypernet.json").read_text()), load_file(folder / "hypernet.safetensors")
    if tensors is not None:
        tensors(held)
    save_file(held, to / "hypernet.safetensors")
    recipe["checksum"] = zlib.crc32((to / "hypernet.safetensors").read_bytes())
    recipe["tensors"] = listed(held) if names else recipe["tensors"]
    if change is not None:
        change(recipe)
    (to / "hypernet.json").write_text(json.dumps(recipe))
    return to


def built_by(class_path, **arguments):
    return lambda recipe: recipe.update(target={"class_path": class_path, "init_args": arguments})


def of(part, **values):
    return lambda recipe: recipe[part].update(values)


def with_extra(name, **values):
    return lambda recipe: recipe["extra"][name].update(values)


def nested(recipe):
    value = 0
    for _ in range(400):
        value = [value]
    recipe["extra"]["_extra_state"]["feed"] = value


CODES = "generator.mean_codes"
STRANGERS = {
    "a tensor that holds NaN": ({"tensors": lambda held: held[CODES].fill_(float("nan"))}, f"{CODES} holds NaN"),
    "a tensor that holds infinite numbers": (
        {"tensors": lambda held: held[CODES].fill_(float("inf"))},
        f"{CODES} holds infinite",
    ),
    "a tensor too few": ({"tensors": lambda held: held.pop(CODES)}, f"{CODES} is missing"),
    "a tensor too few, listed": ({"tensors": lambda held: held.pop(CODES), "names": False}, f"{CODES} is missing"),
    "a tensor too many": (
        {"tensors": lambda held: held.update(more=torch.zeros(1))},
        "more is none of the Hypernet of this Seq",
    ),
    "another shape": ({"tensors": lambda held: held.update({CODES: held[CODES][..., :1].clone()})}, f"{CODES} is float32"),
    "another type": ({"tensors": lambda held: held.update({CODES: held[CODES].double()})}, f"{CODES} is float64.*and float32"),
    "a component that is none": (
        {"tensors": lambda held: held["members.stored.component"].fill_(9)},
        "members.stored.component is not in 0 to 1",
    ),
    "another checksum": ({"change": lambda recipe: recipe.update(checksum=0)}, "hypernet.safetensors is not the one that"),
    "another format": ({"change": lambda recipe: recipe.update(format=99)}, "has the format 99, not"),
    "no options": ({"change": lambda recipe: recipe.pop("options")}, "options is None"),
    "no word of a target": ({"change": lambda recipe: recipe.pop("target")}, "target is missing"),
    "an unknown part": ({"change": lambda recipe: recipe.update(hook="os.system")}, "hook is unknown"),
    "an unknown option": ({"change": of("options", hook="os.system")}, "the option hook is none of the Hypernet's"),
    "a giant of members": ({"change": of("options", members=10**9)}, "members.stored.z is"),
    "a giant of z": ({"change": of("options", latent_dim=10**9)}, "members.stored.z is"),
    "a giant of a generator": ({"change": of("options", generator={"hidden": [10**9]})}, "asks for|can't be loaded"),
    "a plug-in that is not there": (
        {"change": lambda recipe: recipe.update(needs=[["prior", "theirs", "evil"]])},
        "needs .*evil",
    ),
    "versions that are none": ({"change": lambda recipe: recipe.update(versions=[1])}, r"versions is \[1\]"),
    "an extra state too few": (
        {"change": lambda recipe: recipe["extra"].pop("prior._extra_state")},
        "prior._extra_state is mis",
    ),
    "an extra state in place of a tensor": (
        {"change": lambda recipe: recipe["extra"].update({CODES: 1})},
        "both a tensor and none",
    ),
    "an extra state that names a weight": (
        {"change": with_extra("_extra_state", feed={"$tensor": CODES})},
        "no tensor of its own",
    ),
    "an extra state that names a list": ({"change": with_extra("_extra_state", feed={"$tensor": []})}, "no tensor of its own"),
    "an extra state without an end": ({"change": nested}, "can't be loaded"),
    "an extra state that holds NaN": ({"change": with_extra("prior._extra_state", draws=float("nan"))}, "draws is nan"),
    "a seed that is none": ({"change": with_extra("prior._extra_state", seed="x")}, "the prior's seed must be a whole number"),
    "a module that is none": (
        {"change": with_extra("_extra_state", frozen=["evil"])},
        "frozen holds 'evil', which is no module",
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_folder_of_a_stranger_is_refused(folder, tmp_path, name):
    changes, message = STRANGERS[name]
    path = stranger(folder, tmp_path / "stranger", **changes)
    with pytest.raises(ValueError, match=message) as told:
        from_pretrained(path, target=network())
    one_sentence(told.value, path)


def test_a_stranger_who_changes_nothing_is_welcome(hypernet, folder, tmp_path):
    assert same(hypernet, from_pretrained(stranger(folder, tmp_path / "stranger"), target=network()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (built_by("evil.Net"), "evil.Net, which is not loaded: import it first: pass target=..., or trust=True"),
        (built_by("os.system", command="touch ran"), "a class of modules, not os.system"),
        (built_by("torch.nn.Linear", in_features=10**6, out_features=10**6), "asks for more than .* numbers"),
        (built_by("timm.create_model", **TIMM["init_args"], pretrained=True), "read a file, by pretrained"),
        (lambda recipe: None, "it has no recipe of the target: pass target="),
    ],
)
def test_a_recipe_of_a_stranger_runs_nothing(folder, tmp_path, monkeypatch, change, message):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom torch.nn import Linear as Net\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = stranger(folder, tmp_path / "stranger", change)
    with pytest.raises(ValueError, match=message) as told:
        from_pretrained(path)
    one_sentence(told.value, path)
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules


def test_trust_imports_what_a_recipe_names(hypernet, tmp_path, monkeypatch):
    (tmp_path / "mine_of_hub.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    save_pretrained(hypernet, tmp_path / "one", recipe={"class_path": "mine_of_hub.net"})
    with pytest.raises(ValueError, match="mine_of_hub.net, which is not loaded"):
        from_pretrained(tmp_path / "one")
    assert same(hypernet, from_pretrained(tmp_path / "one", trust=True))


@pytest.mark.parametrize("trust", [False, True])
def test_a_pickled_file_beside_is_never_opened(hypernet, folder, tmp_path, trust):
    path = stranger(folder, tmp_path / "stranger")
    for name in ("hypernet.ckpt", "pytorch_model.bin", "hypernet.pkl", "last.ckpt"):
        (path / name).write_bytes(pickle.dumps(Command(tmp_path / "ran")))
        os.utime(path / name, (0, 0))
    (path / "hypernet.pt").symlink_to("/dev/zero")
    assert same(hypernet, from_pretrained(path, target=network(), trust=trust))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("file", ["hypernet.json", "hypernet.safetensors"])
def test_a_folder_cut_off_anywhere_is_refused(folder, tmp_path, file, share):
    path = stranger(folder, tmp_path / "stranger")
    whole = (path / file).read_bytes()
    (path / file).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=f"{file} can't be loaded") as told:
        from_pretrained(path, target=network())
    one_sentence(told.value, path)


def test_folders_that_are_none(folder, hypernet, tmp_path):
    with pytest.raises(ValueError, match=r"holds neither ensemble.json nor hypernet.json, of which save_pretrained writes one"):
        from_pretrained(tmp_path)
    path = stranger(folder, tmp_path / "both")
    hypernet.ensemble(2, loader=LOADER).save(path)
    with pytest.raises(ValueError, match=r"it holds both ensemble.json and hypernet.json"):
        from_pretrained(path, target=network())
    with pytest.raises(ValueError, match=r"README.md is a file: name the folder .*checkpoints: Hypernet.from_checkpoint"):
        from_pretrained(folder / "README.md")
    for name in (tmp_path / "a", "a/b/c", "/nowhere", "http://x/y", "nowhere"):
        with pytest.raises(ValueError, match="is neither a folder that is there nor the name of a repo, as 'someone/digits'"):
            from_pretrained(name)
    with pytest.raises(TypeError, match="name_or_folder must be a folder or the name of a repo, not 3"):
        from_pretrained(3)
    with pytest.raises(ValueError, match="is a folder, which has no revision 'main': leave revision= out"):
        from_pretrained(folder, target=network(), revision="main")
    os.mkfifo(tmp_path / "hypernet.json")
    with pytest.raises(ValueError, match="hypernet.json can't be loaded: it is no file"):
        from_pretrained(tmp_path, target=network())


# Repos


def test_a_hypernet_is_pushed_and_pulled(hub, hypernet, tmp_path):
    address = push_to_hub(hypernet, REPO, metrics={"ece": 0.25}, report={"a": PNG, "b": SVG}, token=TOKEN)
    repo = hub.repos[REPO]
    assert address == f"{hub.url}/{REPO}/commit/{repo.branches['main']}"
    assert not repo.private
    files = repo.commits[repo.branches["main"]]
    assert sorted(files) == [
        "README.md", "hypernet.json", "hypernet.safetensors", "pictures/01-a.png", "pictures/02-b.svg",
    ]  # fmt: skip
    assert f"from_pretrained('{REPO}', target=target)" in files["README.md"].decode()
    repo.commit("main", {**files, "pytorch_model.bin": b"pickled", "hypernet.py": b"raise SystemExit"}, "by someone else")
    assert same(hypernet, from_pretrained(REPO, target=network()))
    assert hub.fetched() == ["hypernet.json", "hypernet.safetensors"]


def test_an_ensemble_is_pushed_and_pulled_by_its_recipe(hub, tmp_path):
    ensemble, x = trained(nn.Linear(4, 3)).ensemble(3), torch.randn(5, 4)
    push_to_hub(ensemble, REPO, recipe=LINEAR, token=TOKEN)
    loaded = from_pretrained(REPO, cache_dir=tmp_path / "here")
    assert torch.equal(loaded(x), ensemble(x))
    assert hub.fetched() == ["ensemble.json", "ensemble.safetensors"]
    assert (tmp_path / "here").is_dir()
    assert not (tmp_path / "cache").exists()
    hub.down = True
    assert torch.equal(from_pretrained(REPO, cache_dir=tmp_path / "here")(x), ensemble(x))


def test_an_endpoint_that_is_given_goes_before_that_of_the_environment(hub, monkeypatch):
    names(monkeypatch, "http://127.0.0.1:9")
    ensemble, x = trained(nn.Linear(4, 3)).ensemble(3), torch.randn(5, 4)
    push_to_hub(ensemble, REPO, recipe=LINEAR, token=TOKEN, endpoint=hub.url)
    assert torch.equal(from_pretrained(REPO, endpoint=hub.url)(x), ensemble(x))


def test_a_push_replaces_what_an_earlier_one_left_and_nothing_else(hub, hypernet):
    push_to_hub(hypernet.ensemble(2, loader=LOADER), REPO, report={"old": SVG}, token=TOKEN)
    repo = hub.repos[REPO]
    first = repo.branches["main"]
    repo.commit("main", {**repo.commits[first], "LICENSE": b"mine"}, "a licence")
    push_to_hub(hypernet, REPO, message="a Hypernet now", token=TOKEN)
    assert sorted(repo.commits[repo.branches["main"]]) == ["LICENSE", "README.md", "hypernet.json", "hypernet.safetensors"]
    assert same(hypernet, from_pretrained(REPO, target=network()))
    assert isinstance(from_pretrained(REPO, target=network(), revision=first), Ensemble)
    with pytest.raises(ValueError, match=f"{REPO} exists already at {hub.url}: pass exist_ok=True for a further commit"):
        push_to_hub(hypernet, REPO, exist_ok=False, token=TOKEN)
    assert len(repo.commits) == 4


def test_a_private_repo_asks_for_a_token(hub, hypernet):
    push_to_hub(hypernet, REPO, private=True, exist_ok=False, token=TOKEN)
    assert hub.repos[REPO].private
    for token in (None, "another"):
        with pytest.raises(ValueError, match=f"there is no {REPO} at {hub.url}, or none that this token may use") as told:
            from_pretrained(REPO, target=network(), token=token)
        assert "\n" not in str(told.value)
    assert same(hypernet, from_pretrained(REPO, target=network(), token=TOKEN))


def test_revisions_are_kept_apart(hub, hypernet):
    one, two = hypernet.ensemble(2, loader=LOADER), hypernet.ensemble(3, loader=LOADER)
    push_to_hub(one, REPO, token=TOKEN)
    for _ in range(2):
        push_to_hub(two, REPO, revision="two", token=TOKEN)
    commit = hub.repos[REPO].branches["main"]
    found = {name: len(from_pretrained(REPO, target=network(), revision=name)) for name in (None, "main", "two", commit)}
    assert found == {None: 2, "main": 2, "two": 3, commit: 2}
    with pytest.raises(ValueError, match=f"{REPO} has no revision 'three': name a branch, a tag or a commit"):
        from_pretrained(REPO, target=network(), revision="three")


def failing(hub, act, message):
    with pytest.raises(ValueError, match=message) as told:
        act()
    assert "\n" not in str(told.value)
    assert str(told.value).count(". ") == 0


def test_what_goes_wrong_with_a_repo_is_told_in_a_sentence(hub, hypernet, folder):
    failing(hub, lambda: from_pretrained(REPO), f"there is no {REPO} at {hub.url}, or none that this token may use")
    failing(hub, lambda: push_to_hub(hypernet, REPO), f"there is no {REPO} at {hub.url}, or none that this token may use")
    failing(hub, lambda: from_pretrained("a--b/c"), "'a--b/c' is neither a folder that is there nor the name of a repo")
    failing(hub, lambda: push_to_hub(hypernet, "a b", token=TOKEN), "'a b' is neither a folder")
    assert not hub.repos
    push_to_hub(hypernet, REPO, token=TOKEN)
    repo = hub.repos[REPO]
    files = dict(repo.commits[repo.branches["main"]])

    def holding(**changed):
        changed = {name.replace("_", "."): value for name, value in changed.items()}
        repo.commit("main", {name: value for name, value in {**files, **changed}.items() if value is not None}, str(changed))
        return lambda: from_pretrained(REPO, target=network())

    failing(hub, holding(hypernet_json=None), f"{REPO} can't be loaded: it holds neither ensemble.json nor hypernet.json")
    failing(hub, holding(hypernet_json=None, hypernet_safetensors=None), f"{REPO} can't be loaded: it holds neither")
    failing(hub, holding(hypernet_safetensors=None), "hypernet.safetensors can't be loaded: it is no whole safetensors file")
    whole = files["hypernet.safetensors"]
    failing(hub, holding(hypernet_safetensors=whole[:-9]), "hypernet.safetensors can't be loaded: it is no whole")
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    failing(hub, holding(hypernet_safetensors=flipped), "is not the one that hypernet.json was saved with, or was changed")
    assert same(hypernet, holding()())


def test_a_hub_that_does_not_answer_is_told_in_a_sentence(hub, hypernet):
    nowhere = "http://127.0.0.1:9"
    failing(hub, lambda: from_pretrained(REPO, endpoint=nowhere), f"{nowhere} was not reached, or failed")
    failing(hub, lambda: push_to_hub(hypernet, REPO, endpoint=nowhere, token=TOKEN), f"{nowhere} was not reached, or failed")
    hub.down = True
    failing(hub, lambda: from_pretrained(REPO), f"{hub.url} was not reached, or failed")


def test_folders_need_no_hub_and_repos_name_the_extra(hypernet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert same(hypernet, from_pretrained(save_pretrained(hypernet, tmp_path / "one"), target=network()))
    named = r"by huggingface_hub: pip install 'lightning_hypernet\[hub\]'"
    failing(None, lambda: from_pretrained(REPO), f"there is no folder '{REPO}', and repos are fetched {named}")
    failing(None, lambda: push_to_hub(hypernet, REPO), f"repos are written {named}")
