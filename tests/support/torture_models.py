"""Tiny models that broke other tools, one row each: a factory, its inputs, and which layers must be integers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """make: builds the float model. inputs: arguments of one call. integers: layers that must not stay float.

    floats: layers that may stay float, with a reason in the report.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    integers: tuple[str, ...]
    floats: tuple[str, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


CASES: list[Case] = []


def image(channels: int = 3, size: int = 12, batch: int = 2) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(batch, channels, size, size),)


def rows(features: int = 16, batch: int = 4) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(batch, features),)


def case(
    name: str,
    inputs: Callable[[], tuple[Any, ...]],
    integers: tuple[str, ...],
    floats: tuple[str, ...] = (),
    **kwargs: Any,
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES.append(Case(name, make, inputs, integers, floats, kwargs))
        return make

    return add


def randomize(model: nn.Module) -> nn.Module:
    """Gives BatchNorm real statistics, so that folding is worth testing."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


# ---- arithmetic and functions in forward --------------------------------------------------------


@case("residual operator", image(8), ("conv",))
class _T1a(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


@case("residual in place", image(8), ("conv1", "conv2"))
class _T1b(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return F.relu(out)


@case("functional relu, same padding", image(), ("conv",))
class _T2a(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.pad(x, (0, 1, 0, 1))))


@case("functional convolution", image(), ("conv",))
class _T2b(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.kernel = nn.Parameter(torch.randn(4, 8, 3, 3) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.relu(self.conv(x)), self.kernel, padding=1)


@case("scalar arithmetic", image(), ("conv",))
class _T3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x * 2)
        return (1 - y) / 3 + 0.5 - y.neg()


@case("parameter gate", image(8), ("conv",))
class _T4(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.beta = nn.Parameter(torch.rand(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) * self.beta


@case("one relu, many uses", image(), ("a", "b", "c"))
class _T5a(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 4, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.c(self.act(self.b(self.act(self.a(x))))))


class _ConvAct(nn.Module):
    default_act = nn.SiLU()

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, 3, padding=1)
        self.act = self.default_act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


@case("default argument activation", image(), ("0.conv", "1.conv"))
def _t5b() -> nn.Module:
    return nn.Sequential(_ConvAct(3, 8), _ConvAct(8, 8))


# ---- sharing, branches, shapes -----------------------------------------------------------------


@case("linear called twice", rows(), ("fc",))
class _T6(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.fc(x)) * 20)


@case("tied head", lambda: (torch.randint(0, 40, (2, 7)),), ("emb", "lm_head"))
class _T7(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(40, 16)
        self.lm_head = nn.Linear(16, 40, bias=False)
        self.lm_head.weight = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.emb(x))


@case("cat of different ranges", image(), ("small", "large", "after"))
class _T8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.after = nn.Conv2d(16, 8, 1)
        with torch.no_grad():
            self.large.weight *= 4

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.cat([self.small(x), self.large(x)], dim=1))


@case("interpolate", image(), ("conv", "out"))
class _T9a(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(self.conv(x), scale_factor=2, mode="nearest")
        y = F.interpolate(self.out(y), size=(9, 9), mode="bilinear", align_corners=False)
        return y[:, :2]


@case("pixel shuffle, permute, view", image(), ("conv",))
class _T9b(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.conv(x)).permute(0, 2, 3, 1)
        return y.reshape(y.size(0), -1, 3)[:, 1:-1].transpose(1, 2)


@case("focus stem", image(), ("conv",))
class _T10(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(
            torch.cat(
                [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1
            )
        )


# ---- Python in forward -------------------------------------------------------------------------


@case("control flow on sizes and flags", image(), ("layers.0", "layers.1"), ("layers.2",))
class _T11(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)])

    def forward(self, x: Tensor, augment: bool = False) -> Tensor:
        if x.size(1) != 3:
            raise RuntimeError("three channels expected")
        if augment:
            x = x.flip(-1)
        for layer in self.layers[:2]:
            x = layer(x)
        return x


@case("shape arithmetic", rows(16, 4), ("fc",))
class _T12(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        half = int(x.shape[0] / 2)
        return self.fc(x).view(half, -1)


@case("kwargs and structures", rows(), ("fc", "head"), return_loss=False, scale=2.0)
class _T13(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, mask: Any = None, return_loss: bool = True, **kwargs: Any) -> Any:
        y = F.gelu(self.fc(x)) * kwargs.get("scale", 1.0)
        out = {"logits": self.head(y), "hidden": [y, None], "pair": (y, y + 1)}
        if return_loss:
            out["loss"] = out["logits"].mean()
        return out


@dataclass
class Output:
    """A dataclass that a forward returns."""

    logits: Tensor
    extra: Tensor | None = None


@case("dataclass output", rows(), ("fc",))
class _T13b(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Output:
        return Output(self.fc(x))


@case("data-dependent loop", rows(), ("step", "head"))
class _T14a(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        count = 0
        while float(x.abs().mean()) > 0.2 and count < 3:
            x, count = torch.tanh(self.step(x)), count + 1
        return self.head(x)


@case("routing", rows(16, 6), ("experts.0", "experts.1", "router"))
class _T14b(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 2)
        self.experts = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        with torch.no_grad():  # far from the decision border: rounding must not switch experts
            self.router.weight.zero_()
            self.router.weight[0, 0], self.router.weight[1, 0] = 1.0, -1.0
            self.router.bias.copy_(torch.tensor([5.0, -5.0]))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        chosen = self.router(x).argmax(1)
        for i, expert in enumerate(self.experts):
            index = (chosen == i).nonzero().squeeze(1)
            if len(index):
                out[index] = expert(x[index])
        return out + self.experts[1](x)


# ---- activations, squeeze-and-excite, BatchNorm ------------------------------------------------


class _SE(nn.Module):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return x * self.gate(self.fc2(F.relu(self.fc1(self.pool(x)))))


case("squeeze-excite sigmoid", image(), ("conv", "fc1", "fc2"))(lambda: _SE(nn.Sigmoid()))
case("squeeze-excite hardsigmoid", image(), ("conv", "fc1", "fc2"))(lambda: _SE(nn.Hardsigmoid()))

for _act in (
    nn.SiLU(),
    nn.Hardswish(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.Mish(),
    nn.PReLU(8),
    nn.PReLU(),
    nn.LeakyReLU(0.1),
    nn.ELU(),
    nn.CELU(),
    nn.SELU(),
    nn.ReLU6(),
    nn.Hardtanh(-0.5, 0.7),
    nn.Tanh(),
    nn.Softplus(),
):
    case(f"{_act}", image(), ("0", "2"))(
        lambda act=_act: nn.Sequential(nn.Conv2d(3, 8, 3), act, nn.Conv2d(8, 4, 3))
    )


@case("swish by hand", image(), ("conv", "out"))
class _T17a(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.out(x * torch.sigmoid(x))


class _Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


@case("scripted swish", image(), ("0", "2"))
def _t17b() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        swish = torch.jit.script(_Swish())
    return nn.Sequential(nn.Conv2d(3, 8, 3), swish, nn.Conv2d(8, 4, 1))


case("conv1d bn relu", lambda: (torch.randn(2, 3, 20),), ("0", "3"))(
    lambda: nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3, 2)
    )
)
case("linear bn", rows(), ("0", "3"))(
    lambda: nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
)
case("conv3d bn", lambda: (torch.randn(1, 2, 5, 6, 7),), ("3",), ("0",))(
    lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(240, 3))
)
case("bn without affine", image(), ("0", "2"))(
    lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 4, 3))
)
case("bn without statistics", image(), ("0", "2"))(
    lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Conv2d(8, 4, 3)
    )
)


class _FrozenBatchNorm(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(n) + 0.5)
        self.register_buffer("bias", torch.randn(n) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)


case("frozen bn", image(), ("0", "2"))(
    lambda: nn.Sequential(nn.Conv2d(3, 8, 3), _FrozenBatchNorm(8), nn.Conv2d(8, 4, 3))
)
case("bn before conv", image(), ("2", "5"))(
    lambda: nn.Sequential(
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
    )
)


@case("bn with two consumers", image(), ("conv", "a", "b"))
class _T19b(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.conv(x)
        y = self.bn(raw)
        return self.a(y) + self.b(y) * raw.mean()


# ---- convolution variants, norms ---------------------------------------------------------------

case("transposed 2d", image(), ("0", "2"), ("1",))(
    lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1, groups=2),
        nn.Conv2d(4, 2, 1),
    )
)
case("transposed 1d", lambda: (torch.randn(2, 3, 10),), ("0",), ("1",))(
    lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ConvTranspose1d(8, 4, 4, 2))
)
_VARIANTS = {
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "multiplier 2": lambda: nn.Conv2d(8, 16, 3, padding=1, groups=8),
    "dilated depthwise": lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
    "grouped": lambda: nn.Conv2d(8, 12, 3, groups=4),
    "asymmetric": lambda: nn.Conv2d(8, 4, (3, 5), (1, 2), (0, 3), (2, 1)),
    "reflect": lambda: nn.Conv2d(8, 4, 3, padding=2, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"),
    "replicate": lambda: nn.Conv2d(8, 4, 3, padding=1, padding_mode="replicate"),
    "same": lambda: nn.Conv2d(8, 4, (4, 3), padding="same"),
    "valid": lambda: nn.Conv2d(8, 4, 2, padding="valid"),
    "depthwise 5x5 stride 2": lambda: nn.Conv2d(8, 8, 5, 2, 2, groups=8),
    "depthwise 7x7": lambda: nn.Conv2d(8, 8, 7, 1, 3, groups=8),
}
for _name, _conv in _VARIANTS.items():
    case(f"{_name}", image(), ("0", "2"))(
        lambda conv=_conv: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), conv())
    )
for _norm in (
    nn.GroupNorm(2, 8),
    nn.LayerNorm([8, 10, 10]),
    nn.RMSNorm([8, 10, 10]),
    nn.InstanceNorm2d(8, affine=True),
):
    case(f"{type(_norm).__name__}", image(), ("0", "2"))(
        lambda norm=_norm: nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 4, 3))
    )


# ---- unusual layers, hooks, containers ------------------------------------------------------------


class CastLinear(nn.Linear):
    """A Linear subclass with its own forward, as in Whisper."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class HFConv1D(nn.Module):
    """GPT-2's Linear with a transposed weight."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.1)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class LoRA(nn.Module):
    """A Linear with a low-rank update beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 4, bias=False)
        self.up = nn.Linear(4, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x)) * 0.5


