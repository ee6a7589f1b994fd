"""What keeps a model from being quantized at all, refused before any work is done."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from octavo.errors import describe
from octavo.nn.registry import holds_layer_weight, is_convolution, layer_bias
from octavo.numerics.scheme import MIN_SCALE

__all__ = ["check_model"]

_OTHER_LIBRARIES = (
    "torch.ao.nn.intrinsic.qat",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.qat",
    "torch.ao.nn.quantized",
    "torch.ao.quantization",
    "torch.nn.quantized",
    "torch.fx.graph_module.quantized",
    "aqlm",
    "awq",
    "bitsandbytes",
    "brevitas",
    "gptqmodel",
    "hqq",
    "neural_compressor",
    "nncf",
    "optimum.quanto",
    "torchao",
)


def check_model(model: object, inplace: bool = False) -> None:
    """TypeError or ValueError unless ``model`` is a float nn.Module on the CPU."""
    if isinstance(model, Mapping):
        raise TypeError(
            f"quantize: model must be an nn.Module, got a state_dict-like {type(model).__name__} "
            f"of {len(model)} entries. Load it into a model first: model.load_state_dict(...)."
        )
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else describe(model)
        hint = "Create an instance of it." if isinstance(model, type) else "Pass the model itself."
        raise TypeError(f"quantize: model must be an nn.Module, got {what}. {hint}")
    _check_wrappers(model)
    for name, module in model.named_modules():
        _check_module(name, module)
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            _check_tensor(name, tensor, inplace)
    _check_weights(model)


def _check_wrappers(model: nn.Module) -> None:
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"quantize: model must be a Python nn.Module, got a {kind} of TorchScript. "
            "Quantize the model before torch.jit.script or torch.jit.trace."
        )
    if hasattr(model, "_orig_mod") and hasattr(model, "dynamo_ctx"):
        raise TypeError(
            f"quantize: model must not be compiled, got a {kind} of torch.compile. "
            "Pass model._orig_mod, or quantize before torch.compile."
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise TypeError(
            f"quantize: model must be the bare model, got a {kind} wrapper. Pass model.module."
        )
    for module in model.modules():
        if type(module).__name__ in ("FullyShardedDataParallel",) or type(
            module
        ).__name__.startswith("FSDP"):
            raise TypeError(
                f"quantize: model must not be sharded, got {type(module).__name__}. "
                "Gather its parameters into a plain model first."
            )
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ in ("DTensor", "ShardedTensor"):
            raise TypeError(
                f"quantize: parameter {name!r} must be a plain tensor, got a "
                f"{type(parameter).__name__}. "
                "Gather the parameters into a plain model first."
            )


def _check_module(name: str, module: nn.Module) -> None:
    cls = type(module)
    if cls.__module__.startswith("octavo.nn") or "octavo_region" in module.__dict__:
        bits = getattr(module, "bits", None)
        width = f" at {bits} bits" if bits is not None else ""
        raise ValueError(
            "quantize: model must be a float model, "
            f"got {name!r} ({cls.__name__}) already quantized{width}. "
            "Quantize the original float model, or call octavo.dequantize(model) first."
        )
    if cls.__module__.startswith(_OTHER_LIBRARIES):
        raise ValueError(
            f"quantize: model must be a float model, got {name!r} "
            f"({cls.__module__}.{cls.__name__}), quantized "
            "or prepared by another library. Quantize the original float model."
        )
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        raise ValueError(
            f"quantize: layer {name!r} must be initialised, got an uninitialised {cls.__name__}. "
            "Run one forward of the model first."
        )
    if is_convolution(module):
        _check_convolution(name, module)


def _check_convolution(name: str, conv: nn.modules.conv._ConvNd) -> None:
    for what in ("stride", "dilation", "kernel_size"):
        value = getattr(conv, what)
        if any(v < 1 for v in value):
            raise ValueError(
                f"quantize: layer {name!r}: {what} must be at least 1, got {value}. "
                "Correct the layer."
            )
    groups = conv.groups
    if groups < 1 or conv.in_channels % groups or conv.out_channels % groups:
        raise ValueError(
            f"quantize: layer {name!r}: groups must divide {conv.in_channels} input "
            f"and {conv.out_channels} output channels, got {groups}. Correct the layer."
        )


def _check_tensor(name: str, tensor: Tensor, inplace: bool) -> None:
    if tensor.is_meta:
        raise ValueError(
            f"quantize: parameter {name!r} must hold values, got a tensor on the meta device. "
            "Load the weights first."
        )
    if tensor.device.type != "cpu":
        raise ValueError(
            f"quantize: parameter {name!r} must be on the CPU, got {tensor.device}. Call "
            "model.cpu() first."
        )
    if inplace and tensor.is_inference():
        raise ValueError(
            f"quantize: with inplace=True parameter {name!r} must be an ordinary tensor, "
            "got one made under torch.inference_mode. Quantize a copy with inplace=False."
        )


def _check_weights(model: nn.Module) -> None:
    """Weights of the layers that may be quantized: real floats, all finite."""
    doubles, flat = [], []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # Stays float; its parameter table is not a dictionary.
        weight = module._parameters.get("weight")
        if weight is None or not holds_layer_weight(module):
            continue
        for kind, tensor in {**module._parameters, "bias": layer_bias(module)}.items():
            if tensor is None:
                continue
            where = f"{name}.{kind}" if name else kind
            if not tensor.is_floating_point():
                raise TypeError(
                    f"quantize: parameter {where!r} must be of a floating-point type, "
                    f"got {tensor.dtype}. Convert it, or exclude the layer."
                )
            _check_finite(where, tensor)
            if tensor.dtype == torch.float64:
                doubles.append(where)
        if weight.numel() > 1:
            largest = float(weight.detach().abs().amax())
            if largest != 0 and (
                largest < MIN_SCALE or bool((weight == weight.flatten()[0]).all())
            ):
                flat.append(name)
    if doubles:
        warnings.warn(
            f"quantize: float64 parameters are computed in float32 ({len(doubles)}, first "
            f"{doubles[0]!r}).",
            stacklevel=6,
        )
    if flat:
        warnings.warn(
            "quantize: weights that are constant or too small for normal float32 numbers "
            f"carry little information ({len(flat)}, first {flat[0]!r}).",
            stacklevel=6,
        )


def _check_finite(where: str, tensor: Tensor) -> None:
    finite = torch.isfinite(tensor.detach())
    if not bool(finite.all()):
        bad = (~finite).nonzero()
        raise ValueError(
            f"quantize: parameter {where!r} must be finite, "
            f"got {len(bad)} values that are not, the first at index {tuple(bad[0].tolist())}. "
            "Repair the weights, or exclude the layer."
        )
