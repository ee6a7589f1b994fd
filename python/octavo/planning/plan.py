"""Model to Plan: for every site a scheme, activations, and a region or the reason for float."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from octavo.errors import describe
from octavo.files.typed import made
from octavo.graph.capture import Capture
from octavo.graph.flow import Step, from_data, to_data
from octavo.numerics.scheme import Activations, Scheme
from octavo.planning.cut import cut
from octavo.planning.region_plan import FlowPlan, RegionPlan

_FORMAT = "octavo.plan 1"

__all__ = ["FlowPlan", "Plan", "RegionPlan", "SitePlan", "plan"]


@dataclass(frozen=True)
class SitePlan:
    """One layer of the model that could be quantized.

    Attributes:
        scheme: how its weight is stored; None where it stays float.
        reason: why it stays float.
        region: name of the region that runs it, "" when it runs alone.
    """

    name: str
    type: str
    scheme: Scheme | None
    activations: Activations = "dynamic"
    activation_bits: int = 8
    region: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before data is read. Printable, comparable, JSON in and out."""

    sites: tuple[SitePlan, ...]
    flows: tuple[FlowPlan, ...] = field(default=())

    def __str__(self) -> str:
        lines = []
        for site in self.sites:
            name = site.name or "(root)"
            if site.scheme is None:
                lines.append(f"{name}  {site.type}  float: {site.reason}")
                continue
            scheme = site.scheme
            bits = f" {site.activation_bits} bits" if site.activations == "static" else ""
            where = f"  region {site.region}" if site.region else ""
            why = f"  ({site.reason})" if site.reason else ""
            lines.append(
                f"{name}  {site.type}  {scheme.bits} bits {scheme.grid} per {scheme.granularity}, "
                f"activations {site.activations}{bits}{where}{why}"
            )
        for flow in self.flows:
            for item in flow.items:
                lines.append(
                    str(item) if isinstance(item, RegionPlan) else f"float step {item.output}"
                )
        return "\n".join(lines)

    def to_json(self) -> str:
        """The plan as JSON text."""
        sites = [_site_to_data(site) for site in self.sites]
        flows = [_flow_plan_to_data(flow) for flow in self.flows]
        parts = [f'"format": "{_FORMAT}"', f'"sites": {_lines(sites)}', f'"flows": {_lines(flows)}']
        return "{" + ",\n".join(parts) + "}\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `to_json`; ValueError for anything else.

        What its steps may call is looked at once the model is there (flow_check.py).
        """
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"Plan: expected JSON text, got {describe(text)} ({error}). "
                "Use what Plan.to_json wrote."
            ) from None
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f"Plan: expected format {_FORMAT!r}, got {found!r}. Use what Plan.to_json wrote."
            )
        try:
            return cls(
                tuple(_site_from_data(site) for site in data["sites"]),
                tuple(_flow_plan_from_data(flow) for flow in data["flows"]),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"Plan: expected all fields of a plan, got one that fails at {error}. "
                "Use what Plan.to_json wrote."
            ) from None


def plan(
    capture: Capture,
    schemes: Scheme | Mapping[str, Scheme | None],
    activations: Activations = "dynamic",
    activation_bits: int | Mapping[str, int] = 8,
    *,
    reasons: Mapping[str, str] | None = None,
    groups: Mapping[str, int] | None = None,
    by_rows: Mapping[str, str] | None = None,
) -> Plan:
    """Decides for every site how it is stored and run, and where regions lie.

    Args:
        capture: of the (folded) model; regions need one made with an example.
        schemes: of each site, None for those that stay float; or one for all sites. Sites without
            an integer class stay float in any case.
        activations: of all sites.
        activation_bits: 2..8, of the inputs of layers, or of each by its name; every other value
            in a region has 8 bits.
        reasons: why a site has None, for the report.
        groups: inputs that share a scale in layers that run alone and whose scheme does not say.
            Layers in regions have one scale an output channel.
        by_rows: layers that run alone with a range of each row whatever ``activations`` says, and
            why.
    """
    reasons, by_rows = reasons or {}, by_rows or {}
    sites: dict[str, SitePlan] = {}
    for site in capture.sites:
        asked = schemes if isinstance(schemes, Scheme) else schemes.get(site.name)
        if site.reason or asked is None:
            why = site.reason or reasons.get(site.name, "excluded")
            sites[site.name] = SitePlan(site.name, site.type, None, "float", 8, "", why)
        else:
            how: Activations = "float" if site.looks_up else activations
            how = "dynamic" if site.name in by_rows else how
            why, bits = by_rows.get(site.name, ""), 8
            if how == "static":
                bits = (
                    activation_bits
                    if isinstance(activation_bits, int)
                    else activation_bits.get(site.name, 8)
                )
            sites[site.name] = SitePlan(site.name, site.type, asked, how, bits, "", why)
    flows: list[FlowPlan] = []
    if activations == "static":
        static = {
            name: site.activation_bits
            for name, site in sites.items()
            if site.scheme is not None and site.activations == "static" and site.scheme.is_plain
        }
        for flow in capture.flows:
            flow_plan = cut(flow, static)
            if flow_plan is None:
                continue
            flows.append(flow_plan)
            for region in flow_plan.regions:
                for name in region.layers:
                    sites[name] = replace(sites[name], region=region.name)
                for name in sites.keys() & set(region.factors):
                    why = "no weight to quantize: computed in integers as a step of the region"
                    sites[name] = replace(sites[name], region=region.name, reason=why)
    for name, size in (groups or {}).items():
        made = sites[name]
        if made.scheme and not made.region and not made.scheme.group_size:
            sites[name] = replace(made, scheme=replace(made.scheme, group_size=size))
    return Plan(tuple(sites.values()), tuple(flows))


def _lines(items: list[dict[str, Any]]) -> str:
    """A JSON list with one item a line, for people who edit it."""
    texts = [json.dumps(item, allow_nan=False) for item in items]
    return "[\n" + ",\n".join(texts) + "\n]" if texts else "[]"


def _site_to_data(site: SitePlan) -> dict[str, Any]:
    data = dict(vars(site))
    data["scheme"] = None if site.scheme is None else dict(vars(site.scheme))
    return data


def _site_from_data(data: dict[str, Any]) -> SitePlan:
    scheme = data["scheme"]
    return made(SitePlan, {**data, "scheme": None if scheme is None else made(Scheme, scheme)})


def _flow_plan_to_data(plan: FlowPlan) -> dict[str, Any]:
    items = [
        {"region": {key: to_data(value) for key, value in vars(item).items()}}
        if isinstance(item, RegionPlan)
        else to_data(item)
        for item in plan.items
    ]
    return {"flow": to_data(plan.flow), "items": items}


def _flow_plan_from_data(data: dict[str, Any]) -> FlowPlan:
    flow = from_data(data["flow"])
    items: list[RegionPlan | Step] = []
    for item in data["items"]:
        if isinstance(item, dict) and set(item) == {"region"}:
            fields = {key: from_data(value) for key, value in dict(item["region"]).items()}
            items.append(made(RegionPlan, fields))
        else:
            items.append(from_data(item))
    return made(FlowPlan, {"flow": flow, "items": tuple(items)})
