"""Estimators of gradients: unbiased against exact gradients, on Bernoulli, categorical and Gaussian latents."""

import functools

import pytest
import torch
from torch import nn

from lightning_hypernet.estimators import (
    Control,
    MovingAverage,
    controlled,
    leave_one_out,
    relaxed_bernoulli,
    relaxed_categorical,
    score_function,
    square,
)

N = 40_000
BOUND = 4.5
"""Standard errors that a mean may be away from the exact gradient."""
SOFT = functools.partial(torch.softmax, dim=-1)


def away(gradients, exact):
    """Standard errors between the mean of gradients ``(n, k)`` and the exact one ``(k,)``, at most."""
    return ((gradients.mean(0) - exact).abs() / (gradients.std(0) / len(gradients) ** 0.5)).max().item()


def rows(parameter, n=N):
    return parameter.detach().expand(n, *parameter.shape).clone().requires_grad_()


def critic(inputs):
    return nn.Sequential(nn.Linear(inputs, 10), nn.Tanh(), nn.Linear(10, 1)).double()


def far(b):
    return (b - 3.0).square().reshape(len(b), -1).sum(1)


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("kind", ["rebar", "relax", "critic alone"])
def test_relax_of_bernoulli_latents(kind, coupled):
    control = {"rebar": Control(far), "relax": Control(far, critic(2)), "critic alone": Control(critic=critic(2))}[
        kind
    ].double()
    own = rows(torch.tensor([0.4, -1.0]).double())
    drawn = relaxed_bernoulli(own, coupled=coupled)
    (gradients,) = controlled(far(drawn.draw), drawn.log_density, control(drawn.free), [own], control(drawn.conditional))
    p = own[0].detach().sigmoid()
    exact = p * (1 - p) * (4.0 - 9.0)
    assert away(gradients, exact) < BOUND
    assert away(-gradients, exact) > 20


def test_both_relaxed_draws_are_of_the_same_distribution_and_fit_the_draw():
    logits = torch.tensor([0.7, -0.3]).double().expand(N, 2)
    drawn = relaxed_bernoulli(logits, coupled=False)
    assert torch.equal(drawn.free > 0, drawn.draw > 0)
    assert torch.equal(drawn.conditional > 0, drawn.draw > 0)
    assert drawn.draw.mean(0).sub(logits[0].sigmoid()).abs().max() < 4.5 * 0.5 / N**0.5
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).double()
    torch.testing.assert_close(drawn.conditional.quantile(quantiles, 0), drawn.free.quantile(quantiles, 0), rtol=0, atol=0.12)
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(drawn.draw).sum(1)
    torch.testing.assert_close(drawn.log_density, expected)


def test_categorical_draws_likewise():
    logits = torch.tensor([[0.7, -0.3, 0.1], [2.0, 0.0, 0.0]]).double().expand(N, 2, 3)
    drawn = relaxed_categorical(logits, coupled=False)
    for relaxed in (drawn.free, drawn.conditional):
        assert torch.equal(relaxed.argmax(-1), drawn.draw.argmax(-1))
    assert drawn.draw.mean(0).sub(logits[0].softmax(-1)).abs().max() < 4.5 * 0.5 / N**0.5
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).double()
    torch.testing.assert_close(drawn.conditional.quantile(quantiles, 0), drawn.free.quantile(quantiles, 0), rtol=0, atol=0.12)
    expected = torch.distributions.OneHotCategorical(logits=logits).log_prob(drawn.draw).sum(1)
    torch.testing.assert_close(drawn.log_density, expected)


@pytest.mark.parametrize("coupled", [True, False])
def test_relax_of_categorical_latents(coupled):
    costs = torch.tensor([1.0, 4.0, -2.0]).double()

    def cost(b):
        return (b @ costs).square()

    logits = torch.tensor([0.5, -0.5, 0.2]).double()
    p = logits.softmax(0)
    exact = p * (costs.square() - (p * costs.square()).sum())
    own, control = rows(logits), Control(cost, critic(3), SOFT).double()
    drawn = relaxed_categorical(own, coupled=coupled)
    (gradients,) = controlled(cost(drawn.draw), drawn.log_density, control(drawn.free), [own], control(drawn.conditional))
    assert away(gradients, exact) < BOUND
    assert away(-gradients, exact) > 20


