"""Random modules for `octavo.quantize`, as the text of a program: one seed, one program.

A program is a list of pieces, each a few statements of ``__init__`` and of ``forward``. While it
grows it is run twice, once with noise of the size that 8 bits have; pieces that would let that
noise grow are drawn again, so that what a quantized program may differ by is known.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOISE = 0.004  # Of each piece: 8 bits of a bell-shaped value have about 40 dB.
MOST_NOISE = 0.02  # That a value may have gathered.
_SIZES = {"image": (4, 8, 8), "sequence": (6, 8), "rows": (12,)}
_HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn
"""


@dataclass(frozen=True)
class Piece:
    """A few statements.

    run: statements of forward, which define ``result`` from ``sources`` (first the main one).
    make: statements of ``__init__``.
    after: statements about the finished module ``self``: hooks, tied weights.
    change: statements about the module ``self`` between two calls: what a user may set.
    block: the program of a class that ``make`` names.
    """

    sources: tuple[str, ...]
    result: str
    run: tuple[str, ...]
    make: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    change: tuple[str, ...] = ()
    block: Program | None = None


@dataclass(frozen=True)
class Program:
    """A module's class. ``str`` is the Python text; `build` an instance with random weights.

    kind: of its input: "image" [n, 4, 8, 8], "sequence" [n, 6, 8] or "rows" [n, 12].
    """

    seed: int
    name: str
    kind: str
    pieces: tuple[Piece, ...] = ()
    returns: str = "x"

    def __str__(self) -> str:
        return f"{_HEAD}\n\n{self._classes()}\n\n{self._changes()}"

    def _classes(self) -> str:
        make = [line for piece in self.pieces for line in piece.make]
        after = [line for piece in self.pieces for line in piece.after]
        run = [line for piece in self.pieces for line in piece.run]
        lines = [
            f"class {self.name}(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            *_indented(make + after),
            "",
            "    def forward(self, x):",
            *_indented([*run, f"return {self.returns}"]),
        ]
        inner = [piece.block._classes() for piece in self.pieces if piece.block]
        return "\n\n\n".join([*inner, "\n".join(lines)])

    def _changes(self) -> str:
        change = [line for piece in self.pieces for line in piece.change]
        return "\n".join(["def change(self):", *(f"    {line}" for line in change or ["pass"])])

    def build(self) -> tuple[nn.Module, Callable[[nn.Module], None]]:
        """The module in evaluation mode, and what changes its settings."""
        scope: dict[str, Any] = {"__name__": "random_module"}
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            exec(compile(str(self), f"<program {self.seed}>", "exec"), scope)
            model = scope[self.name]()
            randomize(model)
        return model.eval(), scope["change"]

    def inputs(self, samples: int, seed: int, larger: int = 0) -> Tensor:
        """Values of one distribution; ``larger`` is added to all sizes but samples and features.

        They lie near those of 64 samples, so that no value inside is far beyond what it is for
        other seeds: static ranges need not cover what is rare.
        """
        shape = list(_SIZES[self.kind])
        for axis in {"image": (1, 2), "sequence": (0,), "rows": ()}[self.kind]:
            shape[axis] += larger
        usual = torch.rand(64, *shape, generator=torch.Generator().manual_seed(self.seed))
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        order = torch.randperm(64, generator=generator)
        chosen = usual[order.repeat(-(-samples // 64))[:samples]]
        return 3.8 * chosen - 2 + 0.2 * torch.rand(chosen.shape, generator=generator)


def randomize(model: nn.Module) -> None:
    """Real statistics and factors for normalisations."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.4, 1.5)
        norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
        if isinstance(module, norms) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, 0, 0.2)


def _indented(lines: list[str]) -> list[str]:
    return [f"        {part}" for line in lines for part in line.split("\n")]


# ---- growing a program ---------------------------------------------------------------------------


@dataclass
class Draw:
    """A program that grows, with what its values are on one batch, plainly and with noise."""

    seed: int
    rng: random.Random
    kind: str
    name: str
    depth: int
    modules: tuple[nn.Module, nn.Module] = field(default_factory=lambda: (nn.Module(), nn.Module()))
    values: tuple[dict[str, Any], dict[str, Any]] = field(default_factory=lambda: ({}, {}))
    pieces: list[Piece] = field(default_factory=list)
    made: int = 0

    def shape(self, value: str) -> tuple[int, ...]:
        return tuple(self.values[0][value].shape)

    def fresh(self, prefix: str) -> str:
        self.made += 1
        return f"{prefix}{self.made}"

    def like(self, value: str) -> list[str]:
        """Values of the same shape, the value itself too."""
        return [n for n in self.tensors() if self.shape(n) == self.shape(value)]

    def tensors(self) -> list[str]:
        return [n for n, v in self.values[0].items() if isinstance(v, Tensor) and n[0] in "xv"]

    def pick(self) -> str:
        """A value, most often a late one."""
        names = self.tensors()
        return names[max(0, len(names) - 1 - int(self.rng.expovariate(1.1)))]


Make = Callable[[Draw, str], Piece | None]
_PIECES: list[tuple[Make, int]] = []


def piece(weight: int = 1) -> Callable[[Make], Make]:
    """Makes a function one of those that are drawn from."""

    def add(make: Make) -> Make:
        _PIECES.append((make, weight))
        return make

    return add


def random_program(seed: int, pieces: int = 7) -> Program:
    """The program of a seed."""
    rng = random.Random(seed)
    kind = rng.choice(list(_SIZES))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        x = Program(seed, "", kind).inputs(16, 0)
        return _grown(seed, rng, kind, "Program", x, x + NOISE * torch.randn_like(x), pieces, 0)


def _grown(
    seed: int, rng: random.Random, kind: str, name: str, x: Tensor, y: Tensor, pieces: int,
    depth: int,
) -> Program:  # fmt: skip
    draw = Draw(seed, rng, kind, name, depth)
    draw.values[0]["x"], draw.values[1]["x"] = x, y
    makers, weights = zip(*_PIECES, strict=True)
    tried = 0
    while len(draw.pieces) < pieces and tried < 20 * pieces:
        tried += 1
        first = not draw.pieces and not depth
        make = rng.choice([_linear, _conv]) if first else rng.choices(makers, weights)[0]
        made = make(draw, draw.pick())
        if made is not None and _holds(draw, made):
            draw.pieces.append(made)
    return Program(seed, name, kind, tuple(draw.pieces), _returned(draw))


def _holds(draw: Draw, made: Piece) -> bool:
    """Runs a piece; False where its result is nothing to continue with."""
    both = copy.deepcopy((draw.modules, draw.values))
    try:
        _run(draw.modules, draw.values, made)
        clean, noisy = (values[made.result] for values in draw.values)
        fine = clean.shape == noisy.shape and _is_sound(clean, noisy)
    except (RuntimeError, ValueError, IndexError, TypeError):
        fine = False
    if fine:
        fine = all(_is_sound(draw.values[0][n], draw.values[1][n]) for n in draw.tensors())
    if not fine:
        draw.modules, draw.values = both
        return False
    if 0 in noisy.stride():  # Expanded: it can not be written to.
        return True
    noisy += NOISE * clean.std() * torch.randn_like(noisy)
    return True


def _is_sound(clean: Tensor, noisy: Tensor) -> bool:
    std = float(clean.std())
    largest = float(clean.abs().max())
    return (
        2 <= clean.dim() <= 4
        and clean.numel() < 16 * 2048
        and clean.dtype is torch.float32
        and 0.2 < std < 4
        and largest < 7 * std + 2
        and float((clean - noisy).norm() / (clean - clean.mean()).norm()) < MOST_NOISE
        and float((clean - noisy).flatten(1).square().mean(1).sqrt().max()) < 2 * MOST_NOISE * std
    )


def _run(modules: tuple[nn.Module, ...], values: tuple[dict[str, Any], ...], made: Piece) -> None:
    state = torch.get_rng_state()
    for module, found in zip(modules, values, strict=True):
        torch.set_rng_state(state)  # Both have the same weights.
        scope: dict[str, Any] = {"torch": torch, "F": F, "nn": nn, "__name__": "random_module"}
        if made.block is not None:
            exec(str(made.block), scope)
        before = set(module._modules)
        exec("\n".join((*made.make, *made.after)), scope, {"self": module})
        for name in set(module._modules) - before:
            child = module._modules[name]
            assert child is not None
            randomize(child)
            child.eval()
        local = {**found, "self": module}
        exec("\n".join(made.run), scope, local)
        local.pop("self")
        found.clear()
        found.update(local)


def _returned(draw: Draw) -> str:
    last = draw.pieces[-1].result if draw.pieces else "x"
    if draw.depth:
        return last
    others = [n for n in draw.tensors() if n != last] or [last]
    other = draw.rng.choice(others)
    forms = [
        last, last, last, f"({last}, {other})", f'{{"out": {last}, "more": {other}}}',
        f"[{last}, ({other}, {last}.shape[0])]", f"{last}.squeeze()",
        f"({last}, {last})", f"({last}, None)", f"{last}.flatten(1)",
    ]  # fmt: skip
    return draw.rng.choice(forms)


def reduced(program: Program, fails: Callable[[Program], bool]) -> Program:
    """A smaller program that still fails."""
    again = True
    while again:
        again = False
        for smaller in _smaller(program):
            try:
                found = fails(smaller)
            except Exception:
                continue
            if found:
                program, again = smaller, True
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    for index in reversed(range(len(program.pieces))):
        gone = program.pieces[index]
        rest = program.pieces[:index] + program.pieces[index + 1 :]
        for source in gone.sources:
            yield replace(
                program,
                pieces=tuple(_renamed(p, gone.result, source) for p in rest),
                returns=_word(program.returns, gone.result, source),
            )
        if gone.block is not None:
            for block in _smaller(gone.block):
                inside = replace(gone, block=block)
                yield replace(
                    program,
                    pieces=(*program.pieces[:index], inside, *program.pieces[index + 1 :]),
                )
        for part in ("after", "change"):
            if getattr(gone, part):
                inside = replace(gone, **{part: ()})
                yield replace(
                    program,
                    pieces=(*program.pieces[:index], inside, *program.pieces[index + 1 :]),
                )
    for piece_ in program.pieces[-1:]:
        if program.returns != piece_.result:
            yield replace(program, returns=piece_.result)


def _renamed(made: Piece, before: str, after: str) -> Piece:
    return replace(
        made,
        sources=tuple(after if s == before else s for s in made.sources),
        run=tuple(_word(line, before, after) for line in made.run),
    )


def _word(text: str, before: str, after: str) -> str:
    return re.sub(rf"(?<![\w.]){before}\b", after, text)


# ---- layers --------------------------------------------------------------------------------------


def _simple(draw: Draw, x: str, module: str, prefix: str = "m") -> Piece:
    name, result = draw.fresh(prefix), draw.fresh("v")
    return Piece((x,), result, (f"{result} = self.{name}({x})",), (f"self.{name} = {module}",))


@piece(8)
def _linear(draw: Draw, x: str) -> Piece | None:
    shape = draw.shape(x)
    if len(shape) == 4 or shape[-1] > 96:
        return None
    features = draw.rng.choice([8, 12, 16])
    return _simple(draw, x, f"nn.Linear({shape[-1]}, {features}{_bias(draw)})", "fc")


def _bias(draw: Draw) -> str:
    return draw.rng.choice(["", "", ", bias=False"])


@piece(10)
def _conv(draw: Draw, x: str) -> Piece | None:
    shape = draw.shape(x)
    if len(shape) == 3:
        return _conv1d(draw, x)
    if len(shape) != 4:
        return None
    channels = shape[1]
    groups = draw.rng.choice([1, 1, 2, channels])
    out = draw.rng.choice([1, 2]) * channels if groups == channels else draw.rng.choice([4, 8, 12])
    if channels % groups or out % groups:
        return None
    kernel = draw.rng.choice([1, 3, 3, 5])
    form = draw.rng.choice(
        [
            f"padding={kernel // 2}",
            f"padding={kernel // 2}, stride=2",
            'padding="same"',
            'padding="same", dilation=2',
            f'padding={kernel // 2}, padding_mode="reflect"',
            f'padding={kernel // 2}, padding_mode="circular"',
            'padding="same", padding_mode="replicate"',
            "",
        ]
    )
    return _simple(draw, x, f"nn.Conv2d({channels}, {out}, {kernel}, groups={groups}"
                   f"{', ' if form else ''}{form}{_bias(draw)})", "conv")  # fmt: skip


def _conv1d(draw: Draw, x: str) -> Piece:
    features = draw.shape(x)[-1]
    name, result = draw.fresh("conv"), draw.fresh("v")
    out, form = draw.rng.choice([8, 12]), draw.rng.choice(["padding=1", 'padding="same"', ""])
    make = f"self.{name} = nn.Conv1d({features}, {out}, 3{', ' if form else ''}{form})"
    swap = draw.rng.choice(["transpose(1, 2)", "permute(0, 2, 1)", "mT"])
    return Piece((x,), result, (f"{result} = self.{name}({x}.{swap}).{swap}",), (make,))


@piece(3)
def _conv_transpose(draw: Draw, x: str) -> Piece | None:
    shape = draw.shape(x)
    if len(shape) != 4 or shape[-1] > 8:
        return None
    return _simple(draw, x, f"nn.ConvTranspose2d({shape[1]}, 8, 2, stride=2)", "up")


@piece(4)
def _batch_norm(draw: Draw, x: str) -> Piece | None:
    shape = draw.shape(x)
    if len(shape) == 3:
        return None
    rank = 2 if len(shape) == 4 else 1
    return _simple(draw, x, f"nn.BatchNorm{rank}d({shape[1]})", "bn")


@piece(3)
def _norm(draw: Draw, x: str) -> Piece | None:
    shape = draw.shape(x)
    if len(shape) == 4:
        if shape[1] % 2:
            return None
        return _simple(draw, x, f"nn.GroupNorm(2, {shape[1]}, eps=0.05)", "gn")
    return _simple(draw, x, f"nn.LayerNorm({shape[-1]}, eps=0.05)", "ln")


_MODULES = [
    "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.GELU()", "nn.SiLU()", "nn.SiLU(inplace=True)",
    "nn.Hardswish()", "nn.Hardswish(inplace=True)", "nn.Tanh()", "nn.Sigmoid()", "nn.PReLU()",
    "nn.LeakyReLU(0.1)", "nn.LeakyReLU(0.2, inplace=True)", "nn.ReLU6()", "nn.ELU()",
    "nn.Hardtanh(-2.0, 2.0)", "nn.Softplus()", "nn.Mish()", "nn.Dropout(0.3)", "nn.Identity()",
    "nn.GELU(approximate='tanh')", "nn.Hardsigmoid()", "nn.CELU()", "nn.Softsign()",
]  # fmt: skip
_FUNCTIONS = [
    "F.relu({x})", "torch.relu({x})", "{x}.relu()", "F.gelu({x})", "F.silu({x})",
    "{x}.clamp(min=-1.0)", "{x}.clamp(-1.5, 1.5)", "torch.tanh({x})", "{x}.sigmoid()",
    "F.leaky_relu({x}, 0.1)", "F.hardswish({x})", "F.elu({x})", "{x}.abs()", "{x}.clip(max=1.5)",
    "F.softplus({x})", "torch.sin({x})", "{x} * torch.sigmoid({x})", "F.relu6({x} + 3) / 3",
    "torch.where({x} > 0, {x}, 0.2 * {x})", "torch.maximum({x}, -{x} * 0.2)",
    "F.dropout({x}, 0.5, self.training)", "{x}.exp().clamp(max=3.0)", "-{x}", "{x} - 0.3",
    "{x} / 1.5", "1.0 - {x}", "{x}.clone()", "{x}.contiguous()", "{x}.detach()", "{x} * 1.0",
    "F.hardtanh({x})", "F.relu({x}.clone(), inplace=True)", "F.normalize({x}, dim=-1, eps=1.0) * 2",
    "{x}.softmax(1) * {x}.shape[1]", "{x} ** 2 * 0.5", "torch.square({x}) * 0.5",
]  # fmt: skip


@piece(7)
def _activation(draw: Draw, x: str) -> Piece:
    acts = [name for name in draw.modules[0]._modules if name.startswith("act")]
    if acts and draw.rng.random() < 0.4:  # One module for several places.
        result = draw.fresh("v")
        return Piece((x,), result, (f"{result} = self.{draw.rng.choice(acts)}({x})",))
    return _simple(draw, x, draw.rng.choice(_MODULES), "act")


@piece(7)
def _function(draw: Draw, x: str) -> Piece:
    result = draw.fresh("v")
    return Piece((x,), result, (f"{result} = {draw.rng.choice(_FUNCTIONS).format(x=x)}",))


@piece(4)
def _pool(draw: Draw, x: str) -> Piece | None:
    shape = draw.shape(x)
    if len(shape) != 4:
        return None
    result = draw.fresh("v")
    size = min(shape[2:])
    if size < 2:
        return None
    modules = [
        "nn.MaxPool2d(2)", "nn.MaxPool2d(3, 1, 1)", "nn.AvgPool2d(2)",
        "nn.AvgPool2d(3, 1, 1, count_include_pad=False)", "nn.AdaptiveAvgPool2d(2)",
        "nn.MaxPool2d(3, 2, 1, ceil_mode=True)", "nn.AdaptiveMaxPool2d(2)",
        "nn.ZeroPad2d(1)", "nn.ReflectionPad2d(1)",
    ]  # fmt: skip
    functions = [
        f"F.avg_pool2d({x}, 2)", f"F.max_pool2d({x}, 2)", f"F.adaptive_avg_pool2d({x}, 2)",
        f"F.max_pool2d({x}, 3, stride=1, padding=1)", f"{x}.amax((2, 3), keepdim=True) + {x}",
        f"F.pad({x}, (1, 0, 1, 0))", f"{x}.mean((2, 3), keepdim=True) + {x}",
    ]  # fmt: skip
    if draw.rng.random() < 0.6:
        return _simple(draw, x, draw.rng.choice(modules), "pool")
    return Piece((x,), result, (f"{result} = {draw.rng.choice(functions)}",))


@piece(3)
def _upsample(draw: Draw, x: str) -> Piece | None:
    shape = draw.shape(x)
    if len(shape) != 4 or shape[-1] > 8:
        return None
    result = draw.fresh("v")
    mode = draw.rng.choice(["nearest", "bilinear", "nearest"])
    if draw.rng.random() < 0.4:
        return _simple(draw, x, f'nn.Upsample(scale_factor=2, mode="{mode}")', "up")
    size = draw.rng.choice(
        ["scale_factor=2", f"size=({x}.shape[2] * 2, {x}.shape[3] * 2)", "size=(8, 8)"]
    )
    return Piece((x,), result, (f'{result} = F.interpolate({x}, {size}, mode="{mode}")',))


# ---- layers that are shared, read elsewhere, or hooked -------------------------------------------


@piece(4)
def _called_twice(draw: Draw, x: str) -> Piece | None:
    name, result = draw.fresh("twice"), draw.fresh("v")
    other = draw.rng.choice(draw.like(x))
    form = draw.rng.choice(
        ["self.{n}({x}) + self.{n}({y} * 0.3)", "self.{n}(self.{n}({x}))",
         "torch.cat([self.{n}({x}), self.{n}({y} + 1)], 1)", "self.{n}({x}) + self.{n}(self.{q})"]
    )  # fmt: skip
    layer = _layer(draw, x)
    if layer is None:
        return None
    query, make = draw.fresh("query"), [f"self.{name} = {layer}"]
    if "{q}" in form:
        shape = (1, *draw.shape(x)[1:])
        make.append(f"self.{query} = nn.Parameter(torch.randn{shape} * 2)")
    text = form.format(n=name, x=x, y=other, q=query)
    return Piece(tuple(dict.fromkeys((x, other))), result, (f"{result} = {text}",), tuple(make))


def _layer(draw: Draw, x: str) -> str | None:
    """A layer that keeps the shape."""
    shape = draw.shape(x)
    if len(shape) == 4:
        return f"nn.Conv2d({shape[1]}, {shape[1]}, 3, padding=1{_bias(draw)})"
    return f"nn.Linear({shape[-1]}, {shape[-1]}{_bias(draw)})" if shape[-1] <= 96 else None


@piece(3)
def _read_elsewhere(draw: Draw, x: str) -> Piece | None:
    layer, shape = _layer(draw, x), draw.shape(x)
    if layer is None:
        return None
    name, norm, result = draw.fresh("read"), draw.fresh("norm"), draw.fresh("v")
    make = [f"self.{name} = {layer}"]
    if len(shape) == 4:
        make.append(f"self.{norm} = nn.BatchNorm2d({shape[1]})")
        forms = [
            f"F.conv2d({x}, self.{name}.weight, padding=1) + self.{name}({x})",
            f"self.{norm}(self.{name}({x})) * self.{norm}.weight.mean()",
            f"self.{norm}(self.{name}({x})) + self.{norm}.running_mean.view(1, -1, 1, 1)",
            f"self.{name}({x}) * (1 + self.{name}.weight.std())",
        ]
    else:
        make.append(f"self.{norm} = nn.LayerNorm({shape[-1]}, eps=0.05)")
        forms = [
            f"F.linear({x}, self.{name}.weight) + self.{name}({x})",
            f"self.{name}(self.{norm}({x})) * self.{norm}.weight.mean()",
            f"self.{name}(self.{norm}({x})) + self.{norm}.bias",
            f"{x} @ self.{name}.weight + self.{name}({x})",
            f"F.linear(self.{norm}({x}), self.{name}.weight.t()) + self.{name}(self.{norm}({x}))",
        ]
    return Piece((x,), result, (f"{result} = {draw.rng.choice(forms)}",), tuple(make))


@piece(3)
def _own_parameters(draw: Draw, x: str) -> Piece:
    shape, name, result = draw.shape(x), draw.fresh("w"), draw.fresh("v")
    if len(shape) == 4:
        make = f"self.{name} = nn.Parameter(torch.randn(8, {shape[1]}, 3, 3) * 0.2)"
        forms = [f"F.conv2d({x}, self.{name}, padding=1)", f"F.conv2d({x}, self.{name})"]
    else:
        make = f"self.{name} = nn.Parameter(torch.randn(8, {shape[-1]}) * 0.3)"
        forms = [
            f"F.linear({x}, self.{name})", f"{x} @ self.{name}.t()",
            f"torch.matmul({x}, self.{name}.T)", f"F.linear({x}, self.{name}, self.{name}[:, 0])",
        ]  # fmt: skip
    return Piece((x,), result, (f"{result} = {draw.rng.choice(forms)}",), (make,))


@piece(2)
def _tied(draw: Draw, x: str) -> Piece | None:
    layer = _layer(draw, x)
    if layer is None:
        return None
    one, other, result = draw.fresh("tied"), draw.fresh("tied"), draw.fresh("v")
    run = f"{result} = self.{one}(F.relu(self.{other}({x})))"
    make = (f"self.{one} = {layer}", f"self.{other} = {layer}")
    return Piece((x,), result, (run,), make, (f"self.{one}.weight = self.{other}.weight",))


_HOOKS = [
    "register_forward_hook(lambda module, args, out: out * 0.5)",
    "register_forward_hook(lambda module, args, out: None)",
    "register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))",
    "register_forward_pre_hook(lambda module, args: None)",
    "register_forward_hook(lambda module, args, kwargs, out: out + args[0].mean(), "
    "with_kwargs=True)",
]


@piece(3)
def _hooked(draw: Draw, x: str) -> Piece | None:
    layer = _layer(draw, x)
    if layer is None:
        return None
    name, act, result = draw.fresh("hooked"), draw.fresh("act"), draw.fresh("v")
    make = (f"self.{name} = {layer}", f"self.{act} = nn.ReLU()")
    run = f"{result} = self.{act}(self.{name}({x}))"
    hook = f"self.{draw.rng.choice([name, name, act])}.{draw.rng.choice(_HOOKS)}"
    late = draw.rng.random() < 0.3  # Added between two calls.
    if late and ("args" in hook.split(":")[1] or "out" in hook.split(":")[1]):
        return Piece((x,), result, (run,), make, change=(hook,))
    return Piece((x,), result, (run,), make, (hook,))


# ---- shapes --------------------------------------------------------------------------------------


@piece(5)
def _reshaped(draw: Draw, x: str) -> Piece | None:
    shape, result = draw.shape(x), draw.fresh("v")
    if len(shape) == 4:
        forms = [
            f"{x}.flatten(2).transpose(1, 2)", f"{x}.permute(0, 2, 3, 1).flatten(1, 2)",
            f"{x}.mean((2, 3))", f"{x}.flatten(1)[:, :24]", f"torch.flatten({x}, 1)[:, ::3]",
            f"{x}.transpose(2, 3)", f"{x}.permute(0, 1, 3, 2).contiguous()",
            f"{x}.reshape({x}.shape[0], -1, {x}.shape[3])[..., :8]",
            f"{x}.roll(1, 2)", f"{x}.flip(3)", f"{x}[..., 1:, :]", f"{x}[:, :, ::2, ::2]",
            f"F.pixel_shuffle({x}, 2)", f"F.unfold({x}, 2, stride=2).transpose(1, 2)",
            f"{x}.view({x}.size(0), 2, -1, *{x}.shape[2:]).transpose(1, 2).flatten(1, 2)",
            f"{x}.amax((2, 3))", f"{x}.mean(3).mean(2)",
        ]  # fmt: skip
    elif len(shape) == 3:
        forms = [
            f"{x}.mean(1)", f"{x}[:, 0]", f"{x}[:, -1]", f"{x}.transpose(1, 2)",
            f"{x}.transpose(1, 2).unsqueeze(1).expand(-1, 4, -1, -1)", f"{x}.flatten(1)[:, :30]",
            f"{x}.reshape(-1, {x}.shape[-1]).view({x}.shape)", f"{x}.flip(1)", f"{x}[:, 1:]",
            f"{x}.unsqueeze(1)", f"{x}.reshape({x}.shape[0], {x}.shape[1], 2, -1).transpose(1, 2)",
            f"{x}.max(1).values", f"{x}.reshape(-1, {x}.shape[-1])", f"{x}.amax(1)",
        ]  # fmt: skip
    else:
        forms = [
            f"{x}.unsqueeze(1)", f"{x}.unsqueeze(1).squeeze(1)", f"{x}[:, None, :].expand(-1, 3, -1)",
            f"{x}.view({x}.shape[0], 4, -1)", f"{x}.reshape(-1, 4, {x}.shape[1] // 4, 1)",
            f"{x}.unflatten(1, (2, -1))", f"{x}[:, ::2]", f"{x}.flip(1)", f"{x}[..., :-1]",
            f"{x}.view(-1, 2, {x}.shape[1] // 2).transpose(1, 2).flatten(1)", f"{x}.roll(1, 1)",
            f"{x}.t().t()", f"{x}.repeat(1, 2)", f"{x}.repeat_interleave(2, 1)",
        ]  # fmt: skip
    return Piece((x,), result, (f"{result} = {draw.rng.choice(forms)}",))


@piece(4)
def _parted(draw: Draw, x: str) -> Piece | None:
    if draw.shape(x)[1] < 4:
        return None
    a, b, result = draw.fresh("a"), draw.fresh("b"), draw.fresh("v")
    part = draw.rng.choice(
        [f"{a}, {b} = {x}.chunk(2, 1)", f"{a}, {b} = {x}.split({x}.shape[1] // 2, 1)",
         f"{a}, {b} = torch.split({x}, [1, {x}.shape[1] - 1], 1)",
         f"{a}, {b} = {x}[:, : {x}.shape[1] // 2], {x}[:, {x}.shape[1] // 2 :]",
         f"{a}, {b} = {x}.tensor_split(2, 1)", f"{a}, {b} = {x}.unbind(1)[:2]",
         f"{a}, *{b} = {x}.chunk(4, 1)\n{b} = {b}[-1]"]
    )  # fmt: skip
    join = draw.rng.choice(
        [f"torch.cat([{b}, {a}], 1)", f"torch.cat(({a}, F.relu({b})), dim=1)", f"{a} + {b}",
         f"{a} * torch.sigmoid({b})", f"torch.stack([{a}, {b}], 1).flatten(1, 2)",
         f"torch.stack(({a}, {b})).mean(0)", f"torch.cat([{a}, {b}, {a}], 1)"]
    )  # fmt: skip
    return Piece((x,), result, (part, f"{result} = {join}"))


@piece(5)
def _joined(draw: Draw, x: str) -> Piece | None:
    other, result = draw.rng.choice(draw.like(x)), draw.fresh("v")
    form = draw.rng.choice(
        ["{x} + {y}", "{x} + 0.5 * {y}", "torch.add({x}, {y}, alpha=0.5)", "{x} * torch.sigmoid({y})",
         "torch.cat([{x}, {y}], 1)", "torch.maximum({x}, {y})", "{x} + F.relu({y})",
         "torch.stack([{x}, {y}], 1).sum(1)", "sum([{x}, {y}, {x}]) / 2", "torch.lerp({x}, {y}, 0.3)"]
    )  # fmt: skip
    text = form.format(x=x, y=other)
    return Piece(tuple(dict.fromkeys((x, other))), result, (f"{result} = {text}",))


@piece(5)
def _broadcast(draw: Draw, x: str) -> Piece | None:
    shape, result, name = draw.shape(x), draw.fresh("v"), draw.fresh("p")
    ones = "1, " * (len(shape) - 2)
    make = f"self.{name} = nn.Parameter(torch.randn({shape[1]}, {ones}))"
    forms = [
        f"{x} + self.{name}", f"{x} * (1 + 0.3 * self.{name})", f"{x} + self.{name}.unsqueeze(0)",
        f"{x} + {x}.mean(1, keepdim=True)", f"{x} + {x}.mean(-1, keepdim=True).expand_as({x})",
        f"{x} + {x}[:1]", f"{x} + {x}.mean(0)", f"{x} + {x}.mean(0, keepdim=True).expand_as({x})",
        f"{x} * torch.sigmoid({x}.mean(1, keepdim=True))",
        f"torch.cat([self.{name}.expand({x}.shape[0], *self.{name}.shape).expand_as({x}), {x}], 1)",
        f"{x} + torch.arange({x}.shape[1]).view(-1, {ones}) / {x}.shape[1]",
        f"{x} + torch.ones({x}.shape[-1])", f"{x} + torch.zeros_like({x})", f"{x} - {x}.mean()",
        f"{x} + torch.linspace(-1, 1, {x}.size(-1))", f"{x} * {x}.new_full((1,), 0.8)",
        f"{x} + 0.2 * {x}.shape[0] % 2", f"{x} * (1.0 + 0.2 * ({x}.shape[0] % 3))",
    ]  # fmt: skip
    text = draw.rng.choice(forms)
    used = (make,) if f"self.{name}" in text else ()
    return Piece((x,), result, (f"{result} = {text}",), used)


@piece(3)
def _shape_dependent(draw: Draw, x: str) -> Piece:
    result = draw.fresh("v")
    test = draw.rng.choice(
        [f"{x}.shape[0] % 2", f"{x}.shape[-1] % 2", f"{x}.shape[0] > 2", f"len({x}) == 1",
         f"{x}.shape[-1] > 6", f"{x}.dim() == 3", f"{x}.size(1) < 6", f"{x}.shape[0] == 7",
         f"{x}.numel() > 300", f"{x}.shape[0] >= 4"]
    )  # fmt: skip
    yes = draw.rng.choice([f"{x} + 1.0", f"F.relu({x})", f"-{x}", f"{x} * 1.0"])
    no = draw.rng.choice([f"{x} - 0.5", f"{x} * 0.5", f"{x}"])
    if draw.rng.random() < 0.3:
        text = f"{result} = {yes} if {test} else {no}"
    else:
        text = f"if {test}:\n    {result} = {yes}\nelse:\n    {result} = {no}"
    return Piece((x,), result, (text,))


@piece(3)
def _dtypes(draw: Draw, x: str) -> Piece:
    result, name = draw.fresh("v"), draw.fresh("p")
    forms = [
        f"({x}.double() * 0.5).to({x}.dtype)", f"{x}.half().float()", f"{x}.to(torch.float64).float()",
        f"({x}.double() + {x}.double().mean(-1, keepdim=True)).float()", f"{x}.type_as(self.{name})",
        f"({x} > 0).to({x}.dtype) * 0.1 + {x}", f"{x}.bfloat16().float()",
        f"{x} * ({x} > -1).float()", f"{x}.masked_fill({x} < -1.5, -1.5)",
        f"{x}.to(self.{name}.dtype) + self.{name}", f"{x} + self.{name}.double().float()",
        f"torch.relu({x}.double()).type({x}.dtype)", f"{x}.float() + 1", f"{x}.round() * 0.1 + {x}",
    ]  # fmt: skip
    text = draw.rng.choice(forms)
    used = (f"self.{name} = nn.Parameter(torch.ones(1))",) if f"self.{name}" in text else ()
    return Piece((x,), result, (f"{result} = {text}",), used)


# ---- what is written -----------------------------------------------------------------------------


@piece(6)
def _written(draw: Draw, x: str) -> Piece:
    """Writes into a fresh value."""
    y, z, result = draw.fresh("y"), draw.fresh("z"), draw.fresh("v")
    start = draw.rng.choice([f"{y} = {x}.clone()", f"{y} = {x} * 1.5", f"{y} = F.relu({x}) + {x}"])
    writes = [
        f"{y}[:, 0] = 0.0", f"{y}[:, ::2] += 1.0", f"{y}[:, :2].mul_(0.5)", f"{y}.clamp_(-1.0, 2.0)",
        f"{y} += {x}", f"{y} *= 0.7", f"{y}.add_({x}, alpha=0.3)", f"{y}[:1] += 0.5",
        f"{z} = {y}[:, 1:]\n{z}.relu_()", f"{z} = {y}.flatten(1)\n{z}.add_(0.5)",
        f"{z} = {y}.view({y}.shape[0], -1)\n{z}[:, 0] = 1.0", f"{z} = {y}.transpose(0, 1)\n{z} *= 0.5",
        f"{z} = {y}[:, 0]\n{z}.copy_({x}[:, 1] * 0.5)", f"{y}[:, -1] = {x}[:, 0]",
        f"{y}[{y} < -1.0] = -1.0", f"{y}.masked_fill_({y} > 1.5, 1.5)", f"F.relu_({y})",
        f"for part in {y}.chunk(2, 1):\n    part += 0.5", f"{z} = {y}.detach()\n{z}.sub_(0.5)",
        f"{y}[..., -1].zero_()", f"{y}[0] *= 0.5", f"{z} = {y}.squeeze()\n{z} += 0.5",
        f"{z} = {y}\n{y} = {y} + 1.0\n{z} -= 1.0\n{y} = {y} + {z} * 0.5",
        f"{z} = {y}.unsqueeze(0)\n{z}.mul_(0.5)", f"{y}.t_().t_()" if len(draw.shape(x)) == 2
        else f"{y}.neg_()", f"{z} = {y}.reshape(-1)\n{z}[::2] = 0.25",
        f"{z} = torch.zeros_like({y})\n{z}[:, 1:] = {y}[:, :-1]\n{y} = {y} + {z}",
        f"{z} = {y}[:, 0]\n{y}.mul_(0.5)\n{y} = {y} + {z}.unsqueeze(1)",
    ]  # fmt: skip
    return Piece((x,), result, (start, draw.rng.choice(writes), f"{result} = {y}"))


@piece(3)
def _written_itself(draw: Draw, x: str) -> Piece | None:
    """Writes into a value that others may read, an argument too."""
    result = draw.fresh("v")
    write = draw.rng.choice(
        [f"{x}.mul_(0.8)", f"{x} += 0.3", f"{x}.relu_()", f"{x}[:, 0] = 0.0", f"{x}[:, 1:].add_(0.4)",
         f"F.relu({x}, inplace=True)", f"F.leaky_relu_({x}, 0.2)", f"{x}.clamp_(min=-1.0)",
         f"{x}.view_as({x}).mul_(0.9)"]
    )  # fmt: skip
    if not draw.values[0][x].is_contiguous() and "view" in write:
        return None
    return Piece((x,), result, (write, f"{result} = {x} + 0.0"))


@piece(6)
def _state(draw: Draw, x: str) -> Piece:
    """Buffers and plain attributes that change from call to call."""
    shape, s, result = draw.shape(x), draw.fresh("s"), draw.fresh("v")
    one = shape[1:]
    buffer = f'self.register_buffer("{s}", torch.zeros{one if len(one) > 1 else f"({one[0]},)"})'
    count = f'self.register_buffer("{s}", torch.tensor(0))'
    kept = f'self.register_buffer("{s}", torch.zeros(()))'
    rows = [
        (count, f"self.{s} += 1\n{result} = {x} + 0.7 * (self.{s} % 2)"),
        (count, f"self.{s}.add_(1)\n{result} = {x} * (0.5 + 0.5 * (self.{s} % 3 == 0))"),
        (count, f"{result} = {x} - 0.6 * (self.{s} % 2)\nself.{s} = self.{s} + 1"),
        (kept, f"self.{s}.mul_(0.5).add_({x}.detach().abs().mean() * 0.5)\n{result} = {x} + self.{s}"),
        (kept, f"{result} = {x} + self.{s}\nself.{s}.copy_({x}.abs().mean())"),
        (kept, f"self.{s}.lerp_({x}.abs().mean(), 0.5)\n{result} = {x} / (1.0 + self.{s})"),
        (buffer, f"{result} = {x} + self.{s} * 0.5\nself.{s}.copy_({x}.mean(0))"),
        (buffer, f"{result} = {x} + self.{s} * 0.5\nself.{s} = {x}[0].detach().clone()"),
        (buffer, f"self.{s}.mul_(0.9).add_({x}.mean(0), alpha=0.1)\n{result} = {x} - self.{s}"),
        (buffer, f"self.{s}[0] = {x}.abs().mean()\n{result} = {x} + self.{s}"),
        (f"self.{s} = 0", f"self.{s} += 1\n{result} = {x} + 0.7 * (self.{s} % 2)"),
        (f"self.{s} = None",
         f"{result} = {x} if self.{s} is None else {x} + self.{s}\nself.{s} = {x}.abs().mean()"),
        (f"self.{s} = []",
         f"self.{s} = [*self.{s}, {x}.abs().mean()][-2:]\n{result} = {x} + sum(self.{s}) / 2"),
        (f"self.{s} = []", f"self.{s}.append({x}.detach())\n{result} = {x} + (len(self.{s}) % 2)"),
        (f"self.{s} = torch.zeros(())",
         f"self.{s}.add_(1)\n{result} = {x} + 0.6 * (self.{s} % 2)"),
        (f"self.{s} = {{}}", f"{result} = {x} + self.{s}.get('last', 0.0)\n"
                             f"self.{s}['last'] = {x}.abs().mean()"),
        (f"self.{s} = 0.5", f"{result} = {x} * self.{s}\nself.{s} = 1.5 - self.{s}"),
        (f"self.{s} = torch.linspace(-1, 1, {shape[-1]})", f"{result} = {x} + self.{s}"),
    ]  # fmt: skip
    make, run = draw.rng.choice(rows)
    return Piece((x,), result, (run,), (make,))


@piece(3)
def _settings(draw: Draw, x: str) -> Piece:
    """Flags and numbers that the forward reads, which change between calls."""
    s, result = draw.fresh("set"), draw.fresh("v")
    rows = [
        ("True", f"{result} = F.relu({x}) if self.{s} else {x} * 0.5", "False"),
        ("0.9", f"{result} = {x} * self.{s}", "0.4"),
        ("2", f"{result} = {x}\nfor _ in range(self.{s}):\n    {result} = {result} * 0.8", "1"),
        ('"relu"', f"{result} = getattr(F, self.{s})({x})", '"silu"'),
        ("[0.8, 0.2]", f"{result} = {x} * self.{s}[0] + self.{s}[1]", "[0.5, 0.0]"),
        ("{'a': 0.9}", f"{result} = {x} * self.{s}['a']", "{'a': 0.5}"),
        ("torch.tensor(0.9)", f"{result} = {x} * self.{s}", "torch.tensor(0.5)"),
        ("None", f"{result} = {x} if self.{s} is None else {x} * self.{s}", "0.5"),
        ("F.relu", f"{result} = self.{s}({x})", "torch.abs"),
    ]
    first, run, then = draw.rng.choice(rows)
    change = (f"self.{s} = {then}",) if draw.rng.random() < 0.6 else ()
    inside = {"[": f"self.{s}[0] = 0.5", "{": f"self.{s}['a'] = 0.5", "t": f"self.{s}.fill_(0.5)"}
    if first[0] in inside and draw.rng.random() < 0.5:
        change = (inside[first[0]],)
    return Piece((x,), result, (run,), (f"self.{s} = {first}",), change=change)


# ---- blocks --------------------------------------------------------------------------------------


@piece(5)
def _block(draw: Draw, x: str) -> Piece | None:
    """A class of its own, called once or twice."""
    if draw.depth:
        return None
    name, child, result = draw.fresh("Block"), draw.fresh("block"), draw.fresh("v")
    value = draw.values[0][x], draw.values[1][x]
    block = _grown(
        draw.seed, draw.rng, draw.kind, name, value[0].clone(), value[1].clone(), 3, draw.depth + 1
    )
    if not block.pieces:
        return None
    other = draw.rng.choice(draw.like(x))
    form = draw.rng.choice(
        [f"self.{child}({x})", f"self.{child}({x})", f"self.{child}({x}) + self.{child}({other} * 0.5)"]
    )  # fmt: skip
    after = ()
    if draw.rng.random() < 0.2:
        after = (f"self.{child}.{draw.rng.choice(_HOOKS)}",)
    return Piece(
        tuple(dict.fromkeys((x, other))) if other in form else (x,), result,
        (f"{result} = {form}",), (f"self.{child} = {name}()",), after, block=block,
    )  # fmt: skip
