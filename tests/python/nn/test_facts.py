"""What the rest of octavo knows of a layer is what the class registered for it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from octavo.advice.footprint import footprint
from octavo.advice.traits import traits
from octavo.data import Batches
from octavo.nn import QConv2d, QEmbedding, QLinear, registry
from octavo.reporting.report import resident_bytes


class Table(nn.Module):
    """A look-up table that is no nn.Embedding."""

    sparse, max_norm, padding_idx = False, None, None

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, size
        self.weight = nn.Parameter(torch.randn(rows, size))

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.weight)


class Mixer(nn.Module):
    """A convolution of size 1 that is no nn.Conv2d and keeps its weight as [in, out]."""

    kernel_size = stride = dilation = (1, 1)
    padding, padding_mode, groups = (0, 0), "zeros", 1

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = inputs, outputs
        for name in ("kernel_size", "stride", "dilation", "padding", "padding_mode", "groups"):
            setattr(self, name, getattr(Mixer, name))  # What the integer form reads of it.
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,co->nohw", x, self.weight) + self.bias[:, None, None]


@registry.register(registry.qualified_name(Table))
class QTable(QEmbedding):
    """Stands for Table: all facts are QEmbedding's."""


@registry.register(registry.qualified_name(Mixer))
class QMixer(QConv2d):
    """Stands for Mixer: another order of the weight, and another call."""

    @staticmethod
    def canonical_weight(module: nn.Module) -> Tensor:
        return QConv2d.canonical_weight(module).t()[:, :, None, None]

    @staticmethod
    def call_canonical(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias)

    @staticmethod
    def input_rows(module: nn.Module, x: Tensor) -> Tensor:
        return x.movedim(1, -1).reshape(1, -1, x.shape[1])

    def _float_weight(self, weight: Tensor) -> Tensor:
        return weight[:, :, 0, 0].t().contiguous()


class Named(nn.Embedding):
    """A subclass that computes what its base computes."""