case("linear subclass", rows(), ("1",), ("0",))(
    lambda: nn.Sequential(CastLinear(16, 8), nn.Linear(8, 4))
)
case("transposed linear", rows(), ("1",), ("0",))(
    lambda: nn.Sequential(HFConv1D(8, 16), nn.Linear(8, 4))
)
case("lora", rows(), ("0.base", "0.down", "0.up"))(lambda: nn.Sequential(LoRA(nn.Linear(16, 8))))


@case("linear by attribute", rows(), ("fc",))
class _T29(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + F.linear(x, self.fc.weight) - self.fc.bias


@case("patched forward", rows(), ("1",), ("0",))
def _t31() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    original = model[0].forward
    model[0].forward = lambda x: original(x) * 2  # type: ignore[method-assign]
    return model


def _shifted(module: nn.Module, amount: float, x: Tensor) -> Tensor:
    return type(module).forward(module, x) + amount


@case("partial as forward", rows(), ("1",), ("0",))
def _t31b() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    model[0].forward = functools.partial(_shifted, model[0], 1.5)  # type: ignore[method-assign]
    return model


@case("containers", rows(), ("blocks.0", "table.a"), ("hidden_away.0",))
class _T32(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(16, 16)])
        self.table = nn.ModuleDict({"a": nn.Linear(16, 16)})
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(16) * 1.5)])
        self.plain = [nn.Linear(16, 16)]
        self.empty, self.identity = nn.Sequential(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.empty(self.identity(self.blocks[0](x))) * self.gains[0]
        return self.plain[0](self.table["a"](x))


case("root is linear", rows(), ("",))(lambda: nn.Linear(16, 8))
case("root is conv", image(), ("",))(lambda: nn.Conv2d(3, 8, 3))
case("root is conv1d", lambda: (torch.randn(2, 3, 20),), ("",))(lambda: nn.Conv1d(3, 8, 3))


@case("unused branch", rows(), ("used",), ("unused",))
class _T37(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.used(x)
        if self.training:
            y = y + self.unused(x)
        return y
