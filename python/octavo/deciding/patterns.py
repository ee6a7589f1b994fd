"""Which layers a user means: names, globs, classes, @first and @last."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from octavo.errors import describe
from octavo.graph.capture import Site

__all__ = ["Unmatched", "activation_widths", "matching", "resolve"]

Unmatched = list[str]
"""Messages about patterns that matched nothing."""


def matching(
    pattern: object, sites: Sequence[Site], model: nn.Module, argument: str
) -> tuple[list[Site], str]:
    """The sites that a pattern means, and a message if there are none.

    A string means the module of that name and all modules below it, or is a glob such as
    "layer?.*.conv1"; "@first" and "@last" are the first and last layer with an integer form, in the
    order of calls where known, and those tied to it. A class means its instances.
    """
    if isinstance(pattern, type) and issubclass(pattern, nn.Module):
        found = [site for site in sites if isinstance(model.get_submodule(site.name), pattern)]
        return found, "" if found else _message(argument, pattern.__name__, sites)
    if not isinstance(pattern, str):
        raise TypeError(
            f"quantize: {argument} must hold names, globs or nn.Module classes, "
            f'got {describe(pattern)}. Use for example "layer1.*".'
        )
    if pattern in ("@first", "@last"):
        eligible = [site for site in sites if not site.reason]
        ends = eligible[:1] if pattern == "@first" else eligible[-1:]
        return [s for s in eligible if any(s is e or s.name in e.tied for e in ends)], ""
    found = [site for site in sites if any(_fits(pattern, n) for n in (site.name, *site.aliases))]
    if not found and (pattern == "*" or pattern in dict(model.named_modules())):
        return [], ""  # The module exists; it just holds no layer.
    return found, "" if found else _message(argument, pattern, sites)


def _fits(pattern: str, name: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)


def _message(argument: str, pattern: str, sites: Sequence[Site]) -> str:
    names = [site.name or "(model)" for site in sites]
    near = difflib.get_close_matches(pattern, names, 3, 0.4) or names[:5]
    listed = ", ".join(map(repr, near)) + (", ..." if len(names) > len(near) else "")
    return (
        f"quantize: {argument} must match at least one layer, got {pattern!r}. "
        f"Layers that there are: {listed}."
    )


def resolve(
    bits: Mapping[Any, int],
    exclude: Iterable[object],
    include: Iterable[object] | None,
    sites: Sequence[Site],
    model: nn.Module,
) -> tuple[dict[str, int], dict[str, str], Unmatched]:
    """Bits of every site to quantize, the reason for each other, and what matched nothing.

    Args:
        bits: pattern (name, glob, class, "@first", "@last") to width; later entries replace earlier
            ones.
        exclude: patterns of sites to leave float.
        include: patterns of the only sites to quantize; None: all.
        sites: what could be quantized.
        model: the model of the sites.

    Returns:
        Site name to bits 2..8; name to reason, for all other sites; a line for each pattern that
        matched nothing.
    """
    widths: dict[str, int] = {}
    unmatched: Unmatched = []
    for pattern, width in bits.items():
        found, problem = matching(pattern, sites, model, "bits")
        unmatched += [problem] if problem else []
        widths |= {site.name: width for site in found}
    reasons = {
        site.name: "no pattern of bits matches it" for site in sites if site.name not in widths
    }
    if include is not None:
        kept: set[str] = set()
        for pattern in include:
            found, problem = matching(pattern, sites, model, "include")
            unmatched += [problem] if problem else []
            kept |= {site.name for site in found}
        reasons |= {name: "not among include=" for name in widths if name not in kept}
        widths = {name: width for name, width in widths.items() if name in kept}
    for pattern in exclude:
        found, problem = matching(pattern, sites, model, "exclude")
        unmatched += [problem] if problem else []
        for site in found:
            widths.pop(site.name, None)
            reasons[site.name] = "excluded"
    return widths, reasons, unmatched


def activation_widths(
    bits: Mapping[Any, int], sites: Sequence[Site], model: nn.Module
) -> dict[str, int]:
    """Bits of every site's input, later entries replacing earlier ones; 8 without a match."""
    widths = {site.name: 8 for site in sites}
    for pattern, width in bits.items():
        widths |= {site.name: width for site in matching(pattern, sites, model, "bits")[0]}
    return widths
