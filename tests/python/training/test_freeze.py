"""freeze and verify: what was trained is what is executed, at every site, for every kind of model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_trainee import Net, data, step, trainee_of, warm
from torch import Tensor, nn

import octavo
import torture_models
from inspection import all_tensors, regions_of, rows_of
from octavo.nn.layer import QLayer
from octavo.runtime.trained_forward import trained_forward

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding='same'", "ignore:Converting a tensor with requires_grad"
)
CASES = {case.name: case for case in torture_models.CASES}


def _loss(result: Any) -> Tensor:
    return sum((t.float().square().mean() for t in all_tensors(result) if t.requires_grad), torch.zeros(()))  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_torture(name: str) -> None:
    """Every model that PTQ takes trains for two steps, freezes, and keeps the promise of one step."""
    case = CASES[name]
    torch.manual_seed(0)
    model = torture_models.randomize(case.make())
    batches = [case.inputs() for _ in range(3)]

    def run(m: nn.Module) -> None:
        for batch in batches:
            m(*batch, **case.kwargs)

    found = run if case.kwargs else batches
    trainee = octavo.quantize(model, (4, 4), data=found, qat=True, progress=False)
    trainee.train()
    optimizer = torch.optim.SGD(trainee.parameters(), 1e-4)
    for batch in batches[:2]:
        loss = _loss(trainee(*batch, **case.kwargs))
        if not loss.requires_grad:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trainee.eval()
    frozen = octavo.freeze(trainee, progress=False)
    assert type(frozen) is type(model) or isinstance(frozen, QLayer)
    if not case.kwargs:
        check = octavo.verify(trainee, frozen, batches)
        assert check.holds, str(check)
    with torch.no_grad():
        mine, theirs = (all_tensors(m(*batches[0], **case.kwargs)) for m in (frozen, trainee))
    assert [t.shape for t in mine] == [t.shape for t in theirs]


def test_structure_is_that_of_quantize() -> None:
    """Same regions, same rows as quantizing the float model."""
    model = warm(Net())
    bits = {"*": (4, 4), "@last": (8, 8)}
    batches = data()
    trainee = octavo.quantize(model, bits, data=batches, qat=True, progress=False)
    frozen = octavo.freeze(trainee, progress=False)
    plain = octavo.quantize(model, bits, data=batches, progress=False)
    [(_, one)], [(_, other)] = regions_of(frozen), regions_of(plain)
    kinds = [
        [line.split(" ")[2] for line in r.program.splitlines() if " = " in line]
        for r in (one, other)
    ]
    assert kinds[0] == kinds[1]
    forms = [[(step.kind, step.module, step.params) for step in r.steps] for r in (one, other)]
    for mine_, theirs_ in zip(*forms, strict=True):
        assert mine_[:2] == theirs_[:2]
        assert {k: v for k, v in mine_[2].items() if k != "result"} == {
            k: v for k, v in theirs_[2].items() if k != "result"
        }
    mine, theirs = rows_of(frozen), rows_of(plain)
    assert list(mine) == list(theirs)
    assert all(mine[n].bits == theirs[n].bits and mine[n].region == theirs[n].region for n in mine)


def test_trainee_and_its_model_stay_as_they_were() -> None:
    trainee = trainee_of()
    step(trainee, torch.optim.SGD(trainee.parameters(), 0.1))
    before = copy.deepcopy(trainee.state_dict())
    octavo.verify(trainee, octavo.freeze(trainee, progress=False), data())
    assert trainee.training and trained_forward(trainee) is not None
    assert list(trainee.state_dict()) == list(before)
    assert all(torch.equal(trainee.state_dict()[k], v) for k, v in before.items())
    step(trainee, torch.optim.SGD(trainee.parameters(), 0.1))


def test_batch_norm_of_any_sign(tmp_path: Path) -> None:
    """Negative and zero gammas: into the multipliers, through files, on every byte the same."""
    model = warm(Net())
    with torch.no_grad():
        model.bn1.weight[::2] *= -1
        model.bn2.weight[1] = 0.0
        model.bn2.weight[2] = -1e-30
        model.bn1.running_var[3] = 1e-12
    trainee = trainee_of((2, 2), model=model).eval()
    frozen = octavo.freeze(trainee, progress=False)
    assert bool((frozen.conv1.weight_scale < 0).any())
    x = torch.randn(16, 3, 8, 8)
    found = octavo.verify(trainee, frozen, [x])
    assert found.holds, str(found)
    octavo.save(frozen, tmp_path / "frozen.safetensors")
    again = octavo.load(tmp_path / "frozen.safetensors", Net())
    assert torch.equal(again(x), frozen(x))
    assert torch.equal(copy.deepcopy(frozen)(x), frozen(x))
    assert octavo.dequantize(frozen)(x).shape == (16, 5)


def test_isas_agree_on_negative_scales(isa: str) -> None:
    torch.manual_seed(0)
    model = warm(Net())
    with torch.no_grad():
        model.bn1.weight[::2] *= -1
    trainee = trainee_of(model=model).eval()
    frozen = octavo.freeze(trainee, progress=False)
    x = torch.randn(4, 3, 8, 8)
    y = frozen(x)
    octavo.set_isa("scalar")
    assert torch.equal(frozen(x), y)


def test_verify_notices_a_wrong_model() -> None:
    trainee = trainee_of().eval()
    frozen = octavo.freeze(trainee, progress=False)
    with torch.no_grad():
        trainee.conv2.weight.mul_(-1)
    found = octavo.verify(trainee, frozen, data())
    assert not found.holds and "more than one step" in str(found)
    worst = max(found.sites, key=lambda site: site.steps or 0)
    assert worst.site == "#0:relu_1" and worst.equal < 0.9


def test_verify_counts_and_evaluates() -> None:
    trainee = trainee_of()
    frozen = octavo.freeze(trainee, progress=False)
    found = octavo.verify(
        trainee, frozen, data(), evaluate=lambda m: float(m(torch.ones(1, 3, 8, 8)).argmax())
    )
    assert found.samples == 12 and found.evaluations is not None
    assert found.evaluations[0] == found.evaluations[1]
    assert {site.site for site in found.sites} == {
        f"#0:{n}" for n in ("relu", "relu@4", "relu_1", "drop", "fc")
    }
    assert "evaluation: trainee" in str(found) and "kept" in str(found)
    assert trainee.training


def test_steps_that_never_moved_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = warm(Net())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainee = trainee_of(model=model)
    step(trainee, optimizer)  # An optimizer made before has no steps.
    frozen = octavo.freeze(trainee)
    text = "5 of 5 trained steps never moved (first 'conv1.weight_quantizer')"
    assert text in capsys.readouterr().err
    assert any(text in note for note in octavo.report(frozen).notes)
    optimizer.add_param_group({"params": octavo.range_parameters(trainee), "weight_decay": 0.0})
    step(trainee, optimizer)
    octavo.freeze(trainee)
    assert "never moved" not in capsys.readouterr().err


def test_weight_norm_is_trained_and_frozen() -> None:
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 5, 3)
    )
    trainee = octavo.quantize(model, (4, 4), data=data(), qat=True, progress=False)
    before = trainee[0].parametrizations.weight.original0.detach().clone()
    loss = trainee(torch.randn(4, 3, 8, 8)).square().mean()
    loss.backward()
    torch.optim.SGD(trainee.parameters(), 0.1).step()
    assert not torch.equal(trainee[0].parametrizations.weight.original0, before)
    frozen = octavo.freeze(trainee, progress=False)
    assert octavo.verify(trainee, frozen, data()).holds


def test_refusals() -> None:
    trainee = trainee_of()
    with pytest.raises(
        TypeError, match=r"freeze: trainee must be an nn.Module, got 3\. Pass the result"
    ):
        octavo.freeze(3)
    with pytest.raises(
        ValueError, match=r"freeze: trainee must be the result of .* got a Net that is not"
    ):
        octavo.freeze(Net())
    with pytest.raises(
        TypeError, match=r"freeze: trainee must be the bare trainee, got a DataParallel.*\.module"
    ):
        octavo.freeze(nn.DataParallel(trainee))
    with pytest.raises(TypeError, match=r"verify: frozen must be a quantized nn.Module, got 'Net'"):
        octavo.verify(trainee, Net(), data())
    with torch.no_grad():
        trainee.conv1.weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(
        ValueError, match=r"freeze: 'conv1.weight' must be finite, got 1 NaN or infinite values"
    ):
        octavo.freeze(trainee)


@pytest.mark.parametrize("grid", [g for g in octavo.grids() if g != "linear"])
@pytest.mark.parametrize("method", ["ste", "lsq"])
def test_levels_of_every_grid(grid: str, method: str) -> None:
    """Weights are trained in the very s8 levels that the integer model computes with."""
    trainee = trainee_of((4, 4), grid=grid, qat_method=method)
    trainee.drop.p = 0.0
    optimizer = torch.optim.SGD(trainee.parameters(), 0.01)
    for _ in range(3):
        step(trainee, optimizer)
    trainee.eval()
    frozen = octavo.freeze(trainee, progress=False)
    assert frozen.conv2.grid == grid and frozen.conv2.levels is not None
    factor = trainee.bn2.weight / (trainee.bn2.running_var + trainee.bn2.eps).sqrt()
    seen = trainee.conv2.weight_quantizer(trainee.conv2.weight) * factor.view(-1, 1, 1, 1)
    assert torch.allclose(frozen.conv2.weight, seen.detach(), rtol=1e-5, atol=1e-7)
    found = octavo.verify(trainee, frozen, data())
    assert found.holds, str(found)


class Words(nn.Module):
    """A look-up, a layer before a BatchNorm, a last group that is short (72 = 2 * 32 + 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 72, padding_idx=0)
        self.fc1, self.bn, self.fc2 = nn.Linear(72, 64), nn.BatchNorm1d(64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.bn(self.fc1(self.words(x))).relu())


