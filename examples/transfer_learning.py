"""A pretrained backbone learns new classes and few bits at once: ResNet-20 of CIFAR-10 reads digits.

    python examples/transfer_learning.py --bits 4 4

The backbone's float weights come from the folder that tests use (OCTAVO_DATA, or shared/data beside the
repository), the digits from scikit-learn. First the new head alone is fitted in float, then everything is
trained with fake-quantizers in place, then frozen. About a minute on two cores.
"""

import argparse
import pathlib
import sys

import numpy as np
import sklearn.datasets
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

import octavo

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
TEST = 500


def digits():
    """Images float32 [N, 3, 32, 32] of about unit variance, labels; the last TEST are for the end."""
    found = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x = torch.from_numpy(found.images[order].astype(np.float32))[:, None]
    x = F.interpolate((x - 4.9) / 6.0, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    return x.contiguous(), torch.from_numpy(found.target[order].astype(np.int64))


@torch.no_grad()
def accuracy(model, x, y):
    model.eval()
    return 100 * float(
        (torch.cat([model(part) for part in x.split(250)]).argmax(1) == y).float().mean()
    )


def fit(model, x, y, parameters, lr, epochs, what, after_step=lambda: None):
    optimizer = torch.optim.SGD(parameters, lr, momentum=0.9)
    steps = epochs * (len(x) // 64)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        order = torch.randperm(len(x)).split(64)[: len(x) // 64]
        for index in tqdm(order, desc=f"{what}, epoch {epoch + 1}", leave=False):
            loss = F.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cosine.step()
            after_step()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--bits", type=int, nargs=2, default=(4, 4), metavar=("WEIGHTS", "ACTIVATIONS")
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--floor", type=float, default=0.0, help="fail below this integer accuracy")
    args = parser.parse_args()
    torch.manual_seed(0)
    from networks import data_folder, resnet20

    x, y = digits()
    train, test = (x[:-TEST], y[:-TEST]), (x[-TEST:], y[-TEST:])
    model = resnet20(data_folder())
    model.linear = nn.Linear(64, 10)  # New classes: a new head.
    fit(model.eval(), *train, model.linear.parameters(), 0.1, 2, "head")
    print(f"float backbone as it was, new head: {accuracy(model, *test):.1f} %")

    bits = {"*": tuple(args.bits), "@first": (8, 8), "@last": (8, 8)}
    trainee = octavo.quantize(model, bits, data=[train[0][:256]], qat=True, progress=False)
    schedule = octavo.TrainingSchedule(trainee, args.epochs * (len(train[0]) // 64))
    trainee.train()
    fit(trainee, *train, trainee.parameters(), 0.02, args.epochs, "quantized", schedule.step)
    # Weights have moved far from the backbone's.
    octavo.reestimate_batch_norm(trainee, train[0].split(128))
    print(f"trainee with {bits['*']} bits, all of it trained: {accuracy(trainee, *test):.1f} %")

    final = octavo.freeze(trainee)
    found = octavo.verify(trainee, final, [test[0][:128]])
    right = accuracy(final, *test)
    report = octavo.report(final)
    print(f"frozen, in integers: {right:.1f} %, every site within one step: {found.holds}")
    print(f"memory: {report.float_bytes / 1024:.0f} KiB float, {report.bytes / 1024:.0f} KiB now")
    if right < args.floor:
        raise SystemExit(f"{right:.1f} % right, expected at least {args.floor} %")


if __name__ == "__main__":
    main()
