"""The usual recipe in PyTorch: what one would write there instead.

torchvision's architectures, `ImageFolder` and its transforms in two worker processes, channels
last, bfloat16 autocast, the same layers frozen and unfrozen as in this package. It needs torch and
torchvision and nothing else of this project; the weights are random, for the time does not depend
on their values.
"""

import time
from pathlib import Path

import torch
from harness import start
from torch import nn
from torchvision import datasets, models, transforms

SIZE, BATCH, WORKERS = 224, 32, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parts(backbone: str) -> tuple[nn.Module, nn.Module, int]:
    """Return the layers up to this package's boundary, those behind it, and the features."""
    if backbone == "vgg16":
        layers = models.vgg16(weights=None).features
        return layers[:24], layers[24:], 512
    if backbone == "mobilenetv2":
        layers = models.mobilenet_v2(weights=None).features
        return layers[:7], layers[7:], 1280
    net = models.resnet50(weights=None)
    below = nn.Sequential(
        net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3
    )
    return below, net.layer4, 2048


def loaders(root: str) -> dict[str, torch.utils.data.DataLoader]:
    """Read the three splits, the training images augmented."""
    plain = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augmented = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, (0.5, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(36),
            transforms.ColorJitter(0.2, 0.3, 0.2, 0.015),
            *plain,
        ]
    )
    square = transforms.Compose([transforms.Resize(SIZE), transforms.CenterCrop(SIZE), *plain])
    return {
        split: torch.utils.data.DataLoader(
            datasets.ImageFolder(Path(root) / split, augmented if split == "train" else square),
            BATCH,
            shuffle=split == "train",
            num_workers=WORKERS,
            persistent_workers=True,
        )
        for split in ("train", "validation", "test")
    }


def train(root: str, backbone: str, epochs: int) -> dict[str, list[float]]:
    """Train so many epochs in each phase; return seconds of each epoch and of the evaluation."""
    torch.manual_seed(0)
    below, above, features = parts(backbone)
    data = loaders(root)
    head = nn.Linear(features, len(data["train"].dataset.classes))
    pooled = nn.Sequential(above, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2))
    model = nn.Sequential(below, pooled, head).to(memory_format=torch.channels_last)
    model.requires_grad_(False)
    seconds = {}
    for phase, trained, rate in (("head", [head], 1e-3), ("fine-tuning", [above, head], 1e-5)):
        for module in trained:
            module.requires_grad_(True)
        _freeze_norms(model)
        optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), rate)
        seconds[phase] = []
        for _ in range(epochs):
            begin = time.perf_counter()
            model.train()
            _freeze_norms(model)
            for x, y in data["train"]:
                optimizer.zero_grad()
                nn.functional.cross_entropy(_forward(model, x), y).backward()
                optimizer.step()
            _evaluate(model, data["validation"])
            seconds[phase].append(time.perf_counter() - begin)
    begin = time.perf_counter()
    _evaluate(model, data["test"])
    return seconds | {"test": [time.perf_counter() - begin]}


def _freeze_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)


def _forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(x.to(memory_format=torch.channels_last))


@torch.no_grad()
def _evaluate(model: nn.Module, data: torch.utils.data.DataLoader) -> float:
    model.eval()
    return sum((_forward(model, x).argmax(1) == y).sum().item() for x, y in data)


if __name__ == "__main__":
    start(lambda: None, train)
