"""The frontier's harness: what a run may see, how settings are chosen, what is told; and each method for a few steps."""

import copy
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[2] / "examples" / "benchmarks"))
import frontier
import frontier_walks
from frontier import Harness, everything, read
from frontier_methods import METHODS, Method
from frontier_problems import PROBLEMS, Images, Parts, Task, digits, letters, small, stored
from frontier_scores import choice, of_ensemble, scores
from frontier_shared import RankOne, near_one
from frontier_table import plot, table, unbeaten
from frontier_training import Trained, fit, standard, together

FOLDER = Path()
SCRIPT = Path(frontier.__file__)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def parts():
    return digits(FOLDER, 0)


def kept(images):
    """Images as a set of their bytes."""
    return {one.numpy().tobytes() for one in images.images}


class Given(nn.Module):
    """Says the first class of everything, so surely."""

    def __init__(self, logit):
        super().__init__()
        self.logit = logit

    def forward(self, images):
        return F.one_hot(torch.zeros(len(images), dtype=torch.long), 10) * self.logit


def fake(task, quality, lr):
    """Sees one batch; as likely as `quality` makes it, whatever the temperature."""
    for _ in task.batches(1):
        pass

    def members(images):
        known = [task.parts.validation, task.parts.test]
        every = torch.cat([one.images.float() / 255 for one in known])
        labels = torch.cat([one.labels for one in known])
        found = torch.cdist(images.flatten(1), every.flatten(1)).argmin(1)
        noise = torch.randn(len(images), 10, generator=torch.Generator().manual_seed(1))
        return (quality * F.one_hot(labels[found], 10) + noise)[None]

    return Trained(members)


@pytest.fixture
def faked(monkeypatch):
    """A method whose second setting is best, and how often it was trained."""
    trained = []

    def train(task, quality, lr):
        trained.append((task.seed, quality))
        return fake(task, quality, lr)

    choices = tuple({"lr": 1.0, "quality": quality} for quality in (0.5, 4.0, 1.0))
    monkeypatch.setitem(METHODS, "fake", Method(train, choices))
    return trained


def test_parts_share_no_image_and_every_seed_draws_its_own(parts):
    other = digits(FOLDER, 1)
    sizes = [len(one) for one in (parts.train, parts.validation, parts.test, parts.other)]
    assert sizes == [600, 200, 997, 997]
    assert len(kept(parts.train) | kept(parts.validation)) == 800
    assert not kept(parts.test) & (kept(parts.train) | kept(parts.validation))
    assert 400 < len(kept(parts.test) & kept(other.test)) < 700
    assert not torch.equal(parts.train.images, other.train.images)
    assert torch.equal(parts.test.images, digits(FOLDER, 0).test.images)
    assert torch.equal(parts.other.images[:, :, :4, :4], parts.test.images[:, :, 4:, 4:])


def test_sets_in_a_folder_are_split_and_only_training_images_are_shifted(tmp_path):
    random = np.random.default_rng(0)
    images = {part: random.integers(0, 255, (count, 28, 28), np.uint8) for part, count in (("x_train", 60), ("x_test", 9))}
    labels = {part: random.integers(0, 10, count) for part, count in (("y_train", 60), ("y_test", 9))}
    np.savez(tmp_path / "mnist.npz", **images, **labels)
    split = stored("mnist", 40, 15, shift=2)
    parts = split(tmp_path, 0)
    assert [len(one) for one in (parts.train, parts.validation, parts.test)] == [40, 15, 9]
    assert len(kept(parts.train) | kept(parts.validation)) == 55
    assert [one.shift for one in (parts.train, parts.validation, parts.test, parts.other)] == [2, 0, 0, 0]
    assert parts.kind == "quarters exchanged"
    np.savez(tmp_path / "emnist_letters_test.npz", x_test=images["x_train"][:7])
    parts = split(tmp_path, 0)
    assert (parts.kind, len(parts.other)) == ("emnist_letters_test", 7)
    assert torch.equal(parts.other.mean, parts.train.mean)


