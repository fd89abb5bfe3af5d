"""Calibrating an ensemble: what is fitted, what it changes, what keeps it, and the promise of conformal sets."""

import copy
import functools
import json
import math
import pickle
import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from lightning_hypernet import Ensemble, Hypernet
from lightning_hypernet.archive import listed
from lightning_hypernet.uncertainty import Conformal
from lightning_hypernet.uncertainty.temperature import fit_classes


def target(outputs=3, norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Linear(8, outputs)]
    return nn.Sequential(*layers).double()


def ensemble(outputs=3, members=4, norm=False, **options):
    hypernet = Hypernet(target(outputs, norm), execution="loop", **options)
    if norm:
        hypernet.update_statistics([torch.randn(16, 4).double()])
    made = hypernet.eval().ensemble(members)
    for name, value in made.weights.tensors().items():
        if name.endswith("weight"):
            value.mul_(4)
    return made


def noise(count, seed):
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@functools.cache
def teacher(outputs):
    return ensemble(outputs)


def labelled(count=200, seed=1, size=50, of=None):
    """Batches whose labels are drawn at a temperature of 3, so that the members are far too sure."""
    x = noise(count, seed)
    mean = (teacher(3) if of is None else of).members(x).softmax(-1).mean(0).log() / 3
    drawn = mean.softmax(-1).cumsum(-1) < torch.rand(count, 1, generator=torch.Generator().manual_seed(seed))
    return list(zip(x.split(size), drawn.sum(-1).clamp(max=2).split(size), strict=True))


def measured(count=200, seed=1, size=50, outputs=None):
    """Batches whose numbers lie three times as far from the mean as the members say."""
    x = noise(count, seed)
    means, raw = teacher(2 * (outputs or 1)).members(x).chunk(2, -1)
    spread = (raw.exp().mean(0) + means.var(0, correction=0)).sqrt()
    y = means.mean(0) + 3 * spread * noise(count, seed + 1)[:, : outputs or 1]
    return list(zip(x.split(size), (y if outputs else y[:, 0]).split(size), strict=True))


REGRESSION = {"task": "regression", "variance": "log_variance"}


def nll(networks, batches):
    parts = [F.nll_loss(networks.predict(x).log_mean, y, reduction="sum") for x, y in batches]
    return (sum(parts) / sum(len(y) for _, y in batches)).item()


# Temperatures


@pytest.mark.parametrize("reduce", ["mean", "log_mean_prob", None])
def test_one_temperature_is_fitted_after_averaging(reduce):
    networks, batches = ensemble(reduce=reduce), labelled()
    before = nll(networks, batches)
    x, y = (torch.cat(one) for one in zip(*batches, strict=True))
    mean = networks.members(x).softmax(-1).mean(0).log()
    grid = torch.linspace(-2, 4, 2001).exp().double()
    best = grid[torch.stack([F.cross_entropy(mean / one, y) for one in grid]).argmin()].item()
    found = networks.calibrate(batches)
    assert found is networks.calibration and found.own is None
    assert found.temperature == pytest.approx(best, rel=4e-3)
    assert best > 1.5
    assert nll(networks, batches) < before - 0.1
    torch.testing.assert_close(networks.predict(x).mean, (mean / found.temperature).softmax(-1))


def test_members_may_have_temperatures_of_their_own():
    networks, batches = ensemble(), labelled()
    networks.calibrate(batches, members=True)
    x, y = (torch.cat(one) for one in zip(*batches, strict=True))
    logits = networks.members(x)
    own = torch.tensor([fit_classes(one.log_softmax(-1), y) for one in logits]).double()
    torch.testing.assert_close(networks.calibration.own, own, rtol=1e-6, atol=0)
    tempered = (logits / own[:, None, None]).softmax(-1)
    prediction = networks.predict(x)
    torch.testing.assert_close(prediction.members, tempered)
    degree = fit_classes(tempered.mean(0).log(), y)
    assert networks.calibration.temperature == pytest.approx(degree, rel=1e-6)
    assert own.std() > 0.01 and degree != 1


