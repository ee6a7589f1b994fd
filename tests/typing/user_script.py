"""What a user may write: type checkers in their strictest mode find nothing here.

It is checked, not run: tests/repo/test_typing.py.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

import octavo
from octavo.types import Bits, Data, Grid, SharedOptions


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 64)
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.body.forward(x))

    def classify(self, x: Tensor) -> Tensor:
        return self.head.forward(x)


def accuracy(model: nn.Module) -> float:
    return float(model(torch.ones(1, 64)).sum())


def run(model: nn.Module) -> None:
    model(torch.ones(1, 64))


batches = [torch.randn(32, 64) for _ in range(4)]
labelled = [(torch.randn(32, 64), torch.zeros(32)) for _ in range(4)]
model = Net()

# Bits: of all layers, a pair, an average, by pattern, a plan, a plan's file.
small: Net = octavo.quantize(model)
features: Tensor = small.features(batches[0])  # The class of the model is kept.
octavo.quantize(model, 4)
octavo.quantize(model, (4, 8), batches)
octavo.quantize(model, (4, "float"))
octavo.quantize(model, 4.5, data=batches)
octavo.quantize(model, {"*": 4, "head": 8})
octavo.quantize(model, {nn.Linear: 4, "@last": (8, 8)}, batches)
octavo.quantize(model, Path("plan.json"), batches)
plan = octavo.Plan.from_json(Path("plan.json").read_text(encoding="utf-8"))
octavo.quantize(model, plan, batches)
widths: dict[str, int] = octavo.sensitivity(model, batches).allocate(4.0)
octavo.quantize(model, widths)

# Data: a tensor, tuples, mappings, an iterator, a callable that runs the model.
octavo.quantize(model, 8, batches[0])
octavo.quantize(model, 8, labelled)
octavo.quantize(model, 8, {"x": batches[0]})
octavo.quantize(model, 8, iter(batches))
octavo.quantize(model, 8, run)

# Every other argument.
octavo.quantize(
    model,
    bits=3,
    data=batches,
    grid="nf",
    activations=8,
    group_size=64,
    symmetric=True,
    rounding="gptq",
    ranges="mse",
    effort="best",
    exclude=["head", nn.Conv2d],
    include="body*",
    inplace=False,
    strict=False,
    progress=False,
)
octavo.quantize(model, 8, group_size="tensor", activations="dynamic", exclude=nn.Embedding)
octavo.quantize(model, 8, batches, evaluate=accuracy, max_drop=0.5)


def compressed(net: Net, bits: Bits, data: Data | None, grid: Grid) -> Net:
    options: SharedOptions = {"effort": "fast", "exclude": ["head"]}
    return octavo.quantize(net, bits, data, grid=grid, **options)


# Training.
trainee: Net = octavo.quantize(model, (4, 4), batches, qat=True, qat_method="lsq")
optimizer = torch.optim.SGD(
    [
        {"params": trainee.parameters(), "weight_decay": 1e-4},
        {"params": octavo.range_parameters(trainee), "weight_decay": 0.0},
    ],
    lr=0.01,
)
schedule = octavo.TrainingSchedule(trainee, steps=100, freeze_ranges=0.5)
criterion = octavo.DistillationLoss(model, 1.0, features=["body"], student=trainee)
loss: Tensor = criterion(batches[0], trainee(batches[0]), torch.zeros(32, dtype=torch.int64))
schedule.step()
print(schedule.ranges_frozen, schedule.state_dict())
final: Net = octavo.freeze(octavo.reestimate_batch_norm(trainee, batches), progress=False)
verification: octavo.Verification = octavo.verify(trainee, final, batches, evaluate=accuracy)
if not verification.holds:
    print([check.site for check in verification.sites if not check.holds])

# Files, reports, choices.
octavo.save(final, "final.safetensors")
octavo.save(final, Path("final.safetensors"))
loaded: Net = octavo.load("final.safetensors", Net())
floats: Net = octavo.dequantize(loaded)
table: octavo.Report = octavo.report(loaded, batches, reference=model)
table.save_html(Path("report.html"))
print(table.rows[0].layer.bits, table.bytes / table.float_bytes, table.output_sqnr)
advice: octavo.Advice = octavo.advise(model, "phone", batches)
print(advice.call, [reason.source for reason in advice.reasons])
advised: Net = advice.apply(model, data=batches, effort="fast", progress=False)
front: octavo.ParetoFront = octavo.pareto_front(
    model, batches, evaluate=accuracy, bits=(8, 4.5, (4, 8)), grids=("linear", "nf"), effort="fast"
)
best: list[str] = [point.name for point in front.best]

# Instruction sets and errors.
names: tuple[str, ...] = (*octavo.isas(), octavo.isa(), *octavo.grids(), octavo.__version__)
octavo.set_isa("scalar")
octavo.set_isa(None)
try:
    octavo.load("missing.safetensors", Net())
except (octavo.CheckpointError, OSError) as error:
    print(error)