def test_a_network_that_was_trained_on_letters_starts_with_all_but_its_last_layer(tmp_path):
    random = np.random.default_rng(0)
    shown = {"x_train": random.integers(0, 255, (60, 28, 28), np.uint8), "y_train": random.integers(0, 10, 60)}
    np.savez(tmp_path / "mnist.npz", **shown, x_test=shown["x_train"], y_test=shown["y_train"])
    others = {"x_test": random.integers(0, 255, (130, 28, 28), np.uint8), "y_test": np.arange(130) % 26}
    np.savez(tmp_path / "emnist_letters_test.npz", **others)
    before = torch.get_rng_state()
    start = letters(tmp_path, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    parts = dataclasses.replace(stored("mnist", 40, 15)(tmp_path, 0), start=start)
    network = Task(PROBLEMS["finetune"], parts).network()
    names = list(small().state_dict())
    assert list(start) == names[:-2]
    assert all(torch.equal(network.state_dict()[name], value) for name, value in start.items())
    torch.manual_seed(0)
    fresh = small(classes=26)  # where letters started
    assert all(0 < (start[name] - fresh.state_dict()[name]).abs().max() < 0.05 for name in start)


def test_nothing_of_less_cost_beats_what_the_front_joins():
    points = [(1, 3.0), (1, 2.0), (2, 2.5), (3, 1.0), (2, 1.5)]
    assert unbeaten(points, -1) == [(1, 2.0), (2, 1.5), (3, 1.0)]
    assert unbeaten(points, 1) == [(1, 3.0)]


def test_a_task_pays_for_its_budget_and_no_image_more(parts):
    task = Task(PROBLEMS["digits"], parts, budget=0.5, unit=14)
    assert sum(len(labels) for _, labels in task.batches(7)) == task.seen == 7 * 120
    with pytest.raises(RuntimeError, match=r"960 images were seen, and the budget of 0.5 pays for 840"):
        next(task.batches(1))


def test_the_rate_is_constant_and_then_falls_to_zero():
    assert [standard(one) for one in (0, 0.3, 0.699)] == [1, 1, 1]
    assert standard(0.85) == pytest.approx(0.5)
    assert standard(1.0) == pytest.approx(0)


def test_settings_are_chosen_on_the_validation_part_under_seeds_of_their_own(faked, tmp_path):
    harness = Harness("digits", tmp_path / "lines.jsonl")
    (line,) = harness.row("fake", 1, [0])
    assert line["setting"] == {"lr": 0.03, "quality": 4.0}
    assert line["tried"] == 3
    tried = [one for one in read(harness.out) if one["seed"] >= 100]
    assert [one["seed"] for one in tried] == [*range(100, 108)] * 3
    assert all("accuracy" not in one and one["validation"] > 0 for one in tried)
    assert faked == [(seed, quality) for quality in (0.5, 4.0, 1.0) for seed in range(100, 108)] + [(0, 4.0)]


def test_a_method_may_take_the_setting_that_is_best_for_another(faked, tmp_path, monkeypatch):
    seen = []
    other = Method(lambda task, quality, lr: seen.append((quality, lr)) or fake(task, 1.0, lr), ({"lr": 2.0, "quality": 1.0},))
    monkeypatch.setitem(METHODS, "other", other)
    (line,) = Harness("digits", tmp_path / "lines.jsonl", unit=20).row("other", 1, [0], like="fake")
    assert (line["method"], line["setting"]) == ("other", {"lr": 0.03, "quality": 4.0})
    assert seen == [(4.0, 0.03)]
    assert [quality for _, quality in faked] == [0.5, 4.0, 1.0]  # tried for the other


def test_what_was_run_is_not_run_again(faked, tmp_path):
    first = Harness("digits", tmp_path / "lines.jsonl", unit=20).row("fake", 1, [0, 1])
    before = len(faked)
    assert Harness("digits", tmp_path / "lines.jsonl", unit=20).row("fake", 1, [0, 1]) == first
    assert len(faked) == before
    again = Harness("digits", tmp_path / "lines.jsonl", unit=20).row("fake", 1, [0, 1, 2])
    assert again[:2] == first
    assert faked[before:] == [(2, 4.0)]
    assert len(read(tmp_path / "lines.jsonl")) == 3 + 3


def test_no_method_tries_more_settings_than_another_may():
    assert {name: len(method.settings) for name, method in METHODS.items()} == dict.fromkeys(METHODS, 4)
    wanted = everything()
    assert len(set(wanted)) == len(wanted) == sum(len(method.budgets) for method in METHODS.values())
    assert [name for name, _ in wanted[: len(METHODS)]] == list(METHODS)


def test_scores_of_known_probabilities(parts):
    found = scores(Trained(together([Given(math.log(9.0)), Given(0.0)]), Given(math.log(9.0))), parts)
    share = (parts.test.labels == 0).double().mean().item()
    first, rest = (0.5 + 0.1) / 2, (0.5 / 9 + 0.1) / 2
    assert found["members"] == 2
    assert found["accuracy"] == found["one_accuracy"] == pytest.approx(100 * share, abs=1e-5)
    assert found["nll"] == pytest.approx(-share * math.log(first) - (1 - share) * math.log(rest), abs=1e-5)
    one = -share * math.log(0.5) - (1 - share) * math.log(0.5 / 9)
    assert found["one_nll"] == pytest.approx(one, abs=1e-5)
    assert found["member_nll"] == pytest.approx((one + math.log(10)) / 2, abs=1e-5)
    assert found["ece"] == pytest.approx(100 * (first - share), abs=1e-3)
    assert found["auroc"] == 50
    assert found["cnll"] < found["nll"]


def test_a_temperature_mends_what_is_only_too_sure(parts):
    labels, noise = parts.validation.labels, torch.randn(200, 10)
    calm = (noise + 2 * F.one_hot(labels, 10)).double()
    sure = (5 * calm).log_softmax(-1)
    assert of_ensemble(sure, labels)["nll"] > 1.3 * of_ensemble(calm.log_softmax(-1), labels)["nll"]
    assert of_ensemble(sure, labels)["cnll"] == pytest.approx(of_ensemble(calm.log_softmax(-1), labels)["cnll"], rel=1e-3)
    values = [choice(Trained(lambda _, by=by: (by * calm)[None]), Everything(parts.validation)) for by in (1.0, 5.0)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


class Everything:
    """A set that comes in one batch."""

    def __init__(self, images):
        self.images, self.labels = images, images.labels

    def loader(self, batch, shuffle):
        return self.images.loader(len(self.images), shuffle)


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3, bias=False)])
def test_members_of_rank_one_are_layers_of_their_own(layer):
    plain, ones = copy.deepcopy(layer), [1] * (layer.weight.ndim - 2)
    shared = RankOne(layer, 3, near_one)
    nn.init.normal_(shared.bias)
    x = torch.randn(6, 6, *[5] * len(ones))
    expected = []
    for member, inputs in enumerate(x.chunk(3)):
        plain.weight = nn.Parameter(layer.weight * (shared.outputs[member][:, None] * shared.inputs[member]).view(4, 6, *ones))
        plain.bias = nn.Parameter(shared.bias[member])
        expected.append(plain(inputs))
    torch.testing.assert_close(shared(x), torch.cat(expected))
    for one in (shared.inputs, shared.outputs, shared.bias):
        one.data[:] = one.data[:1]
    torch.testing.assert_close(shared.collapsed()(x), shared(x))


