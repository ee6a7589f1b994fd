"""CIFAR-10 as examples train on it: augmented batches, held-out images, and the networks with weights for it.

``resnet20`` takes the 32 px images, ``probe`` (a MobileNetV2 of which only the classifier was fitted) the same ones
scaled to 96 px.
"""

import pathlib
import sys

import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "support"))
from networks import cifar, data_folder, mobilenet_probe, resize96, resnet20

__all__ = [
    "NETWORKS",
    "Images",
    "Labelled",
    "accuracy",
    "data_folder",
    "float_network",
    "test_images",
]

NETWORKS = {"resnet20": (resnet20, lambda x: x), "probe": (mobilenet_probe, resize96)}
"""Name: the function that builds the network, and what becomes of an image of 32 px."""
HELD_OUT = 5000


def float_network(folder, name):
    """The network with the float weights that are given."""
    return NETWORKS[name][0](folder)


class Labelled:
    """Images and labels in memory; scaled for the network as batches are drawn, so that memory stays small."""

    def __init__(self, x, y, network):
        self.x, self.y, self.scaled = x, y, NETWORKS[network][1]

    def __len__(self):
        return len(self.y)

    def inputs(self, count, batch=128):
        """Batches of the first images, as calibration takes them."""
        return [self.scaled(x) for x in self.x[:count].split(batch)]

    def batches(self, batch):
        """Inputs and labels of all images, in order."""
        for x, y in zip(self.x.split(batch), self.y.split(batch), strict=True):
            yield self.scaled(x), y


class Images:
    """Training images, normalised: held-out ones, plain ones, and those padded by 4 that `epoch` crops and flips."""

    def __init__(self, folder, network, limit=0):
        parts = [cifar(folder, "train", i, i + 10000) for i in range(0, 50000, 10000)]
        x, y = (torch.cat(t) for t in zip(*parts, strict=True))
        order = torch.randperm(50000, generator=torch.Generator().manual_seed(20))
        held, train = order[:HELD_OUT], order[HELD_OUT:]
        if limit:
            held, train = held[: max(limit // 8, 500)], train[:limit]
        self.held_out = Labelled(x[held], y[held], network)
        self.plain = Labelled(x[train], y[train], network)
        self.padded = F.pad(self.plain.x, (4, 4, 4, 4))  # Zero is the mean colour.

    def __len__(self):
        return len(self.plain)

    def epoch(self, batch, generator):
        """Batches of an epoch in random order; one crop offset and one flip for each image."""
        order = torch.randperm(len(self), generator=generator)
        lines = torch.arange(32)
        for index in order.split(batch):
            if len(index) < batch:
                return
            n = len(index)
            top, left = torch.randint(9, (2, n), generator=generator)
            columns = lines + left[:, None]
            flipped = torch.rand(n, generator=generator) < 0.5
            columns = torch.where(flipped[:, None], columns.flip(1), columns)
            rows = lines + top[:, None]
            images = self.padded[
                index[:, None, None, None],
                torch.arange(3)[None, :, None, None],
                rows[:, None, :, None],
                columns[:, None, None, :],
            ]
            yield self.plain.scaled(images), self.plain.y[index]


def test_images(folder, network, count):
    """The first of the 10,000 test images."""
    return Labelled(*cifar(folder, "test", 0, count), network)


@torch.no_grad()
def accuracy(model, labelled, batch=250):
    """Percent right, in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in labelled.batches(batch))
    for module, mode in modes.items():
        module.training = mode
    return 100 * right / len(labelled)
