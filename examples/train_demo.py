"""Trains the network of `octavo demo` and writes python/octavo/demo/digits.npz.

    python examples/train_demo.py [output.npz]

Needs scikit-learn for its handwritten digits. Takes about a minute on two cores.
"""

import pathlib
import sys

import numpy as np
import sklearn.datasets
import torch
from torch.nn import functional as F

from octavo.demo.digits import DigitsNet

HELD_OUT = 600
EPOCHS = 60


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Every image moved by -1, 0 or 1 pixel in either direction."""
    padded = F.pad(images, (1, 1, 1, 1))
    parts = [padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    choice = torch.randint(9, (len(images),))
    return torch.stack(parts)[choice, torch.arange(len(images))]


def main(path: pathlib.Path) -> None:
    torch.manual_seed(0)
    digits = sklearn.datasets.load_digits()
    pixels, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:HELD_OUT], order[HELD_OUT:]
    images = torch.from_numpy(pixels.astype(np.float32) / 16)[:, None]
    targets = torch.from_numpy(labels.astype(np.int64))

    model = DigitsNet()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.from_numpy(train)[torch.randperm(len(train))].split(64):
            loss = F.cross_entropy(model(shifted(images[batch])), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = (model(images[test]).argmax(1) == targets[test]).float().mean()
    print(f"{100 * right:.2f} % of {HELD_OUT} held-out images, training loss {loss:.4f}")
    state = {f"model.{name}": value.numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(
        path, **state, calibration=pixels[train[:128]], images=pixels[test], labels=labels[test]
    )
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    default = pathlib.Path(__file__).parents[1] / "python" / "octavo" / "demo" / "digits.npz"
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