@pytest.mark.parametrize("method", ["ste", "lsq", "lsq+", "dorefa"])
@pytest.mark.parametrize("grid", ["linear", "affine", "nf"])
@pytest.mark.parametrize(
    ("group_size", "activations"),
    [(32, "float"), (None, "float"), (32, "static"), (32, "dynamic"), (None, "dynamic")],
)
def test_weights_of_groups_and_look_ups(
    grid: str, method: str, group_size: int | None, activations: str
) -> None:
    """Only static activations need data; scales of groups are bfloat16."""
    model, x = Words(), torch.randint(0, 50, (32,))
    affine, grid = grid == "affine", "linear" if grid == "affine" else grid
    trainee = octavo.quantize(
        model, 4, data=x if activations == "static" else None, qat=True, grid=grid, qat_method=method,
        symmetric=not affine, group_size=group_size, activations=8 if activations == "static" else activations,
        progress=False,
    )  # fmt: skip
    target, losses = torch.randint(0, 8, (32,)), []
    optimizer = torch.optim.SGD(trainee.parameters(), 0.1)
    for _ in range(12):
        losses.append(F.cross_entropy(trainee(x), target))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert model.words.weight is trainee.words.weight and not trainee.words.weight[0].isnan().any()
    trainee.eval()
    frozen = octavo.freeze(trainee, progress=False)
    # As without training, groups are the default where inputs fill more than one.
    assert (frozen.words.group_size, frozen.fc2.group_size) == (group_size or 32, group_size or 0)
    folded = not isinstance(frozen.bn, nn.BatchNorm1d)
    assert frozen.fc1.group_size == (0 if folded else group_size or 32)
    assert frozen.words.symmetric == frozen.fc2.symmetric == (not affine)
    if affine and method == "lsq+":
        zero = trainee.fc2.weight_quantizer.zero_point
        assert zero.requires_grad and bool((zero != zero.round()).any())  # It is trained.
    for name in ("words", "fc2"):
        layer = getattr(trainee, name)
        assert torch.equal(getattr(frozen, name).weight, layer.weight_quantizer(layer.weight))
    found = octavo.verify(trainee, frozen, [x])
    assert found.holds and {"words", "fc2"} <= {site.site for site in found.sites}, str(found)
    if activations == "float":
        assert torch.allclose(frozen(x), trainee(x), rtol=1e-5, atol=1e-5)


def test_look_ups_whose_gradients_are_of_few_rows_stay_float() -> None:
    model = nn.Sequential(nn.Embedding(9, 16, sparse=True), nn.Linear(16, 16))
    trainee = octavo.quantize(model, 4, activations="float", qat=True, progress=False)
    assert not hasattr(trainee[0], "weight_quantizer") and hasattr(trainee[1], "weight_quantizer")
    assert "sparse gradients" in str(octavo.report(trainee))
