"""Two processes train one trainee, each on its own half of every batch; both must end with the same state.

torchrun --standalone --nproc_per_node=2 tests/support/ddp_training.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import octavo

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]


def main() -> None:
    from test_trainee import Net, warm

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = warm(Net())
    calibration = [torch.randn(4, 3, 8, 8) for _ in range(3)]
    trainee = octavo.quantize(model, (4, 4), data=calibration, qat=True, progress=False)
    wrapped = DistributedDataParallel(trainee)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.05, momentum=0.9)
    images, labels = torch.randn(20, 16, 3, 8, 8), torch.randint(5, (20, 16))
    # The second process sees values three times as large: ranges must hold both.
    scale = torch.tensor([1.0, 3.0])[rank]
    for x, y in zip(images[:, rank::2], labels[:, rank::2], strict=True):
        loss = F.cross_entropy(wrapped(x * scale), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = trainee.state_dict()
    for name, tensor in state.items():
        if "running_" in name or "num_batches" in name:
            continue  # BatchNorm statistics are each process's own until the next broadcast.
        other = tensor.clone()
        dist.broadcast(other, 0)
        assert torch.equal(other, tensor), f"{name} differs in process {rank}"
    layer = trainee.conv1.value_quantizers
    ends = next(q.range for k, q in layer.items() if k.startswith("x"))
    assert float(ends[1]) > 5.0, ends  # Of the second process; the first alone stays below 4.5.
    frozen = octavo.freeze(trainee, progress=False)
    digest = torch.tensor([float(frozen(images[0]).sum())])
    if rank == 0:
        print("same state, frozen sum", float(digest))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
