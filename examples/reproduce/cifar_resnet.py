"""CIFAR-10, ResNet-32 with 466,906 weights, norm layers generated too: the paper's largest target."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import load
from lightning_hypernet import GeneratorConfig, HypernetCallback
from training import Classifier, arguments, fit


class Block(nn.Module):
    """Two convolutions beside a shortcut, which is projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet32() -> nn.Sequential:
    """Three stages of five blocks, 16, 32 and 64 channels wide."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for outputs in (16, 32, 64):
        for index in range(5):
            layers.append(Block(inputs, outputs, 2 if index == 0 and outputs > 16 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--images", type=int, default=256, help="of each network")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    pl.seed_everything(options.seed)
    steps = options.steps or 80_000
    train, _ = load("cifar10", options.data_dir, shift=4, mirror=True)
    if options.what == "paper":  # 100 latent numbers, generators 800 wide with skips; what the paper does not tell is ours
        module = Classifier(resnet32(), "adam", 1e-4, steps, "constant")
        chosen = {"latent_dim": 100, "generator": GeneratorConfig.paper("cifar_resnet32"), "diversity": {"entropy": 1e-3}}
    else:  # SGD as for one ResNet
        module = Classifier(resnet32(), "sgd", 0.1 / 128 * options.images, steps, weight_decay=5e-4)
        chosen = {"components": options.networks, "generator": {"gain": 0.05}, "gauge": "none"}
    example = torch.zeros(2, 3, 32, 32)
    callback = HypernetCallback(target="model", samples=options.networks, example_inputs=example, **chosen)
    folder = options.out / f"cifar_resnet_{options.what}_{options.seed}"
    fit(module, train, options.networks * options.images, folder, [callback])


if __name__ == "__main__":
    main()
