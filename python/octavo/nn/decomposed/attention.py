"""nn.MultiheadAttention whose projections are layers, so that they can be quantized like any."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.nn.decomposed.protocol import become, has_class, linear_of, weight_and_bias

__all__ = ["DecomposedAttention"]

#: Projections of their own where keys or values have another width than queries.
_APART = ("q_proj", "k_proj", "v_proj")
_OUT = nn.modules.linear.NonDynamicallyQuantizableLinear


class DecomposedAttention(nn.MultiheadAttention):
    """The same function as nn.MultiheadAttention, which keeps its projections in Parameters.

    Made by `octavo.nn.decomposed.decompose.decompose`, not by its constructor. The projections are
    integer products once quantized, scores and softmax stay float. Where queries are not keys,
    in_proj computes all three parts of each and drops what is not needed.

    Attributes:
        in_proj: Linear [3 * embed_dim, embed_dim], for queries, keys and values; or, where keys or
            values have a width of their own, q_proj, k_proj and v_proj, without biases.
        out_proj: Linear [embed_dim, embed_dim].
    """

    in_proj: nn.Module
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module

    @classmethod
    def replaces(cls, module: nn.Module, training: bool) -> bool:
        """Every nn.MultiheadAttention: all Parameters stay the objects that they are."""
        return has_class(module, nn.MultiheadAttention)

    @staticmethod
    def take(module: nn.Module) -> None:
        """Parameters go into layers."""
        own = module._parameters
        weights = {name: own.pop(f"{name}_weight") for name in ("in_proj", *_APART)}
        bias = own.pop("in_proj_bias") if weights["in_proj"] is not None else None
        out = module._modules.pop("out_proj")
        assert out is not None
        for name, weight in weights.items():
            if weight is not None:
                module._modules[name] = linear_of(weight, bias)
        if type(out) is _OUT:  # All but its name is nn.Linear's.
            out.__class__ = nn.Linear  # type: ignore[assignment]
        module._modules["out_proj"] = out
        become(module, DecomposedAttention)

    @staticmethod
    def give_back(module: nn.Module) -> bool:
        """If its layers are float ones."""
        names = ("in_proj",) if module._qkv_same_embed_dim else _APART
        layers = {name: module.get_submodule(name) for name in (*names, "out_proj")}
        if not all(type(layer) is nn.Linear for layer in layers.values()):
            return False
        own = module._parameters
        parts = {name: weight_and_bias(layers[name]) for name in names}
        for name in ("in_proj", *_APART):
            module._modules.pop(name, None)
            own[f"{name}_weight"] = parts[name][0] if name in parts else None
        if "in_proj" in parts:
            own["in_proj_bias"] = parts["in_proj"][1]
        elif any(bias is not None for _, bias in parts.values()):  # Rounding is made up for there.
            rows = [w.new_zeros(len(w)) if b is None else b.detach() for w, b in parts.values()]
            before = own["in_proj_bias"]
            total = torch.cat(rows) if before is None else torch.cat(rows) + before.detach()
            own["in_proj_bias"] = nn.Parameter(total)
        layers["out_proj"].__class__ = _OUT
        module.__class__ = nn.MultiheadAttention
        return True

    def forward(  # noqa: PLR0917 - as nn.MultiheadAttention's
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention: shapes, masks and results are those of its slow path."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched, last = query.dim() == 3, self.embed_dim
        q, k, v = (self._batch_first(x, batched) for x in self._project(query, key, value))
        batch, length, source = q.shape[0], q.shape[1], k.shape[1]
        if attn_mask is not None and tuple(attn_mask.shape) not in (
            (length, source), (batch * self.num_heads, length, source)
        ):  # fmt: skip
            raise RuntimeError(
                f"attn_mask must have the shape {(length, source)} or "
                f"{(batch * self.num_heads, length, source)}, got {tuple(attn_mask.shape)}."
            )
        if key_padding_mask is not None and key_padding_mask.shape[-1] != source:
            raise RuntimeError(
                f"key_padding_mask must end in {source}, got {tuple(key_padding_mask.shape)}."
            )
        appended = 0
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
            k, v = k + _last(self.bias_k, k), v + _last(self.bias_v, v)
            appended += 1
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
            appended += 1
        causal = is_causal and key_padding_mask is None and not need_weights and not appended
        mask = None
        if attn_mask is not None and not causal:
            mask = F.pad(_additive(attn_mask, q), (0, appended))
            mask = mask.view(-1, self.num_heads if attn_mask.dim() == 3 else 1, *mask.shape[-2:])
        if key_padding_mask is not None:
            padding = F.pad(_additive(key_padding_mask, q), (0, appended))
            padding = padding.view(batch, 1, 1, -1)
            mask = padding if mask is None else mask + padding
        q, k, v = (
            x.reshape(batch, -1, self.num_heads, self.head_dim).transpose(1, 2) for x in (q, k, v)
        )
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = q * math.sqrt(1.0 / self.head_dim) @ k.transpose(-2, -1)
            weights = (weights if mask is None else weights + mask).softmax(-1)
            weights = F.dropout(weights, dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        y = y.transpose(1, 2).reshape(batch, length, last)
        y = y if batched else y.squeeze(0)
        y = y.transpose(0, 1) if batched and not self.batch_first else y
        return self.out_proj(y), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [..., embed_dim]."""
        width = self.embed_dim
        if not self._qkv_same_embed_dim:
            parts = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
            bias = self._parameters.get("in_proj_bias")
            if bias is None:
                return parts
            return tuple(x + b for x, b in zip(parts, bias.chunk(3), strict=True))
        from_query = self.in_proj(query)
        from_key = from_query if key is query else self.in_proj(key)
        from_value = from_key if value is key else self.in_proj(value)
        q, k, v = from_query, from_key, from_value
        return q[..., :width], k[..., width : 2 * width], v[..., 2 * width :]

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        if not batched:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    if not TYPE_CHECKING:  # Attributes there, which nn.TransformerEncoderLayer looks at.

        @property
        def in_proj_weight(self) -> Tensor | None:
            """The weight of in_proj."""
            return self.in_proj.weight if self._qkv_same_embed_dim else None

        @property
        def in_proj_bias(self) -> Tensor | None:
            """The bias of in_proj, or of q_proj, k_proj and v_proj together."""
            apart = self._parameters.get("in_proj_bias")
            return self.in_proj.bias if self._qkv_same_embed_dim else apart


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask to be added: -inf where a boolean one is True."""
    if not mask.dtype.is_floating_point:
        return like.new_zeros(mask.shape).masked_fill_(mask.bool(), -math.inf)
    return mask.to(like.dtype)


def _last(row: Tensor, like: Tensor) -> Tensor:
    """[1, 1, width] as the last row of [batch, length, width], zeros above."""
    return F.pad(row, (0, 0, like.shape[1] - 1, 0))
