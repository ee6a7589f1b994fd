"""Cuts a flow into regions that run in integers and float steps between them: no data, no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from octavo.graph.flow import Flow, Step, refs
from octavo.graph.functions import operation
from octavo.graph.kinds import clamp_of
from octavo.ops.region_steps import PLANNED, PRODUCTS, StepKind
from octavo.planning.fuse import fused
from octavo.planning.region_plan import FlowPlan, RegionPlan, parts_of
from octavo.planning.widths import shared_params, with_bits

__all__ = ["cut"]


def cut(flow: Flow, static: Mapping[str, int]) -> FlowPlan | None:
    """The flow's regions; None if nothing of it can run in integers.

    Args:
        flow: the captured calls.
        static: layers with integer weights and static activations, to the bits of their inputs.
    """
    if not flow.shapes:
        return None
    return _Cutter(flow, static).plan()


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
                    before, output=step.output, fused=parts_of(before) + parts_of(step)
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
        steps = fused([self._resolved(node) for node in nodes], outside, self.flow.shapes)
        made = {step.output for step in steps}
        inputs = tuple(dict.fromkeys(v for step in steps for v in step.inputs if v not in made))
        outputs = tuple(step.output for step in steps if step.output in outside)
        layouts = {value: self.layouts[value] for value in inputs}
        params_of = shared_params(steps, inputs, outside)
        region = RegionPlan(name, tuple(steps), inputs, outputs, params_of, layouts)
        return with_bits(region, self.static, frozenset(self.flow.parameters), outside)

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
            before += [part for link in reversed(chain) for part in parts_of(link)]
        if not before:
            return step
        return replace(step, inputs=self.reads(node), fused=(*before, *parts_of(step)))
