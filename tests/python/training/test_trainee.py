"""Trainees: the same Parameters, fake-quantizers where the plan stores values, both modes captured."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from octavo.nn.fake_quantize import METHODS, FakeQuantize, FakeQuantizeWeight
from octavo.nn.fake_quantize_dynamic import FakeQuantizeDynamic
from octavo.nn.trained_layer import trained_layer
from octavo.runtime.trained_forward import Store, trained_forward
from octavo.training.trainee import training_of


class Net(nn.Module):
    """Convolutions, BatchNorm, a residual add, pooling, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.25)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        x = self.relu(y + x)
        x = F.dropout(x.mean((2, 3)), 0.1, self.training)
        return self.fc(self.drop(x))


def data(batches: int = 3) -> list[Tensor]:
    return [torch.randn(4, 3, 8, 8) for _ in range(batches)]


def warm(model: nn.Module) -> nn.Module:
    """With statistics that fit: ranges are calibrated in evaluation mode."""
    with torch.no_grad():
        for _ in range(30):
            model(torch.randn(16, 3, 8, 8))
    return model


def trainee_of(
    bits: object = (4, 4), model: nn.Module | None = None, **kwargs: object
) -> nn.Module:
    return octavo.quantize(
        model or warm(Net()), bits, data=data(), qat=True, progress=False, **kwargs
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor | None = None) -> Tensor:
    x = torch.randn(8, 3, 8, 8) if x is None else x
    loss = F.cross_entropy(model(x), torch.arange(len(x)) % 5)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_the_very_parameters_and_nothing_else() -> None:
    model = warm(Net())
    before = copy.deepcopy(model.state_dict())
    names = [name for name, _ in model.named_modules()]
    trainee = trainee_of(model=model)
    assert type(trainee) is Net and all(
        type(trainee.get_submodule(n)) is type(m) for n, m in model.named_modules()
    )
    mine, theirs = dict(trainee.named_parameters()), dict(model.named_parameters())
    assert all(mine[name] is parameter for name, parameter in theirs.items())
    assert trainee.bn1.running_mean is not model.bn1.running_mean
    assert [name for name, _ in model.named_modules()] == names and "forward" not in vars(model)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert trainee.training and model.training
    step(trainee, torch.optim.SGD(trainee.parameters(), 0.1))
    assert not torch.equal(model.conv1.weight, before["conv1.weight"])  # shared, as promised
    assert torch.equal(model.bn1.running_mean, before["bn1.running_mean"])


def test_inplace_is_the_model_itself() -> None:
    model = Net()
    assert trainee_of(model=model, inplace=True) is model
    assert training_of(model) is not None and trained_layer(model.conv1) is not None


def test_values_are_stored_where_the_plan_says() -> None:
    trainee = trainee_of({"*": (4, 4), "@last": (8, 8)})
    forward = trained_forward(trainee)
    assert forward is not None
    stores = [action for action in forward.actions if isinstance(action, Store)]
    found = {}
    for action in stores:
        quantizer = trainee.get_submodule(action.layer).value_quantizers[action.key]
        assert isinstance(quantizer, FakeQuantize)
        found[action.result] = (quantizer.bits, quantizer.method, quantizer.relu)
    # The model's input has 8 bits; the sum is one rounding; a value with two readers is stored twice.
    assert found == {
        "x|#0": (8, "ste", False),
        "relu": (8, "ste", True),
        "relu@4": (4, "lsq", False),
        "relu_1": (8, "ste", True),
        "mean": (8, "ste", False),
    }
    weights = {
        name: (m.scheme.bits, m.method, tuple(m.scale.shape))
        for name, m in trainee.named_modules()
        if isinstance(m, FakeQuantizeWeight)
    }
    assert weights == {
        "conv1.weight_quantizer": (4, "lsq", (8,)),
        "conv2.weight_quantizer": (4, "lsq", (8,)),
        "fc.weight_quantizer": (8, "ste", (5,)),
    }


def test_stored_values_lie_on_their_grid() -> None:
    trainee = trainee_of().eval()
    forward = trained_forward(trainee)
    assert forward is not None
    _, values = forward.values(torch.randn(2, 3, 8, 8)) or (None, {})
    for action in forward.actions:
        if isinstance(action, Store):
            p = trainee.get_submodule(action.layer).value_quantizers[action.key].qparams()
            codes = values[action.result] / p.scale + p.zero_point
            assert torch.allclose(codes, codes.round(), atol=1e-3)
            assert codes.round().min() >= 0 and codes.round().max() <= p.qmax


