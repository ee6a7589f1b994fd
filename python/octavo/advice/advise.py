"""What to call: a table of rules over the model, the machine and the target."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from octavo.advice.cpu import Machine, machine
from octavo.advice.figures import figure
from octavo.advice.footprint import Footprint, footprint
from octavo.advice.speeds import Speed, speed_of
from octavo.advice.traits import Traits, traits
from octavo.api import quantize
from octavo.checks.model import check_model
from octavo.data import Batches
from octavo.deciding.sensitivity import SAMPLES
from octavo.errors import NothingQuantizedError, describe
from octavo.interrupts import held_back
from octavo.reporting.html import page, rows
from octavo.reporting.report import size_text
from octavo.signature import check_names, known_arguments
from octavo.types import Data, Model, QuantizeOptions, TargetName

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["RULES", "TARGETS", "Advice", "Reason", "Rule", "Situation", "Target", "advise"]


# ---- targets -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Where the model is to run.

    Attributes:
        short_of: "time", "file" (the size of what is downloaded) or "memory".
        here: whether the target is a machine like this one; the caches of other machines are not
            known.
        at_once: how many texts a language model writes at a time; used where there is no data.
    """

    name: str
    short_of: str
    here: bool
    at_once: int
    what: str


TARGETS = {
    target.name: target
    for target in (
        Target(
            "phone", "file", False, 1, "one input at a time; what is downloaded should be small"
        ),
        Target("server", "time", True, 16, "this machine, many inputs at a time"),
        Target("edge", "memory", False, 1, "a small device, short of memory and storage"),
        Target("notebook", "time", True, 1, "this machine, one input at a time"),
    )
}


@dataclass(frozen=True)
class Situation:
    """All that the rules depend on."""

    traits: Traits
    machine: Machine
    target: Target
    has_data: bool

    @property
    def uses(self) -> float | None:
        """Uses of a weight in one product: from data, else the number of texts written at once.

        A recurrent network has one product for each time step, over the samples of a call.
        """
        if self.traits.family == "recurrent":
            return None if self.traits.samples is None else float(self.traits.samples)
        if self.traits.uses is not None:
            return self.traits.uses
        return float(self.target.at_once) if self.traits.generates else None

    @property
    def products(self) -> bool:
        """Whether its work is that of linear layers outside of convolutional networks."""
        return self.traits.family in ("transformer", "linear", "embedding", "recurrent")

    @property
    def often(self) -> str:
        """How often a weight is used, in words."""
        when = "at a time" if self.traits.family == "recurrent" else "in a call"
        return f"each weight is used {self.uses:.3g} times {when}"

    @property
    def beyond_l2(self) -> bool:
        """Whether 8-bit weights (look-ups left out) exceed the second cache; 1 MiB if unknown."""
        count = sum(self.traits.weights.values()) - self.traits.weights["embedding"]
        known = self.machine.caches.get(2) if self.target.here else None
        return count > (known or 1 << 20)

    @property
    def few_uses(self) -> bool:
        """Whether products wait for weights, not for arithmetic."""
        return self.products and self.uses is not None and self.uses <= 8 and self.beyond_l2

    @property
    def small(self) -> bool:
        """Whether size counts more than anything else."""
        return self.target.short_of != "time"


