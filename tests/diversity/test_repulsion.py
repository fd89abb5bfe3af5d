import pytest
import torch

from lightning_hypernet.diversity import Repulsion
from lightning_hypernet.diversity.repulsion import repulsion


def slow_force(points, method, eta):
    """The forces of the papers, pair by pair, with the gradients of the kernel written out by autograd."""
    count = len(points)
    squares = [float((points[i] - points[j]).square().sum()) for i in range(count) for j in range(count) if i != j]
    h2 = torch.tensor(squares).double().median() / (2 * torch.tensor(count + 1.0).log())

    def kernel(x, y):
        return (-(x - y).square().sum() / (2 * h2)).exp()

    def gradient(x, y):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(kernel(x, y), x)[0]

    matrix = torch.stack([torch.stack([kernel(x, y) for y in points]) for x in points])
    forces = []
    for i in range(count):
        push = -sum(gradient(points[i], y) for y in points)
        if method == "svgd":
            forces.append(push / count)
        elif method == "kde":
            forces.append(push / matrix[i].sum())
        else:
            inverse = torch.linalg.inv(matrix + eta * torch.eye(count).double())
            forces.append(
                sum(inverse[i, j] * sum(gradient(points[l], points[j]) for l in range(count)) for j in range(count))  # noqa: E741
            )
    return torch.stack(forces)


@pytest.mark.parametrize("method", ["kde", "svgd", "gfsf"])
def test_gradients_are_the_forces_of_the_papers(method):
    torch.manual_seed(0)
    points = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    repulsion(points, method, 0.1).backward()
    expected = -slow_force(points.detach(), method, 0.1) / len(points)
    assert torch.allclose(points.grad, expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["kde", "svgd", "gfsf"])
def test_it_pushes_apart(method):
    torch.manual_seed(0)
    points = torch.randn(6, 2, dtype=torch.float64)
    start = torch.pdist(points).mean()
    for _ in range(20):
        points.requires_grad_()
        (gradient,) = torch.autograd.grad(repulsion(points, method), points)
        points = (points - gradient).detach()
    assert torch.pdist(points).mean() > start


def test_coinciding_points_are_finite():
    points = torch.ones(4, 3, requires_grad=True)
    for method in ("kde", "svgd", "gfsf"):
        value = repulsion(points, method)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(points.grad).all()


def test_wrong_arguments_are_told():
    with pytest.raises(ValueError, match="method must be"):
        Repulsion("hmc")
    with pytest.raises(ValueError, match="space must be"):
        Repulsion(space="codes")
    with pytest.raises(ValueError, match="two networks or more, not 1"):
        repulsion(torch.zeros(1, 3), "kde")
