"""Error budgets: how far from the float model a quantized one may be. Each is a named row with its reason.

Signal-to-quantization-noise (SQNR) is 10 log10(sum y^2 / sum (y - q)^2) in decibels. A uniform 8-bit
quantizer with s = range / 255 has noise s^2 / 12; for a bell-shaped value clipped at 4 sigma that is
about 40 dB. A chain of L such values loses about 10 log10 L; channels that differ in range lose more.
"""

from __future__ import annotations

import torch

# One layer or a short chain, decibels, by weight bits; static and dynamic activations at 8 bits.
LAYER_SQNR = {8: 26.0, 7: 24.0, 6: 20.0, 5: 15.0, 4: 9.0, 3: 4.0, 2: 0.0}
# Whole torchvision networks with random weights at 8 bits: logits, decibels.
NETWORK_SQNR_STATIC = 8.0
# Lowest at 224 px: mobilenet_v3_large 10.0 dB; mobilenet_v2 has 11.9, resnet18 30.3.
NETWORK_SQNR_DYNAMIC = 9.0
# Top-1 on the 10,000 CIFAR-10 test images, percent.
RESNET20_FLOAT = 91.73
RESNET20_STATIC = 91.6
RESNET20_DYNAMIC = 91.6
PROBE_FLOAT = 83.35
PROBE_STATIC = 83.1
# Cosine similarity of MiniLM sentence embeddings to float, smallest of 50 sentences.
MINILM_COSINE = 0.995
# Share of the multiply-adds of a convolutional network that integers do.
INTEGER_SHARE = 0.99


def sqnr(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Signal-to-quantization-noise in decibels; infinite where both are equal, -infinite for no signal."""
    expected, actual = expected.double(), actual.double()
    noise = float((expected - actual).square().sum())
    signal = float(expected.square().sum())
    if noise == 0.0:
        return float("inf")
    if signal == 0.0:
        return float("-inf")
    return float(10 * torch.log10(torch.tensor(signal / noise, dtype=torch.float64)))
