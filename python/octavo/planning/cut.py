"""Cuts a flow into regions that run in integers and float steps between them: no data, no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from octavo.graph.flow import Flow, Ref, Step, refs
from octavo.graph.functions import operation
from octavo.graph.keys import Narrow
from octavo.graph.kinds import clamp_of
from octavo.ops.region_steps import PLANNED, PRODUCTS, TABLE, StepKind

__all__ = ["FlowPlan", "RegionPlan", "cut"]


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
            for part in _parts(step)
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


def cut(flow: Flow, static: Mapping[str, int]) -> FlowPlan | None:
    """The flow's regions; None if nothing of it can run in integers.

    Args:
        flow: the captured calls.
        static: layers with integer weights and static activations, to the bits of their inputs.
    """
    if not flow.shapes:
        return None
    return _Cutter(flow, static).plan()


def _parts(step: Step) -> tuple[Step, ...]:
    return step.fused or (step,)


class _Cutter:
    """Node: index of a step in ``self.steps``. Candidates: nodes that run in integers so far."""

    def __init__(self, flow: Flow, static: Mapping[str, int]) -> None:
        self.flow = flow
        self.static = static
        self.outputs = set(refs(flow.output))
        self.steps = self._without_identities()
        self.producer = {step.output: node for node, step in enumerate(self.steps)}
        self.candidates = {
            node
            for node, step in enumerate(self.steps)
            if step.kind in PLANNED and (step.kind not in PRODUCTS or step.module in static)
        }
        self.layouts: dict[str, str] = {}

    def _without_identities(self) -> list[Step]:
        """Identities that are the only reader of a step become part of it; it takes their name."""
        readers: dict[str, int] = {}
        for step in self.flow.steps:
            for value in step.inputs:
                readers[value] = readers.get(value, 0) + 1
        steps: list[Step] = []
        at: dict[str, int] = {}
        for step in self.flow.steps:
            source = step.inputs[0] if step.kind == "identity" else ""
            if source in at and readers[source] == 1 and source not in self.outputs:
                node = at.pop(source)
                before = steps[node]
                steps[node] = replace(
                    before, output=step.output, fused=_parts(before) + _parts(step)
                )
                at[step.output] = node
            else:
                if step.kind in PLANNED:
                    at[step.output] = len(steps)
                steps.append(step)
        return steps

    def kind(self, node: int) -> StepKind:
        """The row of a candidate."""
        return PLANNED[self.steps[node].kind]

    # ---- reading relations

    def resolve(self, value: str) -> str:
        """The value that identities pass on."""
        while value in self.producer and self.steps[self.producer[value]].kind == "identity":
            value = self.steps[self.producer[value]].inputs[0]
        return value

    def reads(self, node: int) -> tuple[str, ...]:
        step = self.steps[node]
        return tuple(map(self.resolve, step.inputs)) if node in self.candidates else step.inputs

    def live(self) -> set[int]:
        """Nodes that something needs."""
        needed, live = set(self.outputs), set()
        for node in range(len(self.steps) - 1, -1, -1):
            step = self.steps[node]
            if step.output in needed or operation(step.function) == "_assert":
                live.add(node)
                needed.update(self.reads(node))
        return live

    def readers(self) -> dict[str, list[int]]:
        """Live nodes that read each value; -1 stands for the flow's own output."""
        found: dict[str, list[int]] = {name: [-1] for name in self.outputs}
        for node in sorted(self.live()):
            for value in dict.fromkeys(self.reads(node)):
                found.setdefault(value, []).append(node)
        return found

    # ---- which steps run in integers

    def plan(self) -> FlowPlan | None:
        count = -1
        groups: dict[int, list[int]] = {}
        while count != len(self.candidates):
            count = len(self.candidates)
            self.candidates &= self.live()
            self._settle_layouts()
            self._keep_sums_of_images()
            self._trim()
            groups = self._grouped()
            for nodes in groups.values():
                if not any(self.kind(node).is_product for node in nodes):
                    self.candidates.difference_update(nodes)
        return self._arranged(groups) if groups else None

    def _settle_layouts(self) -> None:
        """Gives values of integer steps their layout; drops steps that contradict."""
        while True:
            self.layouts = {}
            bad = self._propagate()
            if not bad:
                return
            self.candidates -= bad

    def _propagate(self) -> set[int]:
        bad: set[int] = set()
        changed = True
        while changed:
            changed = False
            for node in sorted(self.candidates - bad):
                wanted = self._layouts_of(node)
                if wanted is None:
                    bad.add(node)
                    return bad
                for value, layout in wanted.items():
                    if layout and not self.layouts.get(value):
                        self.layouts[value] = layout
                        changed = True
                    elif layout and self.layouts[value] != layout:
                        bad.add(node)
                        return bad
        return {
            n for n in self.candidates if not all(self.layouts.get(v) for v in self._touched(n))
        }

    def _touched(self, node: int) -> tuple[str, ...]:
        return (*self.reads(node), self.steps[node].output)

    def _layouts_of(self, node: int) -> dict[str, str] | None:
        """The layout that the step asks of each value ("": it does not care); None: impossible."""
        step, kind = self.steps[node], self.kind(node)
        values = self.reads(node)
        rank = len(self.flow.shapes.get(values[0], ()))
        if kind.has_layout:
            image = {3: "image1d", 4: "image"}.get(rank, "")
            read = next((layout for layout in ("rows", image) if layout in kind.reads), "")
            flattened = bool(step.params.get("flatten", False))
            given = "rows" if flattened else kind.gives or read
            return {**dict.fromkeys(values, read), step.output: given} if read else None
        fixed = step.params.get("layout", "") or next(
            filter(None, map(self.layouts.get, self._touched(node))), ""
        )
        if not fixed and rank == 2:
            fixed = "rows"
        return dict.fromkeys(self._touched(node), str(fixed))

    def _keep_sums_of_images(self) -> None:
        """The residual stream of transformers stays float; so do products of rows."""
        from_conv: dict[str, bool] = {}
        for node in sorted(self.candidates):
            kind, result = self.kind(node), self.steps[node].output
            behind_conv = any(from_conv.get(v, False) for v in self.reads(node))
            if kind.is_binary and (
                self.layouts[result] == "rows" or (kind.is_sum and not behind_conv)
            ):
                self.candidates.discard(node)
                continue
            from_conv[result] = "image" in kind.reads if kind.is_product else behind_conv

    def _trim(self) -> None:
        """Drops what is better done in float: before the first and after the last rounding."""
        for node in sorted(self.candidates):
            sources = {self.producer.get(value, -1) for value in self.reads(node)}
            if self.kind(node).is_pointwise and not sources & self.candidates:
                self.candidates.discard(node)
        changed = True
        while changed:
            changed = False
            readers = self.readers()
            for node in sorted(self.candidates, reverse=True):
                step = self.steps[node]
                if any(reader in self.candidates for reader in readers.get(step.output, ())):
                    continue
                source = self.producer.get(self.reads(node)[0], -1)
                fusable = self._clamps(node, readers)
                if self.kind(node).is_pointwise and not fusable:
                    self.candidates.discard(node)
                    changed = True
                elif self.kind(node).moves and source in self.candidates:
                    if self._clamps(source, readers):
                        source = self.producer[self.reads(source)[0]]
                    if self.steps[source].kind in PRODUCTS:
                        self.candidates.discard(node)
                        changed = True

    def _clamps(self, node: int, readers: Mapping[str, list[int]]) -> bool:
        """Whether the step only clamps the result of a layer or sum that nothing else reads."""
        if node not in self.candidates or clamp_of(self.steps[node]) is None:
            return False
        (value,) = self.reads(node)
        source = self.producer.get(value, -1)
        return (
            source in self.candidates
            and self.kind(source).clamps
            and not self.kind(source).is_pointwise
            and readers[value] == [node]
        )

    # ---- which of them form one region

    def _grouped(self) -> dict[int, list[int]]:
        """Regions as lists of nodes, by first node; no two depend on each other in a circle."""
        leader = list(range(len(self.steps)))
        members = {node: [node] for node in range(len(self.steps))}
        readers = self.readers()

        def after(group: int) -> set[int]:
            found = {
                leader[r]
                for n in members[group]
                for r in readers.get(self.steps[n].output, ())
                if r >= 0
            }
            return found - {group}

        def reaches_around(start: int, goal: int) -> bool:
            """Whether a path leads from start to goal through a third group."""
            stack, seen = [g for g in after(start) if g != goal], {start}
            while stack:
                group = stack.pop()
                if group == goal:
                    return True
                if group not in seen:
                    seen.add(group)
                    stack.extend(after(group))
            return False

        def merge(a: int, b: int) -> None:
            a, b = leader[a], leader[b]
            if a == b or reaches_around(a, b) or reaches_around(b, a):
                return
            first, second = min(a, b), max(a, b)
            members[first] += members.pop(second)
            for node in members[first]:
                leader[node] = first

        for node in sorted(self.candidates):
            for value in self.reads(node):
                if self.producer.get(value, -1) in self.candidates:
                    merge(self.producer[value], node)
        for value, nodes in readers.items():
            if self.producer.get(value, -1) not in self.candidates:
                inside = [node for node in nodes if node in self.candidates]
                for node in inside[1:]:
                    merge(inside[0], node)
        return {group: sorted(members[group]) for group in members if group in self.candidates}

    def _arranged(self, groups: Mapping[int, list[int]]) -> FlowPlan:
        """Regions and live float steps, ordered so that every value exists before it is read."""
        live = self.live()
        group_of = {node: group for group, nodes in groups.items() for node in nodes}
        units: dict[int, list[int]] = {node: [node] for node in live if node not in group_of}
        units.update(groups)
        unit_of = {node: unit for unit, nodes in units.items() for node in nodes}
        needs = {
            unit: {
                unit_of[self.producer[value]]
                for node in nodes
                for value in self.reads(node)
                if value in self.producer
            }
            - {unit}
            for unit, nodes in units.items()
        }
        items: list[RegionPlan | Step] = []
        done: set[int] = set()
        names = iter(f"{self.flow.path}#{index}" for index in range(len(groups)))
        while len(done) < len(units):
            unit = min(u for u in units if u not in done and needs[u] <= done)
            done.add(unit)
            items.append(
                self._region(next(names), groups[unit]) if unit in groups else self.steps[unit]
            )
        return FlowPlan(self.flow, tuple(items))

    # ---- one region

    def _region(self, name: str, nodes: list[int]) -> RegionPlan:
        readers = self.readers()
        inside = set(nodes)
        outside = {value for value, found in readers.items() if not inside.issuperset(found)}
        steps = _fused([self._resolved(node) for node in nodes], outside, self.flow.shapes)
        made = {step.output for step in steps}
        inputs = tuple(dict.fromkeys(v for step in steps for v in step.inputs if v not in made))
        outputs = tuple(step.output for step in steps if step.output in outside)
        layouts = {value: self.layouts[value] for value in inputs}
        params_of = _shared_params(steps, inputs, outside)
        region = RegionPlan(name, tuple(steps), inputs, outputs, params_of, layouts)
        return _with_bits(region, self.static, frozenset(self.flow.parameters), outside)

    def _resolved(self, node: int) -> Step:
        """The step reading the values behind identities; these become part of it."""
        step = self.steps[node]
        before: list[Step] = []
        for read in step.inputs:
            chain: list[Step] = []
            value = read
            while value in self.producer and self.steps[self.producer[value]].kind == "identity":
                chain.append(self.steps[self.producer[value]])
                value = chain[-1].inputs[0]
            before += [part for link in reversed(chain) for part in _parts(link)]
        if not before:
            return step
        return replace(step, inputs=self.reads(node), fused=(*before, *_parts(step)))


