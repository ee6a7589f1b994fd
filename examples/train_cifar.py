"""Trains ResNet-20 on CIFAR-10 in few bits from float weights, freezes it and counts what the integers get right.

    python examples/train_cifar.py --bits 4 4 --minutes 60
    python examples/train_cifar.py --bits 4 4 --epochs 24 --minutes 0 --bf16 --weights w44.pt
    python examples/train_cifar.py --bits 3 3 --epochs 24 --minutes 0 --bf16 --start w44.pt --weights w33.pt

The first and the last layer have 8 bits, all others ``--bits`` (weights, activations). Widths of 2 bits come down
in steps: 4, 3, 2. The loss is cross entropy plus distillation from the float network's 8-bit form; the learning rate
follows a cosine. Choices (of recipes) are made on 5,000 held-out training images, which the given float weights have
seen: so no epoch is picked by them, the last one counts. The test images are looked at once, at the end.
With ``--checkpoint`` it goes on where it was stopped, with ``--start`` from what a wider network has learned
(``--weights``). ``--bf16`` computes convolutions in bfloat16: twice as fast where the CPU has it. Weights and images:
the folder that tests use (OCTAVO_DATA, or shared/data beside the repository).
"""

import argparse
import copy
import json
import math
import os
import pathlib
import sys
import time

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

import octavo

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "models"))
HELD_OUT = 5000


