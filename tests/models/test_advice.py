"""The advisor on networks of torchvision, timm and transformers: its calls run as given, its sizes are exact.

Long size: all ten, every target, with and without data. Short size: tiny ones of each package.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch

from conftest import ROOT, missing

TARGETS = ("phone", "server", "edge", "notebook")
SHORT = {
    "shufflenet_v2_x1_0": ("phone",),
    "convnext_atto": ("server",),
    "distilbert": ("notebook",),
}
ALL = (
    *("resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "swin_t"),
    *("vit_small_patch16_224", "efficientnet_lite0", "convnext_atto"),
    *("distilbert", "gpt2", "llama_small"),
)


@pytest.fixture(scope="module")
def table() -> Any:
    """benchmarks/table_advice.py as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import table_advice

        return table_advice
    finally:
        sys.path.pop(0)


def need(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            missing(f"{package} is not installed: {error}")


def check(table: Any, name: str, model: Any, batch: Any, targets: tuple[str, ...]) -> None:
    asked = table.Asked(table.Network("", lambda: model, batch))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for target in targets:
        for with_data in (False, True):
            advice, row = asked.ask(target, with_data)
            print(name, target, with_data, advice.call, row)
            assert advice.call.startswith("octavo.quantize(model, ")
            assert (advice.size.bytes, advice.size.file_bytes) == (row.found, row.file_found)
            assert row.noise is None or row.noise > 3, row
            assert row.file_found < 0.6 * sum(t.nbytes for t in before.values()), row
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_ten_networks(name: str, table: Any) -> None:
    assert tuple(table.NETWORKS) == ALL
    network = table.NETWORKS[name]
    need("torchvision", network.package)  # The images' code imports the first.
    check(table, name, network.build(), network.batch, TARGETS)


def test_a_tiny_one_of_torchvision(table: Any) -> None:
    need("torchvision")
    import torchvision

    model = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=10).eval()
    check(table, "shufflenet", model, lambda n: torch.randn(n, 3, 32, 32), ("phone",))


@pytest.mark.parametrize("name", ("test_convnext", "test_vit"))
def test_a_tiny_one_of_timm(name: str, table: Any) -> None:
    need("timm")
    import timm

    model = (
        timm.create_model(name, pretrained=False, num_classes=10, img_size=64)
        if name == ("test_vit")
        else timm.create_model(name, pretrained=False, num_classes=10)
    )
    check(table, name, model.eval(), lambda n: torch.randn(n, 3, 64, 64), ("edge",))


@pytest.mark.parametrize("kind", ("GPT2LMHeadModel", "BertModel"))
def test_a_tiny_one_of_transformers(kind: str, table: Any) -> None:
    need("transformers")
    import transformers

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = (
        transformers.GPT2Config(vocab_size=500, n_positions=32, n_embd=64, n_layer=2, n_head=2)
        if kind == "GPT2LMHeadModel"
        else transformers.BertConfig(vocab_size=500, intermediate_size=128, **sizes)
    )
    model = getattr(transformers, kind)(config).eval()

    def batch(count: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.randint(5, 400, (count, 8))}

    check(table, kind, model, batch, ("phone",))
