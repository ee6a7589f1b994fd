"""A trainee becomes integers: its steps, weights and statistics, through the rewrite of all."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from octavo.errors import describe
from octavo.graph.keys import RangeKey, SiteKey, ValueKey
from octavo.interrupts import held_back
from octavo.lowering.rewrite import rewrite
from octavo.nn.fake_quantize import FakeQuantize, FakeQuantizeWeight
from octavo.nn.forwards import restore_forward
from octavo.nn.registry import layer_bias
from octavo.nn.surgery import copy_model, tensors_on_cpu
from octavo.nn.trained_layer import trained_layer
from octavo.numerics.codes import Codes
from octavo.numerics.scheme import MIN_SCALE, QParams
from octavo.planning.plan import Plan, SitePlan
from octavo.planning.region_plan import RegionPlan
from octavo.prepare.fold import affine_of, fold_pair, materialise
from octavo.reporting.record import Record, attach, layer_records
from octavo.runtime.trained_forward import Store, TrainedForward, trained_forward
from octavo.signature import known_arguments
from octavo.training.trainee import Training, forget, training_of
from octavo.types import Model

__all__ = ["check_trainee", "freeze", "qparams_of"]


@held_back()
@known_arguments
def freeze(trainee: Model, *, progress: bool = True) -> Model:
    """The integer model that a trainee has been trained to be, in evaluation mode.

    Codes, steps and zero points are those of the trainee. A BatchNorm behind a layer goes into that
    layer's multipliers and offsets: scale[c] * gamma / sqrt(var + eps), which may be negative.

    Example:
        >>> import torch, octavo
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(),
        ...     torch.nn.Linear(64, 8))
        >>> trainee = octavo.quantize(model, 4, data=torch.randn(32, 64), qat=True)
        >>> final = octavo.freeze(trainee, progress=False)

    Args:
        trainee: result of ``octavo.quantize(..., qat=True)``, trained. It stays as it is.
        progress: whether to print messages on stderr.

    Raises:
        TypeError: trainee is no nn.Module, or wrapped (pass ``.module``).
        ValueError: it is no trainee, or holds weights or steps that are not finite.
    """
    training = check_trainee(trainee, "freeze")
    _check_finite(trainee)
    with tensors_on_cpu(), torch.inference_mode(False), torch.no_grad():
        params = qparams_of(trainee, training.plan)
        weights = _weights(trainee, training.plan)
        plain = _plain(trainee)
        for _ in materialise(plain):
            pass
        factors: dict[str, Tensor] = {}
        for norm, layer in training.batch_norms:
            module = plain.get_submodule(norm)
            assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
            factors[layer] = affine_of(module)[0]
            fold_pair(plain, norm, layer)
        codes = {
            site.name: _codes(plain, site, weights[site.name], factors.get(site.name))
            for site in training.plan.sites
            if site.scheme is not None
        }
        notes = _notes(trainee)
        for note in notes if progress else ():
            print(f"octavo: {note}", file=sys.stderr)
        layers = layer_records(plain, training.plan, codes, {})
        result = rewrite(plain, training.plan, params, codes, inplace=True)
    attach(result, Record(layers, training.float_bytes, notes))
    return cast(Model, result)


def check_trainee(trainee: object, where: str) -> Training:
    """What the trainee was made from; a worded error for anything else."""
    if not isinstance(trainee, nn.Module):
        raise TypeError(
            f"{where}: trainee must be an nn.Module, got {describe(trainee)}. Pass the result of "
            "octavo.quantize(..., qat=True)."
        )
    training = training_of(trainee)
    if training is None:
        inner = getattr(trainee, "module", getattr(trainee, "_orig_mod", None))
        if isinstance(inner, nn.Module) and training_of(inner) is not None:
            name = "module" if hasattr(trainee, "module") else "_orig_mod"
            raise TypeError(
                f"{where}: trainee must be the bare trainee, got a {type(trainee).__name__} "
                f"around it. Pass its .{name}."
            )
        raise ValueError(
            f"{where}: trainee must be the result of octavo.quantize(..., qat=True), got a "
            f"{type(trainee).__name__} that is not. Quantize it with qat=True first."
        )
    return training


def _check_finite(trainee: nn.Module) -> None:
    for name, tensor in [*trainee.named_parameters(), *trainee.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.detach()).all()):
            count = int((~torch.isfinite(tensor.detach())).sum())
            raise ValueError(
                f"freeze: {name!r} must be finite, got {count} NaN or infinite values. Go back to "
                "the last good state of the training."
            )


def qparams_of(trainee: nn.Module, plan: Plan) -> dict[RangeKey, QParams]:
    """Parameters of every stored value, by the keys of `octavo.prepare.calibrate`."""
    found: dict[RangeKey, QParams] = {}
    for flow_plan in plan.flows:
        path = flow_plan.flow.path
        forward = trained_forward(trainee.get_submodule(path))
        assert isinstance(forward, TrainedForward)
        stores = {a.root: a for a in forward.actions if isinstance(a, Store)}
        for item in flow_plan.items:
            if isinstance(item, RegionPlan):
                for root in dict.fromkeys(item.params_of.values()):
                    store = stores[root]
                    table = trainee.get_submodule(store.layer).value_quantizers
                    assert isinstance(table, nn.ModuleDict)
                    quantizer = table[store.key]
                    assert isinstance(quantizer, FakeQuantize)
                    found[ValueKey(path, root)] = quantizer.qparams()
    for site in plan.sites:
        layer = None if site.scheme is None else trained_layer(trainee.get_submodule(site.name))
        if layer is not None and isinstance(layer.source, FakeQuantize) and not site.region:
            found[SiteKey(site.name)] = layer.source.qparams()
    return found


def _weights(trainee: nn.Module, plan: Plan) -> dict[str, Codes]:
    """The integers of each layer as it was trained, before what a BatchNorm does to them."""
    found = {}
    for site in plan.sites:
        if site.scheme is None:
            continue
        module = trainee.get_submodule(site.name)
        quantizer, weight = module.weight_quantizer, module.weight
        assert isinstance(quantizer, FakeQuantizeWeight) and isinstance(weight, Tensor)
        values, scale, zero_point = quantizer.codes(weight)
        found[site.name] = Codes(values, scale, None, site.scheme, quantizer.levels, zero_point)
    return found


def _plain(trainee: nn.Module) -> nn.Module:
    """A copy with the classes' own forwards and without fake-quantizers, in evaluation mode."""
    plain = copy_model(trainee)
    for module in list(plain.modules()):
        module.__dict__.pop("train", None)  # Of a BatchNorm that keeps its statistics.
        if trained_layer(module) is not None:
            for name in ("weight_quantizer", "value_quantizers"):
                module._modules.pop(name, None)
        if trained_forward(module) is not None or trained_layer(module) is not None:
            restore_forward(module)
    forget(plain)
    return plain.eval()