class Images:
    """CIFAR-10 in memory: normalised training images padded by 4, cropped and flipped as they are drawn."""

    def __init__(self, folder, limit=0):
        from networks import cifar

        parts = [cifar(folder, "train", i, i + 10000) for i in range(0, 50000, 10000)]
        x, y = (torch.cat(t) for t in zip(*parts, strict=True))
        order = torch.randperm(50000, generator=torch.Generator().manual_seed(20))
        held, train = order[:HELD_OUT], order[HELD_OUT:]
        if limit:
            held, train = held[: max(limit // 8, 500)], train[:limit]
        self.held_out = x[held], y[held]
        self.plain = x[train]
        self.padded = F.pad(self.plain, (4, 4, 4, 4))  # Zero is the mean colour.
        self.labels = y[train]

    def __len__(self):
        return len(self.labels)

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
            yield images, self.labels[index]


@torch.no_grad()
def accuracy(model, images, labels, batch=250):
    """Percent right, in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(images.split(batch), labels.split(batch), strict=True)
    )
    for module, mode in modes.items():
        module.training = mode
    return 100 * right / len(labels)


def widths_of(bits):
    """The way down to a width: 2 bits by way of 4 and 3, 3 by way of 4."""
    low = min(bits)
    return [bits] if low >= 4 else [tuple(max(b, w) for b in bits) for w in range(4, low - 1, -1)]


def optimizer_of(trainee, args):
    ranges = octavo.range_parameters(trainee)
    kept = {id(p) for p in ranges}
    weights = [p for p in trainee.parameters() if id(p) not in kept]
    decay = {2: 2.5e-5, 3: 5e-5}.get(min(args.bits), 1e-4)
    groups = [{"params": [p for p in weights if p.dim() > 1], "weight_decay": decay}]
    groups += [{"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0}]
    groups += [{"params": ranges, "weight_decay": 0.0}] if ranges else []
    return torch.optim.SGD(groups, args.lr, momentum=0.9, nesterov=True)


class Clock:
    """Seconds of training, those of earlier runs included."""

    def __init__(self, before=0.0):
        self.before, self.start = before, time.monotonic()

    def seconds(self):
        return self.before + time.monotonic() - self.start


def train(model, teacher, images, bits, share, args, state, log):
    """One width: returns the trainee."""
    calibration = list(images.plain[:1024].split(128))
    first_last = {"*": bits, "@first": (8, 8), "@last": (8, 8)}
    model = model.to(memory_format=torch.channels_last)  # A fifth faster than contiguous.
    trainee = octavo.quantize(
        model,
        first_last,
        data=calibration,
        qat=True,
        grid=args.grid,
        method=args.method,
        progress=False,
    )
    criterion = octavo.DistillationLoss(teacher, args.temperature)
    optimizer = optimizer_of(trainee, args)
    epochs = max(1, round(args.epochs * share)) if args.epochs else 10_000
    budget = 60 * args.minutes * share
    per_epoch = len(images) // args.batch
    schedule = octavo.TrainingSchedule(trainee, epochs * per_epoch, freeze_ranges=args.freeze_ranges,
                                       freeze_statistics=args.freeze_statistics)  # fmt: skip
    first, clock = 0, Clock()
    if state:
        trainee.load_state_dict(state["trainee"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first, clock = state["epoch"], Clock(state["seconds"])
    done = first * per_epoch
    generator = torch.Generator()
    for epoch in range(first, epochs):
        generator.manual_seed(1000 * args.seed + epoch + 100_000 * min(bits))
        torch.manual_seed(1000 * args.seed + epoch)
        trainee.train()
        total, count, begin = 0.0, 0, clock.seconds()
        bar = tqdm(images.epoch(args.batch, generator), total=per_epoch, leave=False,
                   desc=f"W{bits[0]}A{bits[1]} epoch {epoch + 1}", disable=args.quiet)  # fmt: skip
        out_of_time = False
        for x, y in bar:
            progress = max(done / (epochs * per_epoch), clock.seconds() / budget if budget else 0.0)
            out_of_time = progress >= 1.0
            if out_of_time:
                break
            warm = min(1.0, (done + 1) / args.warm_up) if args.warm_up else 1.0
            for group in optimizer.param_groups:
                group["lr"] = args.lr * warm * 0.5 * (1 + math.cos(math.pi * progress))
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                outputs = trainee(x)
            loss = criterion(x, outputs.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step_count = int(progress * schedule.steps)  # Time may be what runs out.
            schedule.step()
            done += 1
            total, count = total + float(loss.detach()), count + 1
        # The integers themselves: frozen in a moment, and ten times as fast as the trainee.
        held = accuracy(octavo.freeze(trainee, progress=False), *images.held_out)
        row = {"bits": bits, "epoch": epoch + 1, "loss": round(total / max(count, 1), 4), "held_out": held,
               "lr": optimizer.param_groups[0]["lr"], "seconds": round(clock.seconds(), 1),
               "step_ms": round(1000 * (clock.seconds() - begin) / max(count, 1), 1)}  # fmt: skip
        log(row)
        if args.checkpoint:
            saved = {"bits": bits, "epoch": epoch + 1, "seconds": clock.seconds(),
                     "trainee": trainee.state_dict(), "optimizer": optimizer.state_dict(),
                     "schedule": schedule.state_dict(), "model": model.state_dict()}  # fmt: skip
            torch.save(saved, args.checkpoint + ".new")
            os.replace(args.checkpoint + ".new", args.checkpoint)
        if out_of_time:
            break
    return trainee


def plain_again(trainee, model):
    """The float model with what the trainee has learned, to start the next width from."""
    known = model.state_dict()
    model.load_state_dict({k: v for k, v in trainee.state_dict().items() if k in known})
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--bits", type=int, nargs=2, default=(4, 4), metavar=("WEIGHTS", "ACTIVATIONS")
    )
    parser.add_argument("--grid", default="linear")
    parser.add_argument(
        "--method", default=None, help="ste, lsq, lsq+, pact, dorefa; default by bits"
    )
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="of training in all; 0: no limit"
    )
    parser.add_argument("--epochs", type=int, default=0, help="in all; 0: as time allows")
    parser.add_argument(
        "--shares", type=float, nargs="+", help="of the time for each width on the way down"
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--warm-up", type=int, default=100, help="steps")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--freeze-ranges", type=float, default=0.75)
    parser.add_argument("--freeze-statistics", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, default=0, help="training images, for a short run")
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--floor", type=float, default=0.0, help="fail below this integer accuracy")
    parser.add_argument("--bf16", action="store_true", help="convolutions in bfloat16")
    parser.add_argument(
        "--start", default="", help="float weights to go on from, made by --weights"
    )
    parser.add_argument("--weights", default="", help="file for the trained float weights")
    parser.add_argument(
        "--checkpoint", default="", help="file to go on from and to write after each epoch"
    )
    parser.add_argument("--log", default="", help="file of one JSON line an epoch")
    parser.add_argument("--output", default="", help="where octavo.save puts the integer model")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args()
    args.bits = tuple(args.bits)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    from networks import cifar, data_folder, resnet20

    folder = data_folder()

    def log(row):
        print(json.dumps(row), flush=True)
        if args.log:
            with open(args.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    images = Images(folder, args.limit)
    model = resnet20(folder)
    state = None
    if args.checkpoint and os.path.exists(args.checkpoint):
        state = torch.load(args.checkpoint, weights_only=True)
        print(f"going on from {args.checkpoint}: {state['bits']} bits, epoch {state['epoch']}")
    # Eight bits lose next to nothing, and an integer teacher costs a fraction of a float one.
    teacher = octavo.quantize(model, 8, data=list(images.plain[:1024].split(128)), progress=False)
    widths = [args.bits] if args.start else widths_of(args.bits)
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True))
    shares = args.shares or {1: [1.0], 2: [0.3, 0.7], 3: [0.15, 0.25, 0.6]}[len(widths)]
    log({"seed": args.seed, "widths": widths, "shares": shares, "method": args.method or "by bits",
         "bf16": args.bf16, "start": args.start, "epochs": args.epochs, "minutes": args.minutes, "lr": args.lr,
         "held_out_float": accuracy(model, *images.held_out)})  # fmt: skip
    trainee = None
    for bits, share in zip(widths, shares, strict=True):
        if state and tuple(state["bits"]) != bits:
            continue
        if state:
            model.load_state_dict(state["model"])
        elif trainee is not None:
            model = plain_again(trainee, resnet20(folder))
        trainee = train(copy.deepcopy(model), teacher, images, bits, share, args, state, log)
        state = None
    if args.weights:
        torch.save(plain_again(trainee, resnet20(folder)).state_dict(), args.weights)
    trainee.eval()
    frozen = octavo.freeze(trainee)
    x, y = cifar(folder, "test", 0, args.test_images)
    right = accuracy(frozen, x, y)
    found = octavo.verify(trainee, frozen, [x[:256]], evaluate=lambda m: accuracy(m, x, y))
    print(found)
    log({"bits": args.bits, "grid": args.grid, "integer_accuracy": right, "trainee_accuracy": found.evaluations[0],
         "images": len(y), "one_step": found.holds})  # fmt: skip
    if args.output:
        octavo.save(frozen, args.output)
    if right < args.floor:
        raise SystemExit(f"{right:.2f} % of {len(y)} test images, expected at least {args.floor} %")


if __name__ == "__main__":
    main()
