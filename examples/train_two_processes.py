"""Quantization-aware training on several processes: the demo's digits, each process with its own share.

    torchrun --standalone --nproc_per_node=2 examples/train_two_processes.py

The trainee is an ordinary module inside DistributedDataParallel. Moving ranges are combined over the processes
until the schedule freezes them, gradients of weights and steps are averaged as ever, so every process ends with
the same integers.
"""

import argparse
import hashlib

import numpy as np
import sklearn.datasets
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import octavo
from octavo.demo.digits import load_digits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--bits", type=int, nargs=2, default=(3, 3), metavar=("WEIGHTS", "ACTIVATIONS")
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--floor", type=float, default=0.0, help="fail below this integer accuracy")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    torch.manual_seed(0)

    demo = load_digits()  # A trained network; its 600 test images are not trained on here.
    found = sklearn.datasets.load_digits()
    train = np.random.default_rng(0).permutation(len(found.target))[600:]
    x = torch.from_numpy(found.images[train].astype(np.float32) / 16)[:, None]
    y = torch.from_numpy(found.target[train].astype(np.int64))

    def right(model):
        with torch.no_grad():
            found = model.eval()(demo.images).argmax(1)
        return 100 * float((found == demo.labels).float().mean())

    before = right(demo.model)  # The trainee moves the float model's weights.
    criterion = octavo.DistillationLoss(demo.model)
    bits = {"*": tuple(args.bits), "@first": (8, 8), "@last": (8, 8)}
    trainee = octavo.quantize(demo.model, bits, data=[demo.calibration], qat=True, progress=False)
    trainee.train()
    wrapped = DistributedDataParallel(trainee)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.02, momentum=0.9)
    steps = len(x) // 64
    schedule = octavo.TrainingSchedule(trainee, args.epochs * steps)
    for _ in range(args.epochs):
        order = torch.randperm(len(x))  # The same in every process.
        for index in order.split(64)[:steps]:
            mine = index[rank::count]
            loss = criterion(x[mine], wrapped(x[mine]), y[mine])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    frozen = octavo.freeze(trainee, progress=False)
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in frozen.state_dict().values()))
    digests = [""] * count
    dist.all_gather_object(digests, digest.hexdigest())
    after = right(frozen)
    if rank == 0:
        print(
            f"float {before:.1f} %, {bits['*']} bits in integers {after:.1f} % of {len(demo.labels)} images, "
            f"the same integers in every process: {len(set(digests)) == 1}"
        )
    dist.destroy_process_group()
    if after < args.floor:
        raise SystemExit(f"{after:.1f} % of the test images, expected at least {args.floor} %")


if __name__ == "__main__":
    main()