def _joined(first: Step, second: Step, **changes: object) -> Step:
    """`first` with `second` computed in the same go."""
    params = {**first.params, **dict(changes.pop("params", {}))}  # type: ignore[call-overload]
    return replace(
        first,
        output=second.output,
        fused=_parts(first) + _parts(second),
        params=params,
        **changes,  # type: ignore[arg-type]
    )


def _fused(
    steps: list[Step], outside: set[str], shapes: Mapping[str, tuple[int, ...]]
) -> list[Step]:
    """Sums and clamps fused into what computes their operand, tables joined, float results."""
    steps = _fuse_sums(steps, outside, shapes)
    steps = _fuse_next(steps, outside, _fuse_clamp)
    steps = _fuse_next(steps, outside, _fuse_tables)
    read = _read_counts(steps)
    return [
        replace(step, kind=PLANNED[step.kind].float_form)
        if step.kind in PRODUCTS and len(step.inputs) == 1 and not read.get(step.output)
        else step
        for step in steps
    ]


def _read_counts(steps: Iterable[Step]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for step in steps:
        for value in step.inputs:
            counts[value] = counts.get(value, 0) + 1
    return counts


def _fuse_sums(
    steps: list[Step], outside: set[str], shapes: Mapping[str, tuple[int, ...]]
) -> list[Step]:
    result: list[Step | None] = list(steps)
    at = {step.output: position for position, step in enumerate(steps)}
    read = _read_counts(steps)
    for position, step in enumerate(steps):
        if not PLANNED[step.kind].is_sum:
            continue
        # The later operand first. Either may wait for the other, since nothing else reads it.
        for value in sorted(step.inputs, key=lambda value: -at.get(value, -1)):
            product = result[at[value]] if value in at else None
            if (
                product is not None
                and product.kind in PRODUCTS
                and len(product.inputs) == 1
                and read[value] == 1
                and value not in outside
            ):
                (other,) = (v for v in step.inputs if v != value)
                result[position] = _joined(product, step, inputs=(product.inputs[0], other))
                result[at[value]] = None
                break
    return [step for step in result if step is not None]


def _fuse_next(steps: list[Step], outside: set[str], join: object) -> list[Step]:
    """Joins each step with the only reader of its result where ``join`` gives a step."""
    read = _read_counts(steps)
    result: list[Step] = []
    at: dict[str, int] = {}
    for step in steps:
        source = step.inputs[0]
        if len(step.inputs) == 1 and source in at and read[source] == 1 and source not in outside:
            joined = join(result[at[source]], step)  # type: ignore[operator]
            if joined is not None:
                position = at.pop(source)
                result[position] = joined
                at[step.output] = position
                continue
        at[step.output] = len(result)
        result.append(step)
    return result


def _fuse_clamp(first: Step, second: Step) -> Step | None:
    limits = clamp_of(second)
    if limits is None or not PLANNED[first.kind].clamps:
        return None
    lo, hi = first.params.get("lo", float("-inf")), first.params.get("hi", float("inf"))
    lo, hi = (min(max(v, limits[0]), limits[1]) for v in (lo, hi))
    return _joined(first, second, params={"lo": lo, "hi": hi})


def _fuse_tables(first: Step, second: Step) -> Step | None:
    kind = PLANNED[first.kind]
    if second.kind != first.kind or not kind.composes:
        return None
    if not kind.clamps:
        return replace(_joined(first, second), params={})
    return None if "lo" in first.params else _joined(first, second, params=second.params)


def _shared_params(steps: list[Step], inputs: tuple[str, ...], outside: set[str]) -> dict[str, str]:
    """Which value's parameters each u8 value has."""
    params = {value: value for value in inputs}
    for step in steps:
        kind = PLANNED[step.kind]
        if not kind.gives_float:
            params[step.output] = params[step.inputs[0]] if kind.passes_codes else step.output
    for concat in reversed([step for step in steps if PLANNED[step.kind].is_list]):
        for value in concat.inputs:
            root = params[value]
            members = {member for member, found in params.items() if found == root}
            others = [
                step
                for step in steps
                if step is not concat
                and members.intersection(step.inputs)
                and not (PLANNED[step.kind].passes_codes and step.output in members)
            ]
            if not others and not members & outside and root != params[concat.output]:
                for member in members:
                    params[member] = params[concat.output]
    return params


def _with_bits(
    region: RegionPlan, static: Mapping[str, int], own_inputs: frozenset[str], outside: set[str]
) -> RegionPlan:
    """Stores inputs of layers in the bits asked for, a second time where others need 8."""
    if all(static[name] == 8 for name in region.layers):
        return region
    asked: dict[str, set[int]] = {}
    for step in region.steps:
        kind = PLANNED[step.kind]
        for position, value in enumerate(step.inputs):
            root = region.params_of[value]
            if not (kind.passes_codes and region.params_of[step.output] == root):
                asked.setdefault(root, set()).add(
                    static[step.module] if kind.is_product and position == 0 else 8
                )
    for value in outside:
        if value in region.params_of:
            asked.setdefault(region.params_of[value], set()).add(8)
    sums = {s.output for s in region.steps if PLANNED[s.kind].is_list}
    fixed = {region.params_of[v] for v in region.params_of if v in own_inputs} | sums
    bits = {
        root: next(iter(wanted))
        for root, wanted in asked.items()
        if len(wanted) == 1 and root not in fixed and wanted != {8}
    }
    params_of = dict(region.params_of)
    steps: list[Step] = []
    for step in region.steps:
        if step.kind in PRODUCTS:
            value, wanted = step.inputs[0], static[step.module]
            root = region.params_of[value]
            if wanted != bits.get(root, 8) and root not in _own(region, own_inputs):
                narrow = str(Narrow(value, wanted))
                if narrow not in params_of:
                    steps.append(
                        Step(
                            TABLE.planned, (value,), narrow, function="identity", args=(Ref(value),)
                        )
                    )
                    params_of[narrow] = narrow
                    bits[narrow] = wanted
                steps.append(replace(step, inputs=(narrow, *step.inputs[1:])))
                continue
        steps.append(step)
    return replace(region, steps=tuple(steps), params_of=params_of, bits=bits)


def _own(region: RegionPlan, own_inputs: frozenset[str]) -> set[str]:
    """Parameters of the model's own inputs: layers read these in 8 bits."""
    return {region.params_of[value] for value in region.inputs if value in own_inputs}