def test_functional_dropout_obeys_the_mode() -> None:
    trainee = trainee_of()
    forward = trained_forward(trainee)
    assert forward is not None and set(forward.flow.training) == {"dropout"}
    x = torch.randn(2, 3, 8, 8)
    trainee.eval()
    assert torch.equal(trainee(x), trainee(x))
    trainee.train()
    trainee.drop.p = 0.0
    for module in trainee.modules():  # Only the function is left to differ.
        if isinstance(module, FakeQuantize):
            module.is_frozen = True
    assert not torch.equal(trainee(x), trainee(x))


class Branching(nn.Module):
    """Another graph in training mode: an auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head, self.aux = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).mean((2, 3))
        return self.head(x) + self.aux(x) if self.training else self.head(x)


def test_graphs_that_differ_by_mode_are_not_used() -> None:
    trainee = trainee_of(model=Branching())
    assert trained_forward(trainee) is None
    assert trained_forward(trainee.body) is not None
    head, aux = trained_layer(trainee.head), trained_layer(trainee.aux)
    assert head is not None and head.source is not None and head.source.bits == 4
    # Data never reached it in evaluation mode: its activations are dynamic.
    assert aux is not None and isinstance(aux.source, FakeQuantizeDynamic)
    step(trainee, torch.optim.SGD(trainee.parameters(), 0.1))
    assert octavo.verify(trainee, octavo.freeze(trainee, progress=False), data()).holds


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))

    def forward(self, x: Tensor, pooled: bool = True) -> Tensor:
        x = self.body(x)
        return x.mean((2, 3)) if pooled else x


def test_other_calls_quantize_inputs_layer_by_layer() -> None:
    trainee = trainee_of(model=Optional()).eval()
    calls: list[str] = []
    for name, module in trainee.named_modules():
        if isinstance(module, FakeQuantize):
            key = name.rpartition(".")[2]
            module.register_forward_hook(lambda *_, n=key: calls.append(n))
    x = torch.randn(2, 3, 8, 8)
    y = trainee(x)
    assert calls == ["x", "body_1", "body_2", "mean"]
    calls.clear()
    whole = trainee(x, pooled=False)  # Not what was captured.
    assert calls == ["x", "body_1"] and whole.shape == (2, 5, 4, 4)
    assert torch.allclose(whole.mean((2, 3)), y, atol=0.1)
    calls.clear()
    trainee.body.register_forward_hook(lambda *_: calls.append("body"))
    trainee(x)
    assert calls == ["x", "body_1", "body"]


def test_hooks_on_layers_and_relus_fire() -> None:
    trainee = trainee_of().eval()
    plain = trainee(torch.ones(1, 3, 8, 8))
    seen: list[str] = []
    for name in ("conv1", "bn1", "relu", "fc", "drop"):
        trainee.get_submodule(name).register_forward_hook(lambda *_, n=name: seen.append(n))
    assert torch.equal(trainee(torch.ones(1, 3, 8, 8)), plain)
    assert seen == ["conv1", "bn1", "relu", "relu", "drop", "fc"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_freezes(method: str) -> None:
    torch.manual_seed(0)
    trainee = trainee_of(qat_method=method)
    trainee.drop.p = 0.0
    steps = octavo.range_parameters(trainee)
    assert bool(steps) == (method in ("lsq", "lsq+", "pact"))
    optimizer = torch.optim.SGD(trainee.parameters(), 0.05, momentum=0.9)
    x = torch.randn(20, 3, 8, 8)
    losses = [float(step(trainee, optimizer, x)) for _ in range(30)]
    assert losses[-1] < 0.95 * losses[0]
    found = octavo.verify(trainee, octavo.freeze(trainee, progress=False), [x])
    assert found.holds, str(found)
    assert max(site.steps or 0 for site in found.sites) <= 1


def test_ste_adds_no_parameters() -> None:
    model = Net()
    before = list(model.parameters())
    trainee = trainee_of(8, model=model)
    assert [id(p) for p in trainee.parameters()] == [id(p) for p in before]
    assert octavo.range_parameters(trainee) == []


def test_ranges_move_in_training_only() -> None:
    trainee = trainee_of(8)
    quantizer = (
        trainee.conv1.value_quantizers["x_"]
        if "x_" in trainee.conv1.value_quantizers
        else trainee.conv1.value_quantizers["x"]
    )
    before = quantizer.range.clone()
    trainee.eval()
    trainee(10 * torch.randn(4, 3, 8, 8))
    assert torch.equal(quantizer.range, before)
    trainee.train()
    trainee(10 * torch.randn(4, 3, 8, 8))
    assert float(quantizer.range[1]) > float(before[1])
    quantizer.is_frozen = True
    before = quantizer.range.clone()
    trainee(10 * torch.randn(4, 3, 8, 8))
    assert torch.equal(quantizer.range, before)


def test_what_is_not_finite_never_enters_a_range() -> None:
    trainee = trainee_of(8)
    ranges = {n: b.clone() for n, b in trainee.named_buffers() if n.endswith("range")}
    x = torch.randn(4, 3, 8, 8)
    trainee(x)
    moved = {n: b.clone() for n, b in trainee.named_buffers() if n.endswith("range")}
    assert any(not torch.equal(ranges[n], moved[n]) for n in ranges)
    x[0, 0, 0, 0] = float("nan")
    x[1] = float("inf")
    with pytest.warns(
        RuntimeWarning, match=r"value 'x' must be finite, got 193 NaN .* step 2\. Its range stays"
    ) as told:
        y = trainee(x)
    assert len(told) == 1  # The first layer only, not all behind it.
    assert bool(y.isnan().any())
    for name, buffer in trainee.named_buffers():
        if name.endswith("range"):
            assert bool(buffer.isfinite().all()), name


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_is_reported_with_every_method(method: str) -> None:
    """At the first layer that sees it, and it enters no range, not even by way of the optimizer."""
    trainee = trainee_of((4, 4), qat_method=method)
    trainee.drop.p = 0.0
    optimizer = torch.optim.SGD(octavo.range_parameters(trainee) or [torch.zeros(1)], 0.1)
    x = torch.randn(4, 3, 8, 8)
    trainee(x)

    def ranges() -> dict[str, torch.Tensor]:
        kept = {n: b.clone() for n, b in trainee.named_buffers() if n.endswith("range")}
        steps = {id(p): p for p in octavo.range_parameters(trainee)}
        names = {n: p.detach().clone() for n, p in trainee.named_parameters() if id(p) in steps}
        return {**kept, **names}

    for bad in (float("nan"), float("inf")):
        x[0, 0, 0, 0] = bad
        with pytest.warns(RuntimeWarning, match=r"value 'x' must be finite, got 1 NaN") as told:
            loss = trainee(x).sum()
        assert len(told) == 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert all(bool(value.isfinite().all()) for value in ranges().values())


def test_trained_step_that_is_not_finite_is_an_error() -> None:
    trainee = trainee_of()
    trainee(torch.randn(4, 3, 8, 8))
    with torch.no_grad():
        trainee.conv2.value_quantizers["relu@4"].scale.fill_(float("nan"))
    with pytest.raises(
        ValueError, match=r"step of the output of layer 'relu'.*got nan in training step 2"
    ):
        trainee(torch.randn(4, 3, 8, 8))
    with pytest.raises(
        ValueError, match=r"freeze: 'conv2.value_quantizers.relu@4.scale' must be finite"
    ):
        octavo.freeze(trainee)


def test_bad_arguments() -> None:
    model = Net()
    for kwargs, error, text in (
        ({"data": None, "activations": 4}, ValueError, "must be 'dynamic' or 'float' without data"),
        ({"qat_method": "lqs"}, ValueError, "qat_method must be one of .* Did you mean 'lsq'"),
        ({"qat_method": 3}, TypeError, "qat_method must be one of"),
        ({"qat": 1}, TypeError, "qat must be True or False, got 1"),
        (
            {"qat": False, "qat_method": "lsq"},
            ValueError,
            "qat_method must be None without qat=True",
        ),
        ({"rounding": "nearest"}, ValueError, "rounding must be None with qat=True"),
        ({"bits": {"*": (4, 4, 4)}}, ValueError, "must be an integer or a pair"),
    ):
        with pytest.raises(error, match=text):
            octavo.quantize(
                model, **{"bits": 4, "data": data(), "qat": True, "progress": False, **kwargs}
            )
    with pytest.raises(ValueError, match="already quantized"):
        octavo.quantize(trainee_of(), 4)


def test_quantizing_a_trainee_again_is_refused() -> None:
    with pytest.raises(ValueError, match="quantize: model must be a float model"):
        octavo.quantize(trainee_of(), 4, data=data(), qat=True)


def test_resume_is_bit_identical() -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        trainee = trainee_of({"*": (4, 4), "@last": (8, 8)})
        trainee.drop.p = 0.0
        groups = [{"params": [p for p in trainee.parameters()]}]
        return trainee, torch.optim.SGD(groups, 0.05, momentum=0.9)

    x = torch.randn(6, 8, 3, 8, 8)
    trainee, optimizer = fresh()
    for i in range(3):
        torch.manual_seed(i)
        step(trainee, optimizer, x[i])
    file = io.BytesIO()
    torch.save({"model": trainee.state_dict(), "optimizer": optimizer.state_dict()}, file)
    for i in range(3, 6):
        torch.manual_seed(i)
        step(trainee, optimizer, x[i])
    other, again = fresh()
    file.seek(0)
    saved = torch.load(file)
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    for i in range(3, 6):
        torch.manual_seed(i)
        step(other, again, x[i])
    for name, tensor in trainee.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_copies_are_independent() -> None:
    """EMA by deepcopy, and pickles: same results, nothing shared."""
    trainee = trainee_of()
    x = torch.randn(4, 3, 8, 8)
    file = io.BytesIO()
    torch.save(trainee, file)
    file.seek(0)
    for twin in (copy.deepcopy(trainee), torch.load(file, weights_only=False)):
        trainee.eval()
        twin.eval()
        assert torch.equal(twin(x), trainee(x))
        layer = trained_layer(twin.conv2)
        assert layer is not None and layer.source is twin.conv2.value_quantizers["relu@4"]
        assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in trainee.parameters())
        trainee.train()
        step(trainee, torch.optim.SGD(trainee.parameters(), 0.5))
        trainee.eval()
        assert not torch.equal(twin(x), trainee(x))
        assert torch.equal(octavo.freeze(twin)(x), octavo.freeze(twin)(x))
        trainee.load_state_dict(twin.state_dict())


def test_files(tmp_path: Path) -> None:
    """save and load take trainees: same state, same next step, same integers."""
    path = tmp_path / "trainee.safetensors"
    trainee = trainee_of({"*": (4, 4), "@last": (8, 8)})
    trainee.drop.p = 0.0
    step(trainee, torch.optim.SGD(trainee.parameters(), 0.1))
    octavo.save(trainee, path)
    model = Net()
    before = copy.deepcopy(model.state_dict())
    other = octavo.load(path, model)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert other.training and training_of(other) == training_of(trainee)
    other.drop.p = 0.0
    assert list(other.state_dict()) == list(trainee.state_dict())
    x = torch.randn(8, 3, 8, 8)
    for twin in (trainee, other):
        torch.manual_seed(3)
        step(twin, torch.optim.SGD(twin.parameters(), 0.1), x)
    for name, tensor in trainee.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    frozen = [octavo.freeze(twin, progress=False)(x) for twin in (trainee, other)]
    assert torch.equal(frozen[0], frozen[1])
    with pytest.raises(octavo.CheckpointError, match="expected the architecture that was saved"):
        octavo.load(path, nn.Sequential(nn.Conv2d(3, 8, 3)))
    wrong = Net()
    wrong.fc = nn.Linear(8, 6)
    with pytest.raises(
        octavo.CheckpointError, match=r"expected tensor 'fc.weight' of shape \[6, 8\], got \[5, 8\]"
    ):
        octavo.load(path, wrong)


def test_damaged_files(tmp_path: Path) -> None:
    from octavo.checkpoint import safetensors_file

    path = tmp_path / "trainee.safetensors"
    octavo.save(trainee_of(), path)
    tensors, metadata = safetensors_file.read(path)
    text = metadata["trainee"]
    for old, new, message in (
        ('"format":"octavo.plan 1"', '"format":"octavo.plan 9"', "expected format"),
        ('"method":null', '"method":"adam"', "expected a known method, got 'adam'"),
        ('"function":"Tensor.mean"', '"function":"os.system"', "functions of octavo's table"),
        ('"module":"conv2"', '"module":"conv9"', "modules of the model, got 'conv9'"),
        (
            '":x":[',
            '":y":["0x0p+0",0,8],":x":[',
            "range ':y': expected a positive normal float32 as scale, got 0.0",
        ),
        ('"tied":{}', '"tied":[]', "no 'tied' of its kind"),
    ):
        assert old in text, old
        bad = tmp_path / "bad.safetensors"
        kept = {k: v for k, v in metadata.items() if k != "sha256"}
        safetensors_file.write(bad, tensors, {**kept, "trainee": text.replace(old, new)})
        with pytest.raises(octavo.CheckpointError, match=message):
            octavo.load(bad, Net())