@pytest.mark.parametrize("members", [False, True])
def test_of_one_member_it_is_the_networks_own_temperature(members):
    networks, batches = ensemble(members=1), labelled()
    (network,) = networks.materialize()
    x, y = (torch.cat(one) for one in zip(*batches, strict=True))
    alone = fit_classes(network(x).log_softmax(-1), y)
    networks.calibrate(batches, members=members)
    torch.testing.assert_close(networks.predict(x).mean, (network(x) / alone).softmax(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("members", [False, True])
def test_of_numbers_the_likelihood_of_the_mixture_grows(members):
    networks, batches = ensemble(2), measured()
    x, y = (torch.cat(one) for one in zip(*batches, strict=True))

    def loss(prediction):
        mixture = torch.distributions.Normal(prediction.means, prediction.variances.sqrt())
        return -(mixture.log_prob(y[:, None]).logsumexp(0) - math.log(4)).mean().item()

    plain = networks.predict(x, **REGRESSION)
    found = networks.calibrate(batches, members=members, **REGRESSION)
    fitted = networks.predict(x)
    assert loss(fitted) < loss(plain) - 0.1
    torch.testing.assert_close(fitted.mean, plain.mean)
    if not members:
        torch.testing.assert_close(fitted.total, found.temperature * plain.total)
        torch.testing.assert_close(fitted.epistemic / fitted.total, plain.epistemic / plain.total)


def test_maps_are_calibrated_by_their_pixels_without_those_ignored():
    torch.manual_seed(0)
    networks = Hypernet(nn.Conv2d(1, 3, 1).double(), execution="loop").eval().ensemble(3)
    x = torch.randn(4, 1, 5, 6).double()
    y = torch.distributions.Categorical(logits=networks.members(x).mean(0).movedim(1, -1) / 3).sample()
    y[:, 0] = -100
    networks.calibrate([(x, y)])
    logs = networks.members(x).softmax(2).mean(0).log()
    flat, labels = logs.movedim(1, -1)[:, 1:].reshape(-1, 3), y[:, 1:].reshape(-1)
    assert networks.calibration.temperature == pytest.approx(fit_classes(flat, labels), rel=1e-6)
    with pytest.raises(ValueError, match="no labels but -100"):
        networks.calibrate([(x, torch.full_like(y, -100))])


@pytest.mark.parametrize("mode", [True, False])
def test_nothing_else_of_the_ensemble_changes(mode):
    networks = ensemble(norm=True).train(mode)
    state, x = copy.deepcopy(networks.state_dict()), labelled()[0][0]
    before = networks.eval()(x)
    networks.train(mode)
    networks.calibrate(labelled(of=networks.eval()))
    networks.train(mode).conform(labelled(seed=2))
    assert networks.training is mode and networks.target.training is mode
    after = networks.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    assert {name.partition(".")[0] for name in set(after) - set(state)} == {"calibration"}
    assert torch.equal(networks.eval()(x), before)


def test_other_statistics_need_another_calibration():
    networks = ensemble(norm=True)
    networks.calibrate(labelled(of=networks))
    with pytest.warns(UserWarning, match="calibrated with other norm statistics: calibrate it again"):
        networks.update_statistics([noise(32, 5) + 1])
    assert not networks.calibration.fitted


def test_how_batches_hold_inputs_and_targets_may_be_said():
    networks = ensemble()
    plain = networks.calibrate(labelled()).temperature
    named = [{"image": x, "kind": y} for x, y in labelled()]
    found = networks.calibrate(named, inputs=lambda batch: batch["image"], targets=lambda batch: batch["kind"])
    assert found.temperature == plain
    assert networks.calibrate(labelled() * 2, batches=4).temperature == plain
    with pytest.raises(ValueError, match="must end with its targets; or pass targets="):
        networks.calibrate(named)


def test_an_error_leaves_the_mode_as_it_was():
    networks = ensemble(norm=True).train()
    (x, y), *_ = labelled()
    with pytest.raises(ValueError, match="labels must lie in") as told:
        networks.calibrate([(x, y), (x, y + 5)])
    assert networks.training and networks.target.training, told


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_calibrated_ensemble_is_traced_and_exported_as_before():
    networks, x = ensemble(), noise(5, 1)
    expected = networks(x)
    networks.calibrate(labelled())
    torch.testing.assert_close(torch.jit.trace(networks, x)(x), expected)
    torch.testing.assert_close(torch.export.export(networks, (x,), strict=False).module()(x), expected)
    assert not [name for name, _ in networks.named_buffers() if "calibration" in name]


def test_gradients_reach_the_inputs():
    networks = ensemble()
    networks.calibrate(labelled())
    x = noise(5, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(networks.predict(x).epistemic.sum(), x)
    moved = torch.zeros_like(x)
    moved[2, 1] = 1e-6
    ends = [networks.predict(x.detach() + sign * moved).epistemic.sum() for sign in (1, -1)]
    assert gradient[2, 1].item() == pytest.approx((ends[0] - ends[1]).item() / 2e-6, rel=1e-4, abs=1e-9)


# Conformal sets


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("score", ["least", "adaptive"])
def test_sets_of_classes_hold_the_label_as_often_as_promised(score, level):
    networks = ensemble()
    networks.calibrate(labelled(seed=3))
    held, count, draws = 0.0, 100, 60
    for seed in range(draws):
        networks.conform(labelled(count, 100 + seed), score=score)
        x, y = (torch.cat(one) for one in zip(*labelled(count, 1000 + seed), strict=True))
        held += networks.predict(x).sets(level).gather(1, y[:, None]).double().mean().item() / draws
    error = math.sqrt(level * (1 - level) * 2 / count / draws)
    assert held > level - 4 * error
    if score == "least":  # whose scores have no ties
        assert held < level + 1 / (count + 1) + 4 * error


@pytest.mark.parametrize("options", [REGRESSION, {"task": "regression"}, {**REGRESSION, "score": "absolute"}])
def test_intervals_of_numbers_hold_them_as_often_as_promised(options):
    outputs = 1 if "variance" not in options else 2
    networks = ensemble(outputs)
    held, count, draws, level = 0.0, 100, 60, 0.8
    for seed in range(draws):
        networks.conform(measured(count, 100 + 2 * seed), **options)
        x, y = (torch.cat(one) for one in zip(*measured(count, 1001 + 2 * seed), strict=True))
        low, high = networks.predict(x).sets(level)
        held += ((y[:, None] >= low) & (y[:, None] <= high)).double().mean().item() / draws
    error = math.sqrt(level * (1 - level) * 2 / count / draws)
    assert abs(held - level - 0.5 / (count + 1)) < 4 * error + 0.5 / (count + 1)


def test_every_output_of_a_regression_has_its_own_scores():
    networks = ensemble(4)
    networks.conform([(x, y * torch.tensor([1.0, 10.0])) for x, y in measured(outputs=2)], **REGRESSION)
    assert networks.calibration.conformal.scores.shape == (200, 2)
    low, high = networks.predict(noise(5, 9)).sets(0.9)
    half = (high - low) / 2 / networks.predict(noise(5, 9)).std
    torch.testing.assert_close(half, networks.calibration.conformal.threshold(0.9).expand(5, 2))


def test_the_threshold_is_the_order_statistic_of_the_promise():
    scores = torch.arange(1.0, 10.0).double()[:, None]
    conformal = Conformal("least", scores)
    for level, expected in ((0.1, 1), (0.11, 2), (0.5, 5), (0.9, 9), (0.91, math.inf)):
        assert conformal.threshold(level).item() == expected
    with pytest.raises(ValueError, match="level must lie"):
        conformal.threshold(1)


def test_too_few_examples_give_sets_of_everything():
    networks = ensemble()
    networks.conform(labelled(6))
    assert networks.predict(noise(5, 2)).sets(0.9).all()
    numbers = ensemble(2)
    numbers.conform(measured(6), **REGRESSION)
    low, high = numbers.predict(noise(5, 2)).sets(0.9)
    assert low.isneginf().all() and high.isposinf().all()


def test_adaptive_sets_are_those_of_a_loop():
    networks = ensemble()
    networks.conform(labelled(), score="adaptive")
    prediction = networks.predict(noise(20, 4))
    bound = networks.calibration.conformal.threshold(0.7).item()
    for row, found in zip(prediction.mean, prediction.sets(0.7), strict=True):
        expected = [sum(one for one in row.tolist() if one >= share) <= bound + 1e-12 for share in row.tolist()]
        assert found.tolist() == expected


def test_calibrating_anew_forgets_the_scores_which_depend_on_it():
    networks = ensemble()
    networks.calibrate(labelled())
    degree = networks.calibration.temperature
    networks.conform(labelled(seed=2))
    assert networks.calibration.temperature == degree and networks.calibration.conformal is not None
    networks.calibrate(labelled())
    assert networks.calibration.conformal is None


# Kept


@pytest.fixture(params=["classes", "members", "numbers", "noise"])
def calibrated(request):
    if request.param in ("classes", "members"):
        networks = ensemble()
        networks.calibrate(labelled(), members=request.param == "members")
        networks.conform(labelled(seed=2), score="adaptive")
    else:
        options = REGRESSION if request.param == "numbers" else {"task": "regression", "variance": 0.5}
        networks = ensemble(2 if request.param == "numbers" else 1)
        networks.calibrate(measured(), members=True, **options)
        networks.conform(measured(seed=5))
    return networks


def outputs_of(networks):
    return networks.members(noise(2, 3)).shape[-1]


def alike(one, other):
    x = noise(7, 8)
    first, second = one.predict(x), other.predict(x)
    sets = zip(first.sets(0.8), second.sets(0.8), strict=True)
    same = all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("mean", "total", "aleatoric"))
    return same and all(torch.equal(a, b) for a, b in sets) and repr(one.calibration) == repr(other.calibration)


def test_files_and_copies_keep_it(calibrated, tmp_path):
    calibrated.save(tmp_path / "members")
    outputs = outputs_of(calibrated)
    loaded = Ensemble.load(tmp_path / "members", target(outputs))
    twin = ensemble(outputs)
    twin.load_state_dict(calibrated.state_dict())
    for other in (loaded, copy.deepcopy(calibrated), pickle.loads(pickle.dumps(calibrated)), calibrated[:], twin):
        assert other.calibration is not calibrated.calibration
        assert alike(calibrated, other)
    twin.load_state_dict({k: v for k, v in twin.state_dict().items() if not k.startswith("calibration")})
    assert not twin.calibration.fitted
    copy.deepcopy(calibrated).calibration.forget()
    assert calibrated.calibration.fitted


def test_other_types_of_numbers_leave_it_in_double_precision(calibrated):
    before = {name: value.clone() for name, value in calibrated.calibration.state_dict().items()}
    calibrated.float().half().float()
    after = calibrated.calibration.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert calibrated.predict(noise(3, 1).float()).mean.dtype == torch.float32


def test_a_part_keeps_the_members_own_temperatures_alone():
    networks = ensemble()
    networks.calibrate(labelled())
    networks.conform(labelled(seed=2))
    assert not networks[1:3].calibration.fitted
    networks.calibrate(labelled(), members=True)
    networks.conform(labelled(seed=2))
    part = networks[1:3].calibration
    assert torch.equal(part.own, networks.calibration.own[1:3])
    assert part.temperature == 1 and part.conformal is None
    assert "nothing" in repr(ensemble()[1:3].calibration)


DAMAGES = {
    "a temperature below 0": (lambda held: held["calibration.temperature"].neg_(), "temperature holds numbers that are out"),
    "too many temperatures": (
        lambda held: held.update({"calibration.own": torch.ones(9).double()}),
        "own holds 9 temperatures of 4 members",
    ),
    "no reading": (lambda held: held.pop("calibration.reading"), "calibration.reading is missing"),
    "another version": (lambda held: held["calibration.reading"].add_(1), "reading is .*, not of version 1"),
    "an unknown task": (lambda held: held["calibration.reading"][1:2].fill_(7), "which names no way to read outputs"),
    "scores of numbers": (lambda held: held["calibration.reading"][4:].fill_(3), "which names no way to read outputs"),
    "scores without a kind": (
        lambda held: held["calibration.reading"][4:].fill_(0),
        "reading and scores do not belong together",
    ),
    "a noise of classes": (lambda held: held["calibration.noise"].fill_(1), "noise is no variance"),
    "scores in no order": (lambda held: held["calibration.scores"].copy_(held["calibration.scores"].flip(0)), "not in order"),
    "no scores": (lambda held: held.update({"calibration.scores": torch.zeros(0, 1).double()}), "scores are none"),
    "single precision": (
        lambda held: held.update({"calibration.temperature": torch.ones(())}),
        r"temperature is torch.float32 \(\)",
    ),
    "a name of nothing": (lambda held: held.update({"calibration.more": torch.ones(3)}), "calibration.more is unknown"),
    "NaN": (lambda held: held["calibration.scores"].fill_(math.nan), "calibration.scores holds NaN"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_calibration_is_refused(name, tmp_path):
    change, message = DAMAGES[name]
    networks = ensemble()
    networks.calibrate(labelled())
    networks.conform(labelled(seed=2))
    networks.save(tmp_path)
    held = load_file(tmp_path / "ensemble.safetensors")
    change(held)
    save_file(held, tmp_path / "ensemble.safetensors")
    recipe = json.loads((tmp_path / "ensemble.json").read_text())
    recipe["tensors"] = listed(held)
    recipe["checksum"] = zlib.crc32((tmp_path / "ensemble.safetensors").read_bytes())
    (tmp_path / "ensemble.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=message) as told:
        Ensemble.load(tmp_path, target())
    assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)


def test_a_state_that_is_damaged_is_refused():
    networks = ensemble()
    networks.calibrate(labelled())
    state = networks.state_dict()
    state["calibration.temperature"] = torch.tensor(-1.0).double()
    with pytest.raises(RuntimeError, match="calibration.temperature holds numbers that are out of range"):
        ensemble().load_state_dict(state)


def test_a_file_without_calibration_is_what_it_was(tmp_path):
    ensemble().save(tmp_path)
    assert not any(name.startswith("calibration") for name in load_file(tmp_path / "ensemble.safetensors"))
    assert not Ensemble.load(tmp_path, target()).calibration.fitted


# Refusals


def test_what_can_not_be_calibrated_is_told():
    networks, batches = ensemble(), labelled()
    with pytest.raises(ValueError, match="the loader is empty"):
        networks.calibrate([])
    with pytest.raises(TypeError, match="must give batches"):
        networks.calibrate(3)
    with pytest.raises(TypeError, match="targets must be a function that gives the targets of a batch, not 3"):
        networks.calibrate(batches, targets=3)
    with pytest.raises(TypeError, match="targets of a batch must be a tensor, not a list"):
        networks.calibrate([(batches[0][0], [0] * 50)])
    with pytest.raises(ValueError, match="members must be true or false, not 'some'"):
        networks.calibrate(batches, members="some")
    with pytest.raises(ValueError, match=r"labels must be \(50,\), not \(49,\)"):
        networks.calibrate([(batches[0][0], batches[0][1][1:])])
    with pytest.raises(ValueError, match="labels must lie in 0 to 2, not 0 to 5"):
        networks.calibrate([(batches[0][0], torch.arange(50) % 6)])
    with pytest.raises(TypeError, match="labels must be integers"):
        networks.calibrate([(batches[0][0], torch.rand(50))])
    with pytest.raises(ValueError, match="means alone have no likelihood: name variance="):
        ensemble(1).calibrate(measured(), task="regression")
    with pytest.raises(ValueError, match=r"targets must be \(50, 1\), as the means are, not \(50, 2\)"):
        ensemble(2).calibrate(measured(outputs=2), **REGRESSION)
    with pytest.raises(ValueError, match="score must be one of 'least', 'adaptive', not 'scaled'"):
        networks.conform(batches, score="scaled")
    with pytest.raises(ValueError, match="a predicted standard deviation is 0"):
        ensemble(1, members=1).conform(measured(), task="regression", score="scaled")
    assert not networks.calibration.fitted


def test_outputs_are_read_as_they_were_calibrated():
    networks = ensemble(2)
    networks.calibrate(measured(), **REGRESSION)
    assert networks.predict(noise(3, 1)).mean.shape == (3, 1)
    with pytest.raises(ValueError, match="was calibrated for .*leave task=, variance= and dim= out"):
        networks.predict(noise(3, 1), task="classification")
    with pytest.raises(ValueError, match="was calibrated for"):
        networks.conform(measured(), task="regression", variance="std")
    labelled = [(x, (networks.members(x).mean(0).argmax(-1) + torch.arange(len(x)) % 3 // 2) % 2) for x, _ in measured()]
    networks.calibrate(labelled)  # a third of the labels are others than it says
    assert networks.predict(noise(3, 1)).mean.shape == (3, 2)