def _codes(plain: nn.Module, site: SitePlan, trained: Codes, factor: Tensor | None) -> Codes:
    """A layer's integers: the BatchNorm behind it has gone into its bias, and here its scale."""
    scale = trained.scale
    if factor is not None:
        scale = (scale.double() * factor).float()
        # A channel that the BatchNorm silences: the smallest scale there is says the same.
        scale = torch.where(scale.abs() < MIN_SCALE, MIN_SCALE, scale)
    bias = layer_bias(plain.get_submodule(site.name))
    kept = None if bias is None else bias.detach().float()
    return replace(trained, scale=scale, bias=kept)


def _notes(trainee: nn.Module) -> tuple[str, ...]:
    """Messages on how it was trained."""
    trained = {
        name: module
        for name, module in trainee.named_modules()
        if isinstance(module, (FakeQuantize, FakeQuantizeWeight)) and module.has_moved() is not None
    }
    still = [name for name, module in trained.items() if not module.has_moved()]
    # A clip of PACT does not move where no value reaches it.
    if len(still) < len(trained) and all(trained[name].method == "pact" for name in still):
        return ()
    if not still:
        return ()
    return (
        f"{len(still)} of {len(trained)} trained steps never moved (first {still[0]!r}): was "
        "octavo.range_parameters(trainee) given to the optimizer?",
    )