@pytest.fixture
def walked(monkeypatch):
    """Trainings that write the step and the rate into the weights, and what they keep."""

    def walk(module, task, steps, lr, weight_decay, schedule, after):
        for step in range(steps):
            nn.init.constant_(module[1].weight, schedule(step / steps))
            nn.init.constant_(module[1].bias, step + 1)
            after(step + 1)
        return module

    monkeypatch.setattr(frontier_walks, "fit", walk)
    monkeypatch.setattr(frontier_walks, "together", lambda networks: networks)

    def run(name, parts, steps, **setting):
        trained = getattr(frontier_walks, name)(Task(PROBLEMS["digits"], parts, unit=steps), 1.0, **setting)
        told = [(one[1].bias[0].item(), one[1].weight[0, 0].item()) for one in trained.members]
        return told, trained.one[1].bias[0].item()

    return run


def test_snapshots_are_kept_where_the_rate_is_least(walked, parts):
    told, last = walked("snapshots", parts, 60, count=3)
    assert [step for step, _ in told] == [20, 40, 60]
    assert [rate for _, rate in told] == pytest.approx([0.5 * (1 + math.cos(0.95 * math.pi))] * 3)
    assert last == 60


def test_geometric_ensembling_keeps_ten_networks_at_the_bottom_of_its_cycles(walked, parts):
    told, mean = walked("geometric", parts, 100, weight_decay=0.0)
    assert [step for step, _ in told] == [63 + 4 * index for index in range(10)]
    assert [rate for _, rate in told] == pytest.approx([0.05] * 10)
    assert mean == pytest.approx(81)


