"""The mutual information gap against tables that are counted by hand and channels that are known."""

import importlib
import math

import pytest
import torch
from torch.distributions import Normal

from lightning_hypernet.analysis import mutual_information_gap


def normals(n=3000, d=3, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_categories_are_counted_exactly():
    table = {(0, 0): 30, (0, 1): 10, (1, 0): 20, (1, 1): 40}
    rows = torch.tensor([pair for pair, count in table.items() for _ in range(count)])
    factor, other = rows[:, 1], torch.arange(100) % 2
    exact = sum(
        n / 100 * math.log(n / 100 / ((rows[:, 0] == a).sum() * (factor == b).sum() / 10_000)) for (a, b), n in table.items()
    )
    entropy = math.log(2)
    found = mutual_information_gap(torch.stack([other, rows[:, 0]], 1), {"factor": factor})
    assert found.entropies.item() == pytest.approx(entropy)
    assert found.matrix[1, 0].item() == pytest.approx(exact, abs=1e-6)
    assert found.best.tolist() == [1]
    assert found.mean == pytest.approx((exact - found.matrix[0, 0].item()) / entropy)


def test_a_code_that_says_a_factor_alone_has_the_gap_one_and_a_copied_code_none():
    factor = torch.arange(1200) % 3
    noise = torch.randint(0, 3, (1200,), generator=torch.Generator().manual_seed(0))
    alone = mutual_information_gap(torch.stack([factor, noise], 1), {"factor": factor})
    twice = mutual_information_gap(torch.stack([factor, 2 - factor], 1), {"factor": factor})
    assert alone.mean == pytest.approx(1, abs=0.01)
    assert twice.mean == pytest.approx(0, abs=1e-9)
    assert twice.shares.tolist() == [[pytest.approx(1.0)], [pytest.approx(1.0)]]


def test_the_entropy_is_that_of_the_values_found_and_not_the_log_of_their_number():
    factor = (torch.arange(1000) % 10 == 0).long() + 2 * (torch.arange(1000) == 3)
    found = mutual_information_gap(torch.stack([factor, torch.zeros_like(factor)], 1), {"rare": factor})
    shares = torch.tensor([0.899, 0.1, 0.001], dtype=torch.float64)
    assert found.entropies.item() == pytest.approx(torch.special.entr(shares).sum().item())
    assert found.entropies.item() < math.log(3) / 2
    assert found.mean == pytest.approx(1)


def test_the_information_of_a_noisy_latent_is_that_of_its_channel():
    source = torch.Generator().manual_seed(1)
    sign = torch.randint(0, 2, (4000,), generator=source)
    z = normals(4000)
    z[:, 1] += 2.0 * sign - 1
    grid = torch.linspace(-10, 10, 10_001, dtype=torch.float64)
    densities = torch.stack([Normal(mean, 1.0).log_prob(grid).exp() for mean in (-1.0, 1.0)])
    exact = torch.trapezoid((densities * (densities / densities.mean(0)).log()).mean(0), grid).item()
    found = mutual_information_gap(z, {"sign": sign})
    assert found.matrix[1, 0].item() == pytest.approx(exact, abs=0.04)
    assert found.matrix[[0, 2], 0].max() < 0.04
    assert found.mean == pytest.approx(exact / math.log(2), abs=0.08)


def test_real_factors_are_cut_into_bins_of_equal_shares():
    z = normals()
    found = mutual_information_gap(z, {"first": z[:, 0].exp(), "none": normals(seed=1)[:, 0]}, bins=8)
    torch.testing.assert_close(found.entropies, torch.full((2,), math.log(8), dtype=torch.float64))
    assert found.best[0] == 0
    assert found.gaps[0] == pytest.approx(1, abs=0.05)
    assert found.gaps[1] == pytest.approx(0, abs=0.03)
    assert found.mean == pytest.approx(found.gaps.mean().item())


def test_its_text_has_each_figure_beside_its_maximum():
    factor = torch.arange(600) % 3
    text = str(mutual_information_gap(torch.stack([factor, factor * 0], 1), {"kind": factor}))
    assert "at most 1" in text
    assert f"kind: latent 0 tells 1.099 nats, at most {math.log(3):.3f}; gap 1.000" in text


def test_it_draws_itself():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure, axes = mutual_information_gap(normals(100), {"one": normals(100)[:, 0], "two": torch.arange(100) % 2}).plot()
    assert [label.get_text().split("\n")[0] for label in axes.get_xticklabels()] == ["one", "two"]
    pyplot.close(figure)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    real = importlib.import_module

    def missing(name, *args):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install 'lightning_hypernet\[information\]'"):
        mutual_information_gap(normals(50), {"one": torch.arange(50) % 2})


@pytest.mark.parametrize(
    ("latents", "factors", "error", "says"),
    [
        ([1.0], {"a": torch.zeros(1)}, TypeError, "latents must be a tensor"),
        (normals(20, 1), {"a": torch.arange(20)}, ValueError, "two or more"),
        (normals(20) * math.nan, {"a": torch.arange(20)}, ValueError, "latents must be finite"),
        (normals(20), {}, ValueError, "and a factor"),
        (normals(2), {"a": torch.arange(2)}, ValueError, "more than neighbours=3 networks"),
        (normals(20), torch.arange(20), TypeError, "factors must be a mapping"),
        (normals(20), {"a": torch.arange(19)}, ValueError, r"the factor a must be finite, \(20,\)"),
        (normals(20), {"a": torch.ones(20)}, ValueError, "the factor a has one value only"),
        (normals(20), {"a": torch.full((20,), math.inf)}, ValueError, "the factor a must be finite"),
        (normals(20), {"a": list(range(20))}, TypeError, "the factor a must be a tensor"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(latents, factors, error, says):
    with pytest.raises(error, match=says):
        mutual_information_gap(latents, factors)
