"""The outcome for a flow: regions that run in integers, and float steps between them."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.graph.flow import Flow, Step
from octavo.ops.region_steps import PLANNED, PRODUCTS

__all__ = ["FlowPlan", "RegionPlan", "parts_of"]


@dataclass(frozen=True)
class RegionPlan:
    """A stretch of a flow that runs in integers.

    Attributes:
        name: "<flow path>#<index>" ("#0" for the root's first).
        steps: fused integer steps in execution order, without quantize and dequantize. Kinds
            "conv_f32" and "linear_f32" have float results; a clamp fused into a step is its params
            "lo" and "hi", in reals.
        inputs: float values that are quantized at the entry.
        outputs: values that leave as floats.
        params_of: every u8 value of the region, entry values included, to the value whose QParams
            it uses (itself, or the one it shares with: pooling, slicing, concat ...). Calibration
            gives QParams to each value that maps to itself, under the key "<flow path>:<value>".
            Outputs that conv or linear computes in float are not in it.
        layouts: "image", "image1d" or "rows" of each input.
        bits: of each value that maps to itself and has fewer than 8. A `Narrow` value is stored a
            second time: its range comes from the data of the wide one.
    """

    name: str
    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params_of: dict[str, str]
    layouts: dict[str, str] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of modules that run in it without a quantized class: lone BatchNorm, PReLU, ReLU.

        Those with Parameters have a row in the report.
        """
        parts = [
            part
            for step in self.steps
            if PLANNED[step.kind].is_pointwise and PLANNED[step.kind].has("panel")
            for part in parts_of(step)
        ]
        return tuple(dict.fromkeys(part.module for part in parts if part.module))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that run in it, each once."""
        return tuple(dict.fromkeys(s.module for s in self.steps if s.kind in PRODUCTS))

    def __str__(self) -> str:
        lines = [f"region {self.name}: {', '.join(self.inputs)} -> {', '.join(self.outputs)}"]
        for step in self.steps:
            what = (
                "+".join(part.module or part.function for part in step.fused)
                or step.module
                or step.function
            )
            shared = self.params_of.get(step.output, step.output)
            shares = f"  range of {shared}" if shared != step.output else ""
            lines.append(f"  {step.output} = {step.kind}({', '.join(step.inputs)})  {what}{shares}")
        return "\n".join(lines)


@dataclass(frozen=True)
class FlowPlan:
    """How a captured module's forward will run: regions and float steps in order.

    After the items ran, every value that ``flow.output`` names exists.
    """

    flow: Flow
    items: tuple[RegionPlan | Step, ...]

    @property
    def regions(self) -> tuple[RegionPlan, ...]:
        """The regions among the items."""
        return tuple(item for item in self.items if isinstance(item, RegionPlan))

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the items, those of regions included."""
        parts = (item.steps if isinstance(item, RegionPlan) else (item,) for item in self.items)
        return tuple(step for part in parts for step in part)


def parts_of(step: Step) -> tuple[Step, ...]:
    """The steps that were fused into one, in order; itself where none were."""
    return step.fused or (step,)
