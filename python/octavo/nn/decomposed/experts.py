"""A mixture's experts as layers: transformers keeps those of one layer in Parameters of rank 3."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from octavo.nn.decomposed.protocol import become, linear_of, parameter_like, weight_and_bias

__all__ = ["DecomposedExperts"]


class DecomposedExperts(nn.Module):
    """The same function as fused experts of transformers, whatever their class.

    Made by `octavo.nn.decomposed.decompose.decompose`, not by its constructor.

    Attributes:
        up: ModuleList of Linear [2 * width, hidden] where experts have a gate, else [width,
            hidden].
        down: ModuleList of Linear [hidden, width].
        fused: the class that these stand for; its gate is called with self.
    """

    up: nn.ModuleList
    down: nn.ModuleList
    fused: type
    num_experts: int
    has_gate: bool
    has_post_expert_norm: bool
    act_fn: nn.Module
    post_expert_norm: nn.Module

    @classmethod
    def replaces(cls, module: nn.Module, training: bool) -> bool:
        """By their interface: what transformers' `use_experts_implementation` gives a class."""
        flags = ("has_gate", "has_bias", "is_transposed", "num_experts")
        if training or not all(name in module.__dict__ for name in flags):
            return False
        ranks = {name: p.dim() for name, p in module._parameters.items() if p is not None}
        return ranks == _parameters(module)

    @staticmethod
    def take(module: nn.Module) -> None:
        """Each expert's slices of the Parameters go into layers of its own."""
        state, own = module.__dict__, module._parameters
        up, down, *_ = _parameters(module)
        for attribute, name in (("up", up), ("down", down)):
            weights, biases = own.pop(name), own.pop(f"{name}_bias", None)
            assert weights is not None
            layers = []
            for i, weight in enumerate(weights.detach()):
                turned = weight.t() if state["is_transposed"] else weight
                bias = None if biases is None else parameter_like(biases.detach()[i], biases)
                layers.append(linear_of(parameter_like(turned, weights), bias))
            module._modules[attribute] = nn.ModuleList(layers)
        state.setdefault("has_post_expert_norm", False)
        become(module, DecomposedExperts, fused=type(module))

    @staticmethod
    def give_back(module: nn.Module) -> bool:
        """If its layers are float ones, with biases where there were some."""
        state, own = module.__dict__, module._parameters
        groups = {name: list(module.get_submodule(name).children()) for name in ("up", "down")}
        if not all(type(layer) is nn.Linear for group in groups.values() for layer in group):
            return False
        parts = {name: [weight_and_bias(x) for x in group] for name, group in groups.items()}
        biased = [bias is not None for group in parts.values() for _, bias in group]
        if biased != [state["has_bias"]] * len(biased):
            return False
        for (attribute, group), name in zip(parts.items(), _parameters(module), strict=False):
            del module._modules[attribute]
            weights = [w.detach().t() if state["is_transposed"] else w.detach() for w, _ in group]
            biases = [bias.detach() for _, bias in group if bias is not None]
            own[name] = parameter_like(torch.stack(weights), group[0][0])
            if biases:
                own[f"{name}_bias"] = parameter_like(torch.stack(biases), group[0][0])
        module.__class__ = state.pop("fused")
        return True

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Hidden states [tokens, hidden], indices and weights of experts [tokens, k]; to the first.

        Each token's result is the weighted sum of its experts', added in the order of experts.
        """
        call = _signature(self.fused).bind(self, *args, **kwargs)
        _, hidden, index, weights, *_ = call.arguments.values()
        chosen = index.reshape(-1)
        order = chosen.argsort(stable=True)
        token = order // index.shape[-1]
        # An index of num_experts stands for none.
        counts = torch.bincount(chosen, minlength=self.num_experts + 1).tolist()
        parts = hidden[token].split(counts)
        results = [self._expert(i, x) for i, x in enumerate(parts[: self.num_experts]) if len(x)]
        y = torch.zeros_like(hidden)
        if results:
            token = token[: len(token) - counts[self.num_experts]]
            order = order[: len(token)]
            rows = torch.cat(results) * weights.reshape(-1)[order].unsqueeze(-1)
            y.index_add_(0, token, rows.to(y.dtype))
        return y

    def _expert(self, i: int, x: Tensor) -> Tensor:
        fused: Any = self.fused
        up = self.up[i](x)
        up = fused._apply_gate(self, up) if self.has_gate else self.act_fn(up)
        y: Tensor = self.down[i](up)
        return self.post_expert_norm(y) if self.has_post_expert_norm else y


@functools.cache
def _signature(fused: type) -> inspect.Signature:
    """Of the forward, whose arguments have other names in some classes."""
    return inspect.signature(fused.forward)  # type: ignore[attr-defined]


def _parameters(module: nn.Module) -> dict[str, int]:
    """Names and ranks of the Parameters that fused experts have."""
    state = module.__dict__
    layers = ("gate_up_proj" if state["has_gate"] else "up_proj", "down_proj")
    found = dict.fromkeys(layers, 3)
    if state["has_bias"]:
        found.update(dict.fromkeys((f"{name}_bias" for name in layers), 2))
    return found