@pytest.mark.parametrize("relaxed", [relaxed_bernoulli, relaxed_categorical])
def test_coupled_draws_are_the_same_number_and_lower_the_variance(relaxed):
    own, control = rows(torch.tensor([0.4, -1.0, 3.0]).double()), Control(critic=critic(3))
    variances = []
    for coupled in (True, False):
        drawn = relaxed(own, coupled=coupled)
        assert torch.allclose(drawn.free, drawn.conditional, atol=1e-6) == coupled
        values = torch.zeros(N).double()
        (found,) = controlled(values, drawn.log_density * 0, control(drawn.free), [own], control(drawn.conditional))
        variances.append(found.var(0).sum())
    assert variances[0] < 0.8 * variances[1]


def test_lax_of_a_gaussian():
    """E [b > 0] of b ~ N(m, s^2) is the normal distribution function of m / s."""
    m, s = torch.tensor(0.3).double(), 0.7
    own, control = rows(m), critic(1)
    b = own + s * torch.randn(N).double()
    log_density = torch.distributions.Normal(own, s).log_prob(b.detach())
    (gradients,) = controlled((b > 0).double(), log_density, control(b[:, None])[:, 0], [own])
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(m / s).exp() / s
    assert away(gradients[:, None], exact[None]) < BOUND
    assert away(-gradients[:, None], exact[None]) > 20


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "moving_average"])
def test_score_functions(baseline):
    """Of four draws at a time."""
    torch.manual_seed(1)
    logits, average = torch.tensor(0.4).double().requires_grad_(), MovingAverage()
    found = []
    for _ in range(400):
        draws = torch.bernoulli(logits.detach().sigmoid().expand(4))
        log_density = torch.distributions.Bernoulli(logits=logits).log_prob(draws)
        values = far(draws[:, None])
        constant = {"none": 0.0, "leave_one_out": leave_one_out(values), "moving_average": average.value}[baseline]
        average.add(values.mean().item())
        loss = score_function(values, log_density, constant)
        assert loss.item() == pytest.approx(values.mean().item())
        found.append(torch.autograd.grad(loss, logits)[0])
    p = logits.detach().sigmoid()
    gradients, exact = torch.stack(found)[:, None], (p * (1 - p) * (4.0 - 9.0))[None]
    assert away(gradients, exact) < BOUND
    assert away(-gradients, exact) > 10


def test_the_square_trains_a_critic():
    torch.manual_seed(0)
    s, control = 0.7, critic(1)
    optimizer = torch.optim.Adam(control.parameters(), lr=0.02)
    variances = []
    for _ in range(120):
        own = rows(torch.tensor(0.3).double(), 100)
        b = own + s * torch.randn(100).double()
        log_density = torch.distributions.Normal(own, s).log_prob(b.detach())
        gradient = controlled((b > 0).double(), log_density, control(b[:, None])[:, 0], [own])
        variances.append(gradient[0].var().item())
        for one, grad in zip(control.parameters(), torch.autograd.grad(square(gradient) / 100, list(control.parameters())),
                             strict=True):  # fmt: skip
            one.grad = grad
        optimizer.step()
    assert sum(variances[-20:]) < 0.5 * sum(variances[:20])


def test_leave_one_out_is_the_mean_of_the_others():
    values = torch.tensor([1.0, 2.0, 6.0])
    assert leave_one_out(values).tolist() == pytest.approx([4.0, 3.5, 1.5])
    shares = torch.tensor([0.5, 0.25, 0.25])
    assert leave_one_out(values, shares).tolist() == pytest.approx([4.0, 8 / 3, 4 / 3])
    with pytest.raises(ValueError, match="take a moving average"):
        leave_one_out(values[:1])


def test_a_moving_average_has_no_bias_of_its_start():
    average = MovingAverage(0.5)
    assert average.value == 0
    average.add(4.0)
    assert average.value == 4.0
    average.add(1.0)
    assert average.value == pytest.approx(2.0)
    assert MovingAverage(0.5).load(average.state()).value == average.value
    with pytest.raises(ValueError, match="a moving average's count must be a whole number"):
        MovingAverage().load({"total": 1.0})
    with pytest.raises(ValueError, match="decay must lie in 0 to 1"):
        MovingAverage(2)


def test_what_is_refused():
    one = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"must all be \(n,\), not \(3,\), \(3, 1\)"):
        controlled(one, one, one[:, None], [one])
    with pytest.raises(ValueError, match="a function or a critic"):
        Control()
    with pytest.raises(ValueError, match="temperature must be a number, above 0"):
        Control(far, temperature=0)