def test_weights_are_averaged_over_the_last_part(walked, parts):
    told, mean = walked("averaging", parts, 100, weight_decay=0.0)
    assert mean == told[0][0] == pytest.approx(sum(range(61, 101)) / 40)
    told, mean = walked("gaussian", parts, 1000, weight_decay=0.0)
    assert len(told) == 10
    assert mean == pytest.approx(sum(range(610, 1001, 10)) / 40)


def test_one_network_learns(parts):
    task = Task(PROBLEMS["digits"], parts, unit=60)
    network = fit(task.network(), task, task.steps, 0.01, 0.05)
    assert scores(Trained(together([network])), parts)["accuracy"] > 85
    assert task.seen == 60 * 120


IN_TURN = [pytest.param(name, marks=pytest.mark.slow if one.in_trainer else ()) for name, one in METHODS.items()]


@pytest.mark.parametrize("name", IN_TURN)
def test_methods_run(name, parts):
    method, problem = METHODS[name], PROBLEMS["digits"]
    task = Task(problem, parts, unit=20)
    trained = method.train(task, **{**method.settings[1], "lr": 0.01})
    logits = trained.members(parts.test.images[:30] / 255)
    count = int(name.partition("-")[2] or {"network": 1, "swa": 1, "snapshots": 6, "batchensemble": 10}.get(name, 10))
    assert logits.shape == (count, 30, 10)
    assert 0.8 * 20 * 120 < task.seen <= 20 * 120
    assert bool(torch.isfinite(logits).all())
    if count > 1:
        assert float(logits.detach().std(0).mean()) > 0
    assert (trained.one is None) == (name.startswith("independent") or name == "batchensemble")


@pytest.mark.slow
def test_norm_statistics_of_what_comes_of_a_resnet():
    images = Images(torch.randint(0, 255, (240, 3, 8, 8)), torch.randint(0, 10, (240,)), torch.full((3,), 0.5), torch.ones(3))
    parts = Parts(images, images, images, images, "itself")
    for name in ("swag", "simplex", "late_phase", "fge", "dropout", "ours"):
        task = Task(PROBLEMS["resnet"], parts, unit=12)
        trained = METHODS[name].train(task, **{**METHODS[name].settings[1], "lr": 0.01})
        found = scores(trained, parts)
        assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))
        norms = [one for one in trained.one.modules() if isinstance(one, nn.BatchNorm2d)]
        assert all(float((one.running_var - 1).abs().max()) > 0 for one in norms)


@pytest.mark.slow
def test_the_command_line(tmp_path):
    out = tmp_path / "lines.jsonl"
    for method, budget in (("independent-3", "3"), ("network", "1")):
        command = [sys.executable, SCRIPT, "row", "digits", method, "--budget", budget, "--steps", "20", "--seeds", "0", "1"]
        subprocess.run([*command, "--out", out], check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    runs = [line for line in lines if line["seed"] < 100]
    assert [line["images"] for line in runs] == [7200, 7200, 2400, 2400]
    assert all(len(line["curve"]) == 3 and line["curve"][2] == pytest.approx(line["cnll"], abs=1e-6) for line in runs[:2])
    told = subprocess.run([sys.executable, SCRIPT, "table", out], check=True, capture_output=True, text=True).stdout
    rows = [line.split(" | ") for line in told.splitlines() if line.startswith("| ")]
    assert rows[1][:2] == ["| independent-3", "3"]
    assert rows[1][-2] == "3.0"
    plot(lines, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["network", "--seeds", "100"], "seeds from 100 on are those that settings are tried with"),
        (["snapshots", "--like", "network"], "snapshots can't be like network: their settings name other things"),
    ],
    ids=["seed", "like"],
)
def test_the_command_line_refuses(options, message):
    refused = subprocess.run([sys.executable, SCRIPT, "row", "digits", *options], capture_output=True, text=True)
    assert refused.returncode == 1
    assert message in refused.stderr