def texts(table: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(table(40, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
    return model, torch.randint(0, 40, (64, 6))


def images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(Mixer(8, 16), nn.ReLU(), Mixer(16, 6), nn.Flatten(), nn.Linear(96, 4))
    return model.eval(), torch.randn(64, 8, 4, 4)


WAYS: dict[str, dict[str, Any]] = {
    "dynamic": {"activations": "dynamic"},
    "static": {"activations": 8},
    "bias": {"bits": 4, "rounding": "nearest"},
    "squant": {"bits": 4, "rounding": "squant"},
    "gptq": {"bits": 4, "rounding": "gptq"},
    "adaround": {"bits": 4, "rounding": "adaround", "activations": "dynamic"},
    "best": {"bits": 4, "effort": "best"},
}


def error(model: nn.Module, x: Tensor, way: str) -> float:
    with torch.no_grad():
        made = octavo.quantize(model, data=list(x.split(16)), progress=False, **WAYS[way])
        wanted = model(x)
        return float((made(x) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("way", WAYS)
def test_a_registered_table_is_quantized_like_an_embedding(way: str) -> None:
    wanted = error(*texts(nn.Embedding), way)
    assert error(*texts(Named), way) == wanted < 0.2
    # Layers behind it may be cut into other regions, as its call is not one of torch.nn.
    assert error(*texts(Table), way) < 1.2 * wanted


@pytest.mark.parametrize("way", WAYS)
def test_a_registered_convolution_is_quantized_on_data(way: str) -> None:
    assert error(*images(), way) < (0.03 if "bits" not in WAYS[way] else 0.2)


@pytest.mark.parametrize("data", [False, True], ids=["dynamic", "static"])
def test_footprint_and_traits_know_registered_layers(data: bool) -> None:
    for model, x in (texts(Table), images()):
        batches = [x] if data else None
        expected = footprint(model, Batches(batches) if data else None)
        made = octavo.quantize(model, data=batches, progress=False)
        assert expected.bytes == resident_bytes(made)
    assert traits(texts(Table)[0]).weights == traits(texts(nn.Embedding)[0]).weights
    assert traits(images()[0]).weights["convolution"] == 8 * 16 + 16 * 6


def test_a_table_that_changes_few_rows_is_not_trained() -> None:
    model, x = texts(Table)
    trainee = octavo.quantize(model, data=x, qat=True, progress=False)
    assert hasattr(trainee[0], "weight_quantizer")
    model[0].sparse = True
    trainee = octavo.quantize(model, data=x, qat=True, progress=False)
    assert not hasattr(trainee[0], "weight_quantizer") and hasattr(trainee[1], "weight_quantizer")


def test_weights_of_registered_layers_must_be_finite() -> None:
    model, _ = texts(Table)
    with torch.no_grad():
        model[0].weight[3, 1] = float("nan")
    with pytest.raises(ValueError, match=r"parameter '0.weight' must be finite"):
        octavo.quantize(model, progress=False)


class OwnForward(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Conv1D(nn.Module):
    """Interface of the layer of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.nf, self.weight = 3, nn.Parameter(torch.zeros(2, 3))


@pytest.mark.parametrize(
    "module, family",
    [
        (nn.Linear(2, 3), "linear"),
        (OwnForward(2, 3), "linear"),
        (Conv1D(), "linear"),
        (nn.MultiheadAttention(4, 2), "linear"),
        (nn.Conv1d(2, 3, 1), "convolution"),
        (nn.Conv3d(2, 3, 1), "convolution"),
        (nn.ConvTranspose2d(2, 3, 1), "convolution"),
        (Mixer(2, 3), "convolution"),
        (nn.Embedding(2, 3), "embedding"),
        (nn.EmbeddingBag(2, 3), "embedding"),
        (Table(2, 3), "embedding"),
        (nn.LSTM(2, 3), "recurrent"),
        (nn.GRUCell(2, 3), "recurrent"),
        (nn.BatchNorm3d(2), "batch norm"),
        (nn.SyncBatchNorm(2), "batch norm"),
        (nn.LayerNorm(2), ""),
        (nn.InstanceNorm1d(2), ""),
        (nn.ReLU(), ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value or "none",
)
def test_families(module: nn.Module, family: str) -> None:
    assert registry.family_of(module) == family
    assert registry.is_convolution(module) == (family == "convolution")
    assert registry.is_batch_norm(module) == (family == "batch norm")


def test_only_registered_classes_look_up() -> None:
    assert registry.looks_up(Table(2, 3)) and registry.looks_up(Named(2, 3))
    assert registry.looks_up(nn.Embedding(2, 3, max_norm=1.0)), "whether or not it is replaced"
    assert not any(map(registry.looks_up, (nn.EmbeddingBag(2, 3), nn.Linear(2, 3), nn.ReLU())))


@pytest.mark.parametrize(
    "module, x",
    [
        (nn.Linear(6, 4), torch.randn(5, 6)),
        (nn.Conv1d(6, 4, 3, 2, 1, groups=2), torch.randn(2, 6, 9)),
        (nn.Conv2d(6, 4, (3, 2), 1, "same", 2, padding_mode="reflect"), torch.randn(2, 6, 9, 9)),
        (Mixer(6, 4), torch.randn(2, 6, 3, 3)),
    ],
    ids=["Linear", "Conv1d", "Conv2d", "own class"],
)
def test_facts_agree_with_each_other(module: nn.Module, x: Tensor) -> None:
    facts = registry.facts_of(module)
    weight, groups = registry.canonical_weight(module), facts.channel_groups(module)
    with torch.no_grad():
        wanted = module(x)
        assert torch.allclose(
            facts.call_canonical(module, x, weight, module.bias), wanted, atol=1e-5
        )
        rows = facts.input_rows(module, x)
        products = rows @ weight.reshape(groups, weight.shape[0] // groups, -1).mT
        spatial = len(facts.window(module))
        outputs = (wanted.movedim(1, -1) if spatial else wanted).reshape(-1, weight.shape[0])
        found = products.movedim(0, 1).reshape(outputs.shape) + module.bias
        assert torch.allclose(found, outputs, atol=1e-5)
    assert tuple(weight.shape[2:]) == facts.window(module)


def test_facts_of_an_unknown_class_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a layer of a registered class, got a ReLU"):
        registry.facts_of(nn.ReLU())


def test_a_kind_must_be_known() -> None:
    class QOdd(QLinear):
        family = "lineal"

    with pytest.raises(ValueError, match=r"QOdd.family must be one of linear, .*, got 'lineal'"):
        registry.register("somewhere.Odd")(QOdd)
