"""The targets of the reproductions, but for ResNet-32, which has a file of its own.

ReLU after pooling is the same function as before it, at a quarter of the work.
"""

from torch import nn


def digits() -> nn.Sequential:
    """For scikit-learn's 8x8 digits: 4,890 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def mnist() -> nn.Sequential:
    """The paper's MNIST target: 20,018 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(32, 16, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(784, 8),
        nn.ReLU(),
        nn.Linear(8, 10),
    )


def lenet() -> nn.Sequential:
    """The paper's LeNet for CIFAR-10: 62,006 weights, which leave no room for padding."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(6, 16, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


TARGETS = {"digits": digits, "mnist": mnist, "cifar10": lenet}