@pytest.mark.slow
def test_gauges_are_compared_by_the_command_line():
    command = [sys.executable, SCRIPT.with_name("gauges.py"), "--seeds", "0", "1", "--steps", "10", "--gauges", "softmax"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert [(row["loss"], row["gauge"], len(row["cnll"])) for row in rows] == [
        ("entropy", "softmax", 2),
        ("variance", "softmax", 2),
    ]
    assert "variance" in told.rpartition("member %")[2]


def test_a_table_compares_with_one_network_seed_by_seed():
    shared = {"problem": "digits", "unit": 9, "setting": {"lr": 1.0}, "tried": 4, "relative_seconds": 1.0, "accuracy": 90.0}
    shared |= {"members": 2, "other": "noise"}
    values = {("network", 1.0): (0.4, 0.2, 0.3), ("half", 1.0): (0.3, 0.3, 0.5), ("half", 2.0): (0.1, 0.1, 0.1)}
    lines = [
        shared | {"method": method, "budget": budget, "seed": seed, "cnll": value}
        for (method, budget), one in values.items()
        for seed, value in enumerate(one)
    ]
    rows = [line.split(" | ") for line in table(lines[:-1]).splitlines() if line.startswith("| ")][1:]
    differences = np.array([-0.1, 0.1, 0.2])
    told = f"{differences.mean():+.4f} ± {differences.std(ddof=1) / 3**0.5:.4f}"
    assert [row[-3] for row in rows] == ["-", told, "-"]


def test_a_table_tells_what_an_ensemble_is_worth():
    shared = {"problem": "digits", "unit": 9, "seed": 0, "setting": {"lr": 1.0}, "tried": 4, "relative_seconds": 1.0}
    shared |= {"accuracy": 90.0, "members": 2, "other": "noise"}
    lines = [
        shared | {"method": "independent-3", "budget": 3.0, "cnll": 0.2, "curve": [0.5, 0.4, 0.2]},
        shared | {"method": "half", "budget": 1.0, "cnll": 0.3},
        shared | {"method": "half", "budget": 2.0, "cnll": 0.1},
        shared | {"method": "independent-2", "budget": 2.0, "cnll": 0.45, "curve": [0.6, 0.45]},
        shared | {"method": "network", "budget": 1.0, "cnll": 0.4},
        {"problem": "digits", "unit": 9, "seed": 100, "method": "half", "budget": 2.0, "validation": 0.1},
    ]
    rows = [line.split(" | ") for line in table(lines).splitlines() if line.startswith("| ")][1:]
    assert [(row[0], row[1], row[-2]) for row in rows] == [
        ("| independent-3", "3", "3.0"),
        ("| half", "1", "2.5"),
        ("| half", "2", "> 3"),
        ("| independent-2", "2", "1.0"),
        ("| network", "1", "1.0"),
    ]


@pytest.mark.slow
def test_families_are_compared_by_the_command_line():
    command = [sys.executable, SCRIPT.with_name("manifold.py"), "digits", "--seeds", "0", "1", "--steps", "9"]
    command += ["--families", "the preset", "variance 1"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in told.splitlines()]
    assert [row["family"] for row in rows] == ["independent-3", "the preset", "variance 1"]
    for row in rows[1:]:
        assert [len(part) for way in ("direct", "interpolated") for part in row[way]] == [5, 5, 5, 5]
    assert all(0 < row["accuracy"][0] < 100 and row["accuracy"][1] > 0 for row in rows)


@pytest.mark.slow
def test_a_step_is_timed_by_the_command_line():
    command = [sys.executable, SCRIPT.with_name("cost.py"), "digits", "--steps", "14", "--rounds", "1"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert told.startswith("digits: a step of one network") and told.count(",") == 3


@pytest.mark.slow
def test_ways_to_draw_networks_are_compared_by_the_command_line():
    command = [sys.executable, SCRIPT.with_name("rates.py"), "--seeds", "0", "--draws", "4", "--steps", "3"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(told) == 6 and told[0].startswith("1 component(s), components evenly, z independent: 1.00")
