"""Counts the multiply-adds of a model where they are executed."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from octavo import _C
from octavo.data import Batches
from octavo.nn.kept_state import state_kept

__all__ = ["Multiplies", "count_multiplies"]


@dataclasses.dataclass(frozen=True)
class Multiplies:
    """Multiply-adds of one call of the model, as they were executed."""

    integer: int
    floating: int

    @property
    def integer_share(self) -> float:
        """Share that was computed in integers, 0..1; 0 where there are none at all."""
        total = self.integer + self.floating
        return self.integer / total if total else 0.0


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    """Scores and their products with values: of shapes [batch, heads, positions, width]."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


#: What torch's counter does not know.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}


def count_multiplies(model: nn.Module, data: object) -> Multiplies:
    """Multiply-adds of the first batch: integer ones as octavo's ops count them, float as torch."""
    batches = data if isinstance(data, Batches) else Batches(data)
    call = batches.first(model)

    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 (it imports triton)

    def run() -> None:
        if call is not None:
            model(*call.args, **call.kwargs)
        elif batches.runs_model is not None:
            batches.runs_model(model)

    with torch.no_grad(), state_kept(model):
        _C.reset_integer_macs()
        run()
        integer = int(_C.integer_macs())
        # A run of its own: torch's counter tries operators it does not know more than once. The
        # fused attention of eval mode is one operator that it does not count.
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
                run()
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
    return Multiplies(integer, int(counter.get_total_flops()) // 2)
