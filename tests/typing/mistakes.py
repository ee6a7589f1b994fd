"""What a user may not write: type checkers flag every line that is marked, and no other.

It is checked, not run: tests/repo/test_typing.py.
"""

import torch
from torch import nn

import octavo

model = nn.Sequential(nn.Linear(64, 8))
data = torch.randn(32, 64)


def text(model: nn.Module) -> str:
    return type(model).__name__


octavo.quantize(model, bit=8)  # error
octavo.quantize(model, "8")  # error
octavo.quantize(model, None)  # error
octavo.quantize(model, (4, "mixed"))  # error
octavo.quantize(model, {"*": "4"})  # error
octavo.quantize(model.state_dict(), 8)  # error
octavo.quantize(nn.Linear, 8)  # error
octavo.quantize(model, 8, 3)  # error
octavo.quantize(model, 8, data, "nf")  # error
octavo.quantize(model, 8, grid="linaer")  # error
octavo.quantize(model, 8, activations="none")  # error
octavo.quantize(model, 8, group_size="row")  # error
octavo.quantize(model, 8, symmetric="yes")  # error
octavo.quantize(model, 8, rounding="gtpq")  # error
octavo.quantize(model, 8, ranges="max")  # error
octavo.quantize(model, 8, effort="most")  # error
octavo.quantize(model, 8, evaluate=text, max_drop=1.0)  # error
octavo.quantize(model, 8, exclude=3)  # error
octavo.quantize(model, 8, only=["head"])  # error
octavo.quantize(model, 8, include=[3])  # error
octavo.quantize(model, 8, qat=True, method="lsq")  # error
octavo.quantize(model, 8, qat=True, qat_method="lqs")  # error
small: nn.Linear = octavo.quantize(model, 8)  # error
octavo.freeze(model, False)  # error
octavo.save("model.safetensors", model)  # error
octavo.load("model.safetensors")  # error
octavo.load(model, "model.safetensors")  # error
octavo.dequantize(model, in_place=True)  # error
octavo.report(model, data, float_model=model)  # error
octavo.verify(model, model)  # error
octavo.advise(model, "laptop")  # error
octavo.advise(model).apply(model, bit=3)  # error
octavo.pareto_front(model, data)  # error
octavo.pareto_front(model, data, evaluate=lambda _: 0.0, grids=("nff",))  # error
octavo.pareto_front(model, data, evaluate=lambda _: 0.0, effor="fast")  # error
octavo.sensitivity(model, data, grid="nff")  # error
octavo.reestimate_batch_norm(model)  # error
octavo.DistillationLoss(model, temprature=2.0)  # error
octavo.TrainingSchedule(model)  # error
octavo.set_isa(2)  # error
octavo.reestimate(model, data)  # error
