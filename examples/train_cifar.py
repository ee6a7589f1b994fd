"""Trains a network on CIFAR-10 in few bits from float weights, freezes it and counts what the integers get right.

    python examples/train_cifar.py --bits 4 4 --minutes 60
    python examples/train_cifar.py --bits 4 4 --epochs 24 --minutes 0 --bf16 --weights w44.pt
    python examples/train_cifar.py --bits 3 3 --epochs 24 --minutes 0 --bf16 --start w44.pt --weights w33.pt
    python examples/train_cifar.py --network probe --bits 4 8 --epochs 0.6 --minutes 0 --batch 64 --lr 0.005

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
import time

import torch
from cifar import NETWORKS, Images, accuracy, data_folder, float_network, test_images
from tqdm.auto import tqdm

import octavo


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
    first_last = {"*": bits, "@first": (8, 8), "@last": (8, 8)}
    model = model.to(memory_format=torch.channels_last)  # A fifth faster than contiguous.
    trainee = octavo.quantize(
        model,
        first_last,
        data=images.plain.inputs(1024),
        qat=True,
        grid=args.grid,
        qat_method=args.method,
        progress=False,
    )
    criterion = octavo.DistillationLoss(teacher, args.temperature)
    optimizer = optimizer_of(trainee, args)
    per_epoch = len(images) // args.batch
    steps = max(1, round(args.epochs * share * per_epoch)) if args.epochs else 10_000 * per_epoch
    budget = 60 * args.minutes * share
    schedule = octavo.TrainingSchedule(trainee, steps, freeze_ranges=args.freeze_ranges,
                                       freeze_statistics=args.freeze_statistics)  # fmt: skip
    first, clock = 0, Clock()
    if state:
        trainee.load_state_dict(state["trainee"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first, clock = state["epoch"], Clock(state["seconds"])
    done = first * per_epoch
    generator = torch.Generator()
    for epoch in range(first, math.ceil(steps / per_epoch)):
        generator.manual_seed(1000 * args.seed + epoch + 100_000 * min(bits))
        torch.manual_seed(1000 * args.seed + epoch)
        trainee.train()
        total, count, begin = 0.0, 0, clock.seconds()
        bar = tqdm(images.epoch(args.batch, generator), total=per_epoch, leave=False,
                   desc=f"W{bits[0]}A{bits[1]} epoch {epoch + 1}", disable=args.quiet)  # fmt: skip
        out_of_time = False
        for x, y in bar:
            progress = max(done / steps, clock.seconds() / budget if budget else 0.0)
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
        held = accuracy(octavo.freeze(trainee, progress=False), images.held_out)
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
    parser.add_argument("--epochs", type=float, default=0, help="in all; 0: as time allows")
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet20")
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
    folder = data_folder()

    def log(row):
        print(json.dumps(row), flush=True)
        if args.log:
            with open(args.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    images = Images(folder, args.network, args.limit)
    model = float_network(folder, args.network)
    state = None
    if args.checkpoint and os.path.exists(args.checkpoint):
        state = torch.load(args.checkpoint, weights_only=True)
        print(f"going on from {args.checkpoint}: {state['bits']} bits, epoch {state['epoch']}")
    # Eight bits lose next to nothing, and an integer teacher costs a fraction of a float one.
    teacher = octavo.quantize(model, 8, data=images.plain.inputs(1024), progress=False)
    widths = [args.bits] if args.start else widths_of(args.bits)
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True))
    shares = args.shares or {1: [1.0], 2: [0.3, 0.7], 3: [0.15, 0.25, 0.6]}[len(widths)]
    log({"seed": args.seed, "network": args.network, "widths": widths, "shares": shares,
         "method": args.method or "by bits", "bf16": args.bf16, "start": args.start, "epochs": args.epochs, "minutes": args.minutes, "lr": args.lr,
         "held_out_float": accuracy(model, images.held_out)})  # fmt: skip
    trainee = None
    for bits, share in zip(widths, shares, strict=True):
        if state and tuple(state["bits"]) != bits:
            continue
        if state:
            model.load_state_dict(state["model"])
        elif trainee is not None:
            model = plain_again(trainee, float_network(folder, args.network))
        trainee = train(copy.deepcopy(model), teacher, images, bits, share, args, state, log)
        state = None
    if args.weights:
        torch.save(
            plain_again(trainee, float_network(folder, args.network)).state_dict(), args.weights
        )
    trainee.eval()
    frozen = octavo.freeze(trainee)
    test = test_images(folder, args.network, args.test_images)
    right = accuracy(frozen, test)
    found = octavo.verify(trainee, frozen, test.inputs(256), evaluate=lambda m: accuracy(m, test))
    print(found)
    log({"network": args.network, "bits": args.bits, "grid": args.grid, "integer_accuracy": right,
         "trainee_accuracy": found.evaluations[0], "images": len(test), "one_step": found.holds})  # fmt: skip
    if args.output:
        octavo.save(frozen, args.output)
    if right < args.floor:
        raise SystemExit(
            f"{right:.2f} % of {len(test)} test images, expected at least {args.floor} %"
        )


if __name__ == "__main__":
    main()
