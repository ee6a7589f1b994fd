"""The ATen operators that a captured forward may call: a list of names, and what they are by torch.

A step names an overload ("aten.add.Tensor"). Only overloads of a name on the list that write into
no argument are found here, so a flow, whatever file it comes from, never runs anything else: no
files, no printing, no randomness, no views with strides of one's own.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

__all__ = ["OPERATOR", "functional_form", "is_operator", "operator_of", "takes"]

OPERATOR = "aten."
"""How the name of an operator begins in a step."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NAMES = _words(
    """
    abs acos acosh adaptive_avg_pool1d _adaptive_avg_pool2d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm
    addcdiv addcmul addmm addmv affine_grid_generator alias all alpha_dropout amax amin aminmax
    __and__ any arange argmax argmin argsort asin asinh atan atan2 atanh avg_pool1d avg_pool2d
    avg_pool3d baddbmm batch_norm bilinear bitwise_and bitwise_not bitwise_or bitwise_xor bmm
    broadcast_to bucketize cat ceil celu chain_matmul channel_shuffle chunk clamp clamp_max
    clamp_min clone col2im complex concat concatenate constant_pad_nd contiguous conv1d conv2d
    conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution copysign cos cosh
    cosine_similarity count_nonzero cross cummax cummin cumprod cumsum deg2rad detach diag
    diag_embed diagonal diff div dot dropout einsum elu embedding empty_like eq erf erfc erfinv
    exp exp2 expand expand_as expm1 eye feature_alpha_dropout feature_dropout fft_fft fft_fft2
    fft_ifft fft_ifft2 fft_irfft fft_irfft2 fft_rfft fft_rfft2 fill flatten flip fliplr flipud
    floor floor_divide fmax fmin fmod frac full full_like gather ge gelu glu grid_sampler
    grid_sampler_2d group_norm gt hardshrink hardsigmoid hardswish hardtanh hstack hypot im2col
    imag index index_add index_copy index_fill index_put index_select inner instance_norm isclose
    isfinite isinf isnan kron kthvalue layer_norm le leaky_relu lerp lift_fresh_copy linalg_norm
    linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid _log_softmax log_softmax
    logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit logsumexp lt
    masked_fill masked_scatter masked_select matmul matrix_exp max max_pool1d max_pool2d
    max_pool2d_with_indices max_pool3d maximum mean median meshgrid min minimum mish mm mode
    moveaxis movedim mul multiply mv mvlgamma nan_to_num nanmean nansum narrow native_batch_norm
    _native_batch_norm_legit_no_training native_group_norm native_layer_norm ne neg new_empty
    new_full new_ones new_zeros nonzero norm numpy_T one_hot ones ones_like __or__ outer pad
    pairwise_distance permute pixel_shuffle pixel_unshuffle polar pow prelu prod quantile rad2deg
    real reciprocal reflection_pad1d reflection_pad2d relu relu6 remainder repeat
    repeat_interleave replication_pad1d replication_pad2d reshape rms_norm roll rot90 round rsqrt
    rsub _safe_softmax scalar_tensor scaled_dot_product_attention
    _scaled_dot_product_flash_attention_for_cpu scatter scatter_add scatter_reduce searchsorted
    select select_scatter selu sgn sigmoid sign signbit silu sin sinc sinh slice slice_scatter
    smooth_l1_loss _softmax softmax softplus softshrink sort special_erf special_expit split
    split_with_sizes sqrt square squeeze stack std std_mean sub subtract sum t take take_along_dim
    tan tanh tensor_split threshold tile to _to_copy topk trace transpose tril triu true_divide
    trunc type_as unbind unflatten unfold _unsafe_view unsqueeze upsample_bicubic2d
    _upsample_bicubic2d_aa upsample_bilinear2d _upsample_bilinear2d_aa upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
    _upsample_nearest_exact2d upsample_trilinear3d var var_mean view view_as view_as_complex
    view_as_real vstack where xlogy __xor__ zeros zeros_like
    """
)


@functools.cache
def operator_of(name: str) -> Any:
    """The overload that a step names; KeyError if none that may be called has this name."""
    if not name.startswith(OPERATOR) or name.count(".") != 2:
        raise KeyError(name)
    _, base, overload = name.split(".")
    if base not in _NAMES:
        raise KeyError(name)
    packet = getattr(torch.ops.aten, base, None)
    if packet is None or overload not in packet.overloads():
        raise KeyError(name)
    found = getattr(packet, overload)
    if found._schema.is_mutable:
        raise KeyError(name)
    return found


def is_operator(name: object) -> bool:
    """Whether steps may name it."""
    if not isinstance(name, str):
        return False
    try:
        operator_of(name)
    except KeyError:
        return False
    return True


def takes(name: str, positional: int, words: tuple[str, ...]) -> bool:
    """Whether the operator can be called with so many arguments by position and these by word."""
    arguments = operator_of(name)._schema.arguments
    by_position = [argument for argument in arguments if not argument.kwarg_only]
    known = {argument.name for argument in arguments}
    given = {argument.name for argument in by_position[:positional]}
    return positional <= len(by_position) and all(w in known and w not in given for w in words)


def functional_form(operator: Any) -> Any:
    """The overload that gives what an in-place one writes into its first argument, or None."""
    base, overload = operator._schema.name.partition("::")[2], operator._overloadname
    if not base.endswith("_"):
        return None
    packet = getattr(torch.ops.aten, base[:-1], None)
    return getattr(packet, overload, None) if packet is not None else None
