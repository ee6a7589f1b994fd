"""The functions that a captured forward may call: name to callable, and what each may be taken for.

A graph is kept only if every call in it has a row here, so a flow never runs code that this table
does not name: all rows are pure (no randomness, no writing into arguments).
The same holds for a flow that was read from a file: it finds functions and their argument words
here or nowhere.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

__all__ = [
    "ATTRIBUTES",
    "BINARY",
    "CLAMPS",
    "FUNCTIONS",
    "LAYOUT",
    "UNARY",
    "is_in_place",
    "operation",
    "row_of",
    "takes_word",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Element by element and finite for finite arguments: integer steps become a 256-entry table.
UNARY = _words(
    """
    relu relu6 hardtanh clamp clamp_min clamp_max clip sigmoid logsigmoid tanh silu hardswish
    hardsigmoid gelu elu celu selu leaky_relu mish softplus softsign hardshrink softshrink
    tanhshrink threshold abs neg square erf sin cos tan atan
    """
)
# The members of UNARY that only limit their argument: fused into the step that computes it.
CLAMPS = _words(
    """
    relu relu6 hardtanh clamp clamp_min clamp_max clip
    """
)
# Integer steps when one operand is a number (a table), or both are values.
BINARY = _words(
    """
    add sub mul div truediv rsub
    """
)
# Move elements, compute nothing. Which integer step such calls amount to is found by trying them.
LAYOUT = _words(
    """
    view reshape flatten unflatten squeeze unsqueeze permute transpose swapaxes swapdims movedim
    contiguous getitem select narrow chunk split tensor_split unbind size getattr dim add sub
    mul floordiv int neg clone
    """
)

_FLOAT = _words(
    """
    exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal pow sign round floor ceil fmod
    remainder floor_divide sinh cosh asin acos atan2 maximum minimum lerp addcmul where
    masked_fill logical_not logical_and logical_or isnan isinf isfinite eq ne lt le gt ge matmul
    bmm mm mv baddbmm addmm einsum tensordot outer inner dot softmax log_softmax layer_norm
    group_norm instance_norm batch_norm rms_norm local_response_norm normalize cosine_similarity
    pairwise_distance scaled_dot_product_attention linear bilinear conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d embedding interpolate upsample
    pixel_shuffle pixel_unshuffle channel_shuffle grid_sample affine_grid unfold fold max_pool1d
    max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d lp_pool1d lp_pool2d prelu glu pad dropout dropout1d dropout2d dropout3d
    alpha_dropout feature_dropout mean sum amax amin max min argmax argmin std var norm
    vector_norm cumsum cumprod prod all any logsumexp topk sort argsort count_nonzero std_mean
    var_mean cat concat concatenate stack hstack vstack dstack expand expand_as repeat
    repeat_interleave tile index_select gather take_along_dim roll flip rot90 tril triu diagonal
    diag broadcast_to view_as reshape_as meshgrid zeros_like ones_like full_like empty_like
    new_zeros new_ones new_full arange linspace zeros ones full eye to type type_as float half
    bfloat16 double long int bool numel is_floating_point ndimension t detach cpu one_hot
    bitwise_not bitwise_and bitwise_or _assert
    """
)

# Argument words of torch's functions and methods above. Those that write into an argument (out) or
# call something (key of max and min, which are rows of Python's own) are not among them.
_ARGUMENT_WORDS = _words(
    """
    A a align_corners alpha antialias approximate attn_mask axis axis0 axis1 b batch1 batch2
    beta bias ceil_mode chunks condition copy correction count_include_pad cudnn_enable
    cudnn_enabled decimals descending destination device diagonal dilation dim dim0 dim1
    dim2 dimension dims dims_other dims_self divisor_override downscale_factor dropout_p
    dtype enable_gqa end end_dim eps equation exponent fill_value grid groups idx implicit
    index indexing indices indices_or_sections input input1 input2 input_scale inputs
    is_causal k keepdim keepdims kernel_size key lambd largest layout length list m mask
    mat1 mat2 max max_norm max_val max_values memory_format message min min_indices min_val
    mode momentum n negative_slope non_blocking norm_type normalized_shape num_classes
    num_groups offset ord other out_dtype output_padding output_size p pad padding
    padding_idx padding_mode pin_memory query recompute_scale_factor repeats requires_grad
    return_indices reverse rounding_mode running_mean running_var scale scale_factor
    scale_grad_by_freq sections self separator shape shifts size sizes sorted source sparse
    sparse_grad split_size split_size_or_sections split_sizes stable start start_dim step
    steps stride tensor tensor1 tensor2 tensor_indices_or_sections tensors theta threshold
    train training unbiased upscale_factor use_input_stats value values vec vec2 weight x x1
    x2 y
    """
)

_OPERATORS = _words(
    """
    add sub mul truediv floordiv mod pow neg pos abs matmul getitem eq ne lt le gt ge and_ or_
    xor not_ invert is_ is_not
    """
)
_IN_PLACE_OPERATORS = {
    operator.iadd: "operator.add",
    operator.isub: "operator.sub",
    operator.imul: "operator.mul",
    operator.itruediv: "operator.truediv",
}
_IN_PLACE = frozenset(
    f"{name}_"
    for name in _words(
        """
        relu relu6 hardtanh clamp clamp_min clamp_max clip sigmoid tanh silu hardswish hardsigmoid
        elu celu selu leaky_relu mish threshold abs neg square add sub mul div squeeze unsqueeze
        transpose masked_fill
        """
    )
)
# Attributes of a tensor that a forward may read.
ATTRIBUTES = frozenset(("shape", "dtype", "device", "ndim", "T", "mT", "is_cuda", "layout"))


def _attribute(value: Any, name: str) -> Any:
    if not isinstance(value, torch.Tensor) or name not in ATTRIBUTES:
        raise AttributeError(
            f"functions: expected an attribute of a tensor among {sorted(ATTRIBUTES)}, got "
            f"{name!r} of a {type(value).__name__}."
        )
    return getattr(value, name)


def _identity(value: Any, *_args: Any, **_kwargs: Any) -> Any:
    return value


def _method(name: str) -> Callable[..., Any]:
    def call(value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, (torch.Tensor, torch.Size)):
            raise TypeError(
                f"functions: expected a tensor to call {name!r} of, got a {type(value).__name__}."
            )
        return getattr(value, name)(*args, **kwargs)

    call.__name__ = name
    return call


def _table() -> dict[str, Callable[..., Any]]:
    rows: dict[str, Callable[..., Any]] = {
        "identity": _identity,
        "getattr": _attribute,
        "math.sqrt": math.sqrt,
        "math.floor": math.floor,
        "math.ceil": math.ceil,
        "builtins.int": int,
        "builtins.float": float,
        "builtins.max": max,
        "builtins.min": min,
        "builtins.abs": abs,
        "builtins.round": round,
    }
    for name in _OPERATORS:
        rows[f"operator.{name}"] = getattr(operator, name)
    for name in sorted({*UNARY, *BINARY, *LAYOUT, *_FLOAT}):
        if callable(getattr(torch, name, None)):
            rows[f"torch.{name}"] = getattr(torch, name)
        if callable(getattr(F, name, None)):
            rows[f"F.{name}"] = getattr(F, name)
        if callable(getattr(torch.Tensor, name, None)):
            rows[f"Tensor.{name}"] = _method(name)
    for name in ("vector_norm", "norm"):
        rows[f"linalg.{name}"] = getattr(torch.linalg, name)
    for name in ("expit", "erf"):
        rows[f"special.{name}"] = getattr(torch.special, name)
    return rows


FUNCTIONS: dict[str, Callable[..., Any]] = _table()
_TORCH_ROWS = ("torch.", "F.", "Tensor.", "linalg.", "special.")
_ROWS: dict[Any, str] = {}
for _name, _function in FUNCTIONS.items():
    if not _name.startswith("Tensor."):
        _ROWS.setdefault(_function, _name)
_ROWS[builtins.getattr] = "getattr"
for _name in (
    "relu_",
    "sigmoid_",
    "tanh_",
    "clamp_",
    "threshold_",
    "elu_",
    "hardtanh_",
    "leaky_relu_",
    "celu_",
    "selu_",
):
    for _prefix, _module in (("F", F), ("torch", torch)):
        if hasattr(_module, _name) and f"{_prefix}.{_name[:-1]}" in FUNCTIONS:
            _ROWS.setdefault(getattr(_module, _name), f"{_prefix}.{_name[:-1]}")
_FUNCTIONAL_IN_PLACE = frozenset(
    getattr(module, name) for module in (F, torch) for name in _IN_PLACE if hasattr(module, name)
)


def row_of(target: Any) -> str:
    """The row for a traced call (a function, or a method's name), "" if there is none."""
    if isinstance(target, str):
        name = target[:-1] if target in _IN_PLACE else target
        return f"Tensor.{name}" if f"Tensor.{name}" in FUNCTIONS else ""
    if target in _IN_PLACE_OPERATORS:
        return _IN_PLACE_OPERATORS[target]
    # torchvision's stochastic depth is the identity outside training (capture checks the argument).
    if getattr(target, "__name__", "") == "stochastic_depth":
        return "identity"
    try:
        return _ROWS.get(target, "")
    except TypeError:
        return ""


def takes_word(row: str, word: str) -> bool:
    """Whether calls of the row may give an argument by this word. Python's own functions take none.

    Whether the very function has such an argument is torch's to say.
    """
    return row.startswith(_TORCH_ROWS) and word in _ARGUMENT_WORDS


def is_in_place(target: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the traced call writes into its first argument."""
    if isinstance(target, str):
        return target in _IN_PLACE
    return (
        target in _IN_PLACE_OPERATORS
        or target in _FUNCTIONAL_IN_PLACE
        or bool(kwargs.get("inplace", False))
    )


def operation(row: str) -> str:
    """The row's bare name: "F.relu", "torch.relu" and "aten.relu.default" are all "relu"."""
    return row.split(".")[1] if row.startswith("aten.") else row.rpartition(".")[2]