# ---- rules ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """One row: where ``when`` holds, these arguments replace those of earlier rules.

    Attributes:
        gives: arguments of `octavo.quantize`; "data" is True where data is passed on.
        why: one sentence.
        source: where that was measured.
    """

    name: str
    when: Callable[[Situation], bool]
    gives: Callable[[Situation], dict[str, Any]]
    why: Callable[[Situation], str]
    source: str


def _nothing(_: Situation) -> dict[str, Any]:
    return {}


def _ends(s: Situation, inner: int) -> dict[str, Any]:
    """Few bits inside, 8 where depthwise and at both ends."""
    depthwise = dict.fromkeys(s.traits.depthwise, 8)
    return {"bits": {"*": inner, **depthwise, "@first": 8, "@last": 8}}


def _packed(_: Situation) -> dict[str, Any]:
    return {"bits": 4, "group_size": 64, "grid": "nf"}


def _left(s: Situation) -> list[str]:
    total = max(sum(s.traits.weights.values()), 1)
    return [
        f"{x.layers} {x.type} ({100 * x.weights / total:.0f} % of the weights: {x.reason})"
        for x in s.traits.left
        if x.weights >= 0.01 * total
    ]


def _few(network: str, asked: str, place: int = 0) -> str:
    return figure("few bits", (network, asked), "result", place)


def _linear(rows: int, bits: int) -> str:
    return figure("linear layer on Zen 5", (f"{rows}, 4096, 4096", f"{bits}"), "octavo")


RULES = (
    Rule(
        "eight bits",
        lambda s: s.traits.eligible > 0,
        lambda s: {"bits": 8},
        lambda s: "8 bits cost about a tenth of a point, and are computed as they are stored",
        f"README: MobileNetV2 probe at 8 bits {_few('MobileNetV2', '8 bits')}; torchvision's int8 "
        "models lose 0.1 to 0.4 points",
    ),
    Rule(
        "whole network in integers",
        lambda s: s.has_data and s.traits.family in ("convolutional", "linear"),
        lambda s: {"data": True},
        lambda s: "with data, activations have fixed ranges and whole stretches run in integers",
        "README, How it compares",
    ),
    Rule(
        "no data",
        lambda s: not s.has_data and s.traits.family == "convolutional",
        _nothing,
        lambda s: "without data every image gets its own ranges, layer by layer: slower than "
        "ranges that are known before",
        "octavo demo on AMD Zen 5: 107 us an image this way, 20 with data, 159 in float",
    ),
    Rule(
        "ranges of each row",
        lambda s: s.traits.family in ("transformer", "embedding", "recurrent"),
        _nothing,
        lambda s: "each row gets a range of its own in every call: "
        "outliers of one row do not spoil another, and data is not needed at 8 bits",
        "MiniLM: cosine to float at least 0.998 (tests/models/test_minilm.py); "
        "sentence-transformers: dynamic keeps 99.68 %, static 99.64 %",
    ),
    Rule(
        "many uses of a weight",
        lambda s: s.products and not s.few_uses and (s.uses or 0) >= 16 and not s.small,
        _nothing,
        lambda s: f"{s.often}, so arithmetic is what takes time: 4 bits would not be faster than 8",
        "benchmarks/README.md, One linear layer: 16, 4096, 4096 in "
        f"{_linear(16, 8)} us at 8 bits, {_linear(16, 4)} at 4",
    ),
    Rule(
        "few uses of a weight",
        lambda s: s.few_uses,
        _packed,
        lambda s: f"{s.often} and 8-bit weights exceed the L2 cache, so products wait for weights: "
        "4 bits bring them in half the time",
        "benchmarks/README.md, One linear layer: 1, 4096, 4096 in "
        f"{_linear(1, 8)} us at 8 bits, {_linear(1, 4)} at 4",
    ),
    Rule(
        "small products",
        lambda s: s.products
        and not s.few_uses
        and (s.target.short_of == "memory" or (s.target.short_of == "file" and s.has_data)),
        _packed,
        lambda s: "4 bits stay packed in memory and in the file, 4.25 bits a weight",
        "README, What is supported",
    ),
    Rule(
        "levels of a normal distribution",
        lambda s: s.products and (s.few_uses or s.small),
        _nothing,
        lambda s: "where weights have 4 bits, the levels nf fit bell-shaped weights better than "
        "equal steps, at the same time a product",
        "README: stories260k at 4 bits without data "
        f"{_few('stories260k', '4 bits, no data', 1)} nats against "
        f"{_few('stories260k', '4 bits, no data')}",
    ),
    Rule(
        "data for codes",
        lambda s: s.products and s.has_data and (s.few_uses or s.small),
        lambda s: {"data": True, "activations": "dynamic"},
        lambda s: "with data, 4-bit codes are chosen for what layers give out (gptq)",
        f"README: stories260k at 4 bits {_few('stories260k', '4 bits, data', 1)} nats with data, "
        f"{_few('stories260k', '4 bits, no data', 1)} without",
    ),
    Rule(
        "small file",
        lambda s: s.traits.family == "convolutional" and s.small and not s.traits.depthwise,
        lambda s: _ends(s, 4),
        lambda s: "4-bit convolutions halve the file and cost a tenth of a point where no layer is "
        "depthwise; in memory they are 8-bit, and as fast",
        f"README: ResNet-20 at 4 bits {_few('ResNet-20', '4, 3, 2 bits, data')} with data, "
        f"{_few('ResNet-20', '4 bits, no data')} without",
    ),
    Rule(
        "depthwise",
        lambda s: bool(s.traits.depthwise) and s.traits.family == "convolutional" and s.small
        and s.has_data,
        lambda s: _ends(s, 5),
        lambda s: "few weights share a scale in depthwise convolutions, so that these keep 8 bits; "
        "the others take 5",
        "MobileNetV2 probe, 2,000 held-out training images: 87.45 this way, 87.5 at 8 bits, 84.95 "
        "with 4 for 5; 4 bits everywhere 83.75",
    ),
    Rule(
        "depthwise without data",
        lambda s: bool(s.traits.depthwise) and s.traits.family == "convolutional" and s.small
        and not s.has_data,
        _nothing,
        lambda s: "fewer than 8 bits need data in networks with depthwise convolutions",
        "README: MobileNetV2 probe at 4 bits, plain rounding: "
        f"{_few('MobileNetV2', '4 bits, `effort')}, at 8 bits {_few('MobileNetV2', '8 bits')}",
    ),
    Rule(
        "first and last",
        lambda s: s.traits.family == "convolutional" and s.small
        and (s.has_data or not s.traits.depthwise),
        _nothing,
        lambda s: "the first and the last layer keep 8 bits: "
                  "they hold few weights and much of the error",
        "BRECQ (arXiv 2102.05426), QDrop, LSQ: all keep them at 8 bits",
    ),
    Rule(
        "look-up tables",
        lambda s: s.traits.share("embedding") >= 0.3,
        _nothing,
        lambda s: f"{100 * s.traits.share('embedding'):.0f} % of the weights are look-up tables: "
        "they shrink like the rest and stay packed, but looking up takes no less time",
        "README, What is supported",
    ),
    Rule(
        "stays float",
        lambda s: bool(_left(s)),
        _nothing,
        lambda s: "without an integer form: " + "; ".join(_left(s)[:4]),
        "octavo.nn.registry",
    ),
    Rule(
        "no vector kernels",
        lambda s: s.target.here and s.machine.isa == "scalar",
        _nothing,
        lambda s: "this CPU runs the scalar kernels: the gain is memory, not time",
        "octavo.isas()",
    ),
)  # fmt: skip
"""In order; arguments of later rules win."""


# ---- the advice ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reason:
    """A rule that fired."""

    rule: str
    why: str
    source: str


@dataclass(frozen=True)
class Advice:
    """A call of `octavo.quantize`, and why. `str` gives the text, `to_dict` plain JSON data.

    Attributes:
        arguments: of the call, without model and data; {} if there is nothing to quantize.
        uses_data: whether the call takes data too.
        size: exact sizes of the model before and after that call; None if there is nothing to
            quantize.
        hints: other things that could be done.
    """

    target: str
    traits: Traits
    machine: Machine
    arguments: dict[str, Any]
    uses_data: bool
    reasons: tuple[Reason, ...]
    size: Footprint | None
    speed: Speed
    hints: tuple[str, ...] = field(default=())

    @property
    def call(self) -> str:
        """The call as text, of ``octavo``, ``model`` and ``data``; "" if there is none."""
        if not self.arguments:
            return ""
        others = [f"{k}={v!r}" for k, v in self.arguments.items() if k != "bits"]
        given = ["model", repr(self.arguments["bits"]), *(["data"] if self.uses_data else [])]
        return f"octavo.quantize({', '.join([*given, *others])})"

    def apply(
        self, model: Model, data: Data | None = None, **others: Unpack[QuantizeOptions]
    ) -> Model:
        """Makes the call and returns the quantized model.

        Args:
            model: the model that was advised on, or one like it.
            data: batches; needed where ``uses_data``, else ignored.
            **others: more arguments of `octavo.quantize`; they replace those of the advice.

        Raises:
            NothingQuantizedError: nothing can be quantized, so there is no call.
            ValueError: data is missing. Others as `octavo.quantize` has them.
        """
        known = ["model", "data", *QuantizeOptions.__annotations__]
        check_names("Advice.apply", others, known)
        if not self.arguments:
            raise NothingQuantizedError(
                "Advice.apply: the model must hold a layer that octavo can quantize, got none. "
                "See the reasons."
            )
        if self.uses_data and data is None:
            raise ValueError(
                f"Advice.apply: data must be batches for {self.call}, got None. Pass data=batches."
            )
        options = {**self.arguments, **others}
        return quantize(model, data=data if self.uses_data else None, **options)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**dataclasses.asdict(self), "call": self.call}

    def _lines(self) -> list[tuple[str, str]]:
        lines = [
            ("model", str(self.traits)),
            ("target", f"{self.target}: {TARGETS[self.target].what}"),
            ("machine", str(self.machine)),
            ("call", self.call or "none: there is nothing to quantize"),
        ]
        if self.size is not None:
            size = self.size
            lines.append(
                (
                    "size",
                    f"{size_text(size.float_bytes)} float; {size_text(size.bytes)} in memory, "
                    + (
                        "cannot be saved"
                        if size.file_bytes is None
                        else f"{size_text(size.file_bytes)} in the file"
                    ),
                )
            )
        lines.append(("speed", str(self.speed)))
        lines += [(reason.rule, f"{reason.why} [{reason.source}]") for reason in self.reasons]
        lines += [("hint", hint) for hint in self.hints]
        return lines

    def __str__(self) -> str:
        lines = self._lines()
        indent = max(len(name) for name, _ in lines) + 2
        return "\n".join(
            textwrap.fill(
                f"{name:{indent}}{text}",
                110,
                subsequent_indent=" " * indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for name, text in lines
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return page(rows(self._lines()))


@held_back()
@known_arguments
def advise(model: nn.Module, target: TargetName = "notebook", data: Data | None = None) -> Advice:
    """A call of `octavo.quantize` for this model and target, with reasons, size and speed.

    Nothing is quantized and the model stays as it is. The rules are rows of one table, `RULES` in
    this module, each with its source.

    Example:
        >>> import torch, octavo
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).eval()
        >>> octavo.advise(model, "server").call
        'octavo.quantize(model, 8)'

    Args:
        model: any float nn.Module on the CPU.
        target: "phone" (a small file), "edge" (small in memory), "server" (this machine, many
            inputs at once) or "notebook" (this machine, one input at a time).
        data: batches as for `octavo.quantize`, of the size that the model is going to be called
            with: the first one is run, and the call that is recommended may use them.

    Raises:
        TypeError: the model is no float nn.Module, data does not fit it.
        ValueError: an unknown target, a model that octavo cannot quantize as it is.
    """
    if not isinstance(target, str) or target not in TARGETS:
        raise ValueError(
            f"advise: target must be one of {', '.join(TARGETS)}, got {describe(target)}. "
            'Use for example "server".'
        )
    check_model(model)
    batches = None if data is None else Batches(data, SAMPLES)  # All that an average of bits needs.
    situation = Situation(_traits(model, batches), machine(), TARGETS[target], data is not None)
    arguments: dict[str, Any] = {}
    reasons = []
    for rule in RULES:
        if rule.when(situation):
            arguments |= rule.gives(situation)
            reasons.append(Reason(rule.name, rule.why(situation), rule.source))
    uses_data = bool(arguments.pop("data", False)) and "bits" in arguments
    if "bits" not in arguments:
        arguments = {}
    size = footprint(model, batches if uses_data else None, **arguments) if arguments else None
    return Advice(
        target,
        situation.traits,
        situation.machine,
        arguments,
        uses_data,
        tuple(reasons),
        size,
        _speed(situation, arguments, uses_data),
        tuple(_hints(situation, arguments)),
    )


def _traits(model: nn.Module, batches: Batches | None) -> Traits:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return traits(model, batches)
    finally:
        for module, mode in modes:
            module.training = mode


def _speed(s: Situation, arguments: dict[str, Any], uses_data: bool) -> Speed:
    if not s.target.here:
        return Speed(None, None, "this target's CPUs were not measured")
    if s.traits.eligible < 200_000:
        return Speed(None, None, "models of fewer than 200,000 weights were not measured")
    return speed_of(s.machine.isa, _kind(s, arguments, uses_data))


def _kind(s: Situation, arguments: dict[str, Any], uses_data: bool) -> str:
    """The kind of network in `octavo.advice.speeds`."""
    if s.traits.family == "convolutional":
        kind = "depthwise" if s.traits.depthwise else "convolutional"
        return f"{kind}, {'static' if uses_data else 'dynamic'}"
    if s.few_uses:
        return f"{s.traits.family}, {arguments.get('bits')} bits, few uses"
    return f"{s.traits.family}, {arguments.get('bits')} bits"


def _hints(s: Situation, arguments: dict[str, Any]) -> list[str]:
    hints = []
    if not s.has_data:
        hints.append("give data (batches as the model is called with): advice and result improve")
    if arguments and arguments.get("bits") != 8:
        hints.append('effort="best" learns the rounding from data, and takes minutes')
        hints.append("evaluate= and max_drop= of octavo.quantize search the smallest widths")
        if s.traits.family == "convolutional":
            hints.append("octavo.quantize(..., qat=True) trains what rounding loses")
    return hints
