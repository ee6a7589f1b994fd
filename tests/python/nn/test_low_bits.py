"""Every grid, width and granularity of quantized layers: packed, saved, loaded, on every ISA."""

import copy
import hashlib
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import octavo
from conftest import FULL
from octavo.checkpoint import safetensors_file
from octavo.nn.layer import QLayer
from octavo.numerics.grids import GRIDS
from octavo.reporting.report import resident_bytes

FORMS = {
    "per channel, float": {"activations": "float"},
    "groups, float": {"activations": "float", "group_size": 32},
    "groups, dynamic": {"group_size": 16},
    "default, dynamic": {},
    "per channel, static": {"activations": 8},
    "groups, static": {"activations": 8, "group_size": 64},
}


class Words(nn.Module):
    """Look-up, convolution, two linear layers; more than one table of levels, a short group."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 72)
        self.conv = nn.Conv1d(72, 40, 3, padding=1)
        self.wide = nn.Linear(40, 130)
        self.head = nn.Linear(130, 20)

    def forward(self, x):
        x = self.table(x).transpose(1, 2)
        return self.head(torch.relu(self.wide(torch.relu(self.conv(x)).transpose(1, 2))))


X = torch.randint(0, 50, (6, 9), generator=torch.Generator().manual_seed(1))


def words() -> Words:
    torch.manual_seed(0)
    return Words().eval()


AFFINE = {f"{name}, affine": {**form, "symmetric": False} for name, form in FORMS.items()}
TENSOR = {
    "per tensor, dynamic": {"group_size": "tensor"},
    "per tensor, static": {"group_size": "tensor", "activations": 8},
}
ALL = [
    *itertools.product(GRIDS, range(2, 9), TENSOR.items()),
    *itertools.product(GRIDS, range(2, 9), FORMS.items()),
    *itertools.product(["linear"], range(2, 8), AFFINE.items()),
]
# A ninth of them in the short size: every grid, width and form several times.
SOME = ALL if FULL else ALL[::9]


@pytest.mark.parametrize(("grid", "bits", "named"), SOME)
def test_saved_loaded_copied_and_equal_on_every_isa(grid, bits, named, tmp_path):
    model, (_, form) = words(), named
    data = X if form.get("activations") == 8 else None
    small = octavo.quantize(model, bits, data, grid=grid, progress=False, **form)
    octavo.save(small, tmp_path / "m.safetensors")
    state = octavo.quantize(Words().eval(), bits, data, grid=grid, progress=False, **form)
    if data is None:  # Ranges of regions are no part of a state_dict.
        state.load_state_dict(small.state_dict())
    copies = [
        octavo.load(tmp_path / "m.safetensors", Words()),
        copy.deepcopy(small),
        pickle.loads(pickle.dumps(small)),
        *([state] if data is None else []),
    ]
    hashes = set()
    before = octavo.isa()
    with torch.no_grad():
        for isa in octavo.isas():
            octavo.set_isa(isa)
            for made in (small, *copies):
                hashes.add(hashlib.sha256(made(X).numpy().tobytes()).hexdigest())
    octavo.set_isa(before)
    # Convolutions with float activations are torch's own, which has no such promise.
    assert len(hashes) == 1
    for path, layer in small.named_modules():
        if isinstance(layer, QLayer):
            real = copies[0].get_submodule(path)
            assert torch.equal(layer.codes(), real.codes())
            assert torch.equal(layer.weight, real.weight)
            codes = layer.codes()
            assert -(2 ** (bits - 1)) <= int(codes.min()) and int(codes.max()) < 2 ** (bits - 1)
            assert layer.weight_packed().shape[1] == -(-codes[0].numel() * bits // 8)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("grid", ["linear", "kmeans"])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_weight_only_is_the_float_model_of_the_levels(bits, grid, symmetric):
    if grid != "linear" and not symmetric:
        pytest.skip("tables have no zero points")
    small = octavo.quantize(
        words(), bits, grid=grid, symmetric=symmetric, activations="float", progress=False
    )
    real = octavo.dequantize(small)
    assert type(real.table) is nn.Embedding and type(real.wide) is nn.Linear
    with torch.no_grad():
        assert torch.allclose(real(X), small(X), atol=1e-4)


def test_gradients_of_weight_only_layers():
    small = octavo.quantize(nn.Sequential(nn.Linear(16, 8)), 4, activations="float")
    x = torch.randn(3, 16, requires_grad=True)
    small(x).sum().backward()
    assert torch.allclose(x.grad, small[0].weight.sum(0).expand(3, -1), atol=1e-5)
    conv = octavo.quantize(nn.Sequential(nn.Conv2d(3, 4, 3)), 4, activations="float")
    x = torch.randn(1, 3, 5, 5, requires_grad=True)
    conv(x).sum().backward()
    assert float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize("padding", [0, 1, "same", "valid"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_weight_only_convolutions(padding, mode):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, (2, 3), padding=padding, padding_mode=mode, groups=2, dilation=(2, 1))
    ).eval()
    small = octavo.quantize(model, 8, activations="float", progress=False)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        weight = small[0].weight
        wanted = octavo.dequantize(small)(x)
        assert torch.allclose(small(x), wanted, atol=1e-5)
        assert torch.allclose(small(x[0]), wanted[0], atol=1e-5)
        assert F.mse_loss(weight, model[0].weight) < 1e-4


def test_defaults_of_groups():
    model = nn.Sequential(nn.Linear(256, 8), nn.Linear(96, 8), nn.Linear(100, 8), nn.Linear(24, 8))
    small = octavo.quantize(model, 4, progress=False)
    assert [layer.group_size for layer in small] == [128, 32, 32, 0]
    assert [layer.group_size for layer in octavo.quantize(model, 5, progress=False)] == [0] * 4
    assert small[0].packed and tuple(small[0].weight_scale.shape) == (8, 2)
    assert torch.equal(small[0].weight_scale.bfloat16().float(), small[0].weight_scale)
    assert {r.layer.granularity for r in octavo.report(small).rows} == {
        "group of 128", "group of 32", "channel"
    }  # fmt: skip


def test_convolutions_keep_channel_scales_and_say_so():
    small = octavo.quantize(words(), 4, group_size=32, progress=False)
    assert small.conv.group_size == 0 and small.wide.group_size == 32
    assert any("convolutions keep one scale" in note for note in octavo.report(small).notes)


def test_layers_in_regions_have_channel_scales_unless_groups_are_asked_for():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)).eval()
    x = torch.randn(16, 3, 3, 3)
    one = octavo.quantize(model, 4, x, progress=False)
    assert one[3].group_size == 0 and not one[3].packed
    two = octavo.quantize(model, 4, x, group_size=32, progress=False)
    assert two[3].group_size == 32 and two[3].packed and two[3].activations == "static"
    rows = {row.layer.name: row.layer.region for row in octavo.report(two).rows}
    assert rows["0"] == "#0" and rows["3"] == ""
    with torch.no_grad():
        assert F.cosine_similarity(model(x), two(x)).min() > 0.9


def test_memory_of_four_bits():
    model = nn.Sequential(nn.Linear(1024, 1024, bias=False))
    small = octavo.quantize(model, 4, group_size=128, activations="float", progress=False)
    # Codes, and 16 bits of scale and 16 of the sum for 128 weights.
    assert small[0].panel.numel() * 8 / 1024**2 <= 4.3


def test_embedding_messages_and_types():
    small = octavo.quantize(nn.Sequential(nn.Embedding(10, 16, padding_idx=0)), 4, progress=False)
    assert repr(small[0]).startswith("QEmbedding(10, 16, padding_idx=0, bits=4")
    assert torch.equal(small(torch.tensor([[0]])), torch.zeros(1, 1, 16))
    assert torch.equal(small(torch.tensor([3, 4])), small(torch.tensor([3, 4], dtype=torch.int32)))
    assert small(torch.zeros(0, 5, dtype=torch.int64)).shape == (0, 5, 16)
    with pytest.raises(TypeError, match="expected indices of int64 or int32, got torch.float32"):
        small(torch.zeros(2))
    with pytest.raises(TypeError, match="expected a tensor of indices, got list"):
        small([1])
    with pytest.raises(RuntimeError):
        small(torch.tensor([10]))


def test_embedding_with_max_norm_stays_float():
    model = nn.Sequential(nn.Embedding(10, 16, max_norm=1.0), nn.Linear(16, 4))
    small = octavo.quantize(model, 4, progress=False)
    assert type(small[0]) is nn.Embedding
    (row,) = [row for row in octavo.report(small).rows if row.layer.name == "0"]
    assert "max_norm" in row.layer.reason


@pytest.mark.parametrize("rounding", ["nearest", "squant", "hqq", "gptq", "adaround", "qdrop"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_one_scale_for_a_whole_weight(rounding, symmetric):
    small = octavo.quantize(
        words(), 6, [X], rounding=rounding, group_size="tensor", symmetric=symmetric, progress=False
    )
    report = octavo.report(small)
    per = {row.layer.name: row.layer.granularity for row in report.rows}
    assert per["conv"] == "tensor" and per["wide"] == ("tensor" if symmetric else "tensor, affine")
    for name in ("table", "conv", "wide", "head"):
        layer = small.get_submodule(name)
        scale = layer.weight_scale
        assert scale.shape[0] == len(layer.weight) and bool((scale == scale.flatten()[0]).all())
        assert layer.group_size == 0
        zero = layer.weight_zero_point
        assert zero is None or bool((zero == zero.flatten()[0]).all())
    # Stretches that regions can run still do, unless zero points keep layers out.
    assert (small.wide.packed, small.conv.packed) == (not symmetric, False)
    with torch.no_grad():
        y = words()(X)
        assert F.mse_loss(small(X), y) < 0.01 * y.square().mean()


def test_one_scale_for_a_whole_weight_is_the_best_one():
    """Against a search over all scales with the same measure."""
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight[3] *= 4
    small = octavo.quantize(
        layer, 4, group_size="tensor", rounding="nearest", activations="float", progress=False
    )
    w, found = layer.weight.detach(), float(small.weight_scale[0])

    def error(scale):
        return float(((w / scale).round().clamp(-8, 7) * scale - w).abs().pow(2.4).sum())

    widest = float(w.abs().max()) / 7
    best = min(error(widest * ratio / 100) for ratio in range(20, 101))
    assert error(found) <= best * (1 + 1e-5)
    with pytest.raises(ValueError, match="group_size must be an integer or None with qat=True"):
        octavo.quantize(layer, 4, group_size="tensor", qat=True)


@pytest.mark.parametrize("size", [0, -1, 24, 8, 272])
def test_bad_group_sizes(size):
    with pytest.raises(ValueError, match=f"group_size must be a multiple of 16 .* got {size}"):
        octavo.quantize(words(), 4, group_size=size)


def test_bad_grid():
    with pytest.raises(ValueError, match="Did you mean 'apot'"):
        octavo.quantize(words(), 4, grid="aptp")


@pytest.mark.parametrize("grid", ["linear", "nf"])
def test_four_bits_in_groups_of_128_take_at_most_4_point_4_bits_in_memory(grid):
    """The panel has 4.3; the layer's own float32 bias is the rest."""
    model = nn.Sequential(nn.Linear(768, 1024), nn.ReLU(), nn.Linear(1024, 768)).eval()
    weights = sum(layer.weight.numel() for layer in model if isinstance(layer, nn.Linear))
    small = octavo.quantize(model, 4, grid=grid, group_size=128, rounding="nearest", progress=False)
    with torch.no_grad():
        small(torch.randn(3, 768))
    panels = sum(layer.panel.numel() for layer in small.modules() if isinstance(layer, QLayer))
    assert 8 * panels <= 4.3 * weights
    assert 8 * resident_bytes(small) <= 4.4 * weights


def test_resident_bits_of_grouped_layers():
    """Scales live in the panel alone: 4 bits, 32 a group for scale and sum, bias and header."""
    small = octavo.quantize(nn.Sequential(nn.Linear(4096, 1024)), 4, group_size=128, progress=False)
    assert 8 * resident_bytes(small) / (4096 * 1024) <= 4.3
    layer, again = small[0], pickle.loads(pickle.dumps(small))[0]
    assert torch.equal(layer.weight, again.weight)
    state = small.state_dict()
    assert list(state) == ["0.bias", "0.weight_packed", "0.weight_scale"]
    other = octavo.quantize(nn.Sequential(nn.Linear(4096, 1024)), 4, group_size=128, progress=False)
    before = other[0].weight
    with pytest.raises(
        RuntimeError, match=r"0.weight_scale: expected float32 or bfloat16 of shape \(1024, 32\)"
    ):
        other.load_state_dict(state | {"0.weight_scale": state["0.weight_scale"][:5]})
    with pytest.raises(AttributeError, match="0' .*weight_scale: expected to be read only"):
        other[0].weight_scale = layer.weight_scale
    assert torch.equal(other[0].weight, before)
    with pytest.raises(RuntimeError, match="Missing key.*0.weight_scale"):
        other.load_state_dict({k: v for k, v in state.items() if "scale" not in k})
    other.load_state_dict(state)
    assert torch.equal(other[0].weight, layer.weight)


def shifted() -> Words:
    """Weights whose ranges do not lie around 0."""
    model = words()
    with torch.no_grad():
        model.wide.weight.abs_()
        model.head.weight.sub_(0.1)
        model.table.weight.abs_().neg_()
    return model


@pytest.mark.parametrize("rounding", ["nearest", "squant", "hqq", "gptq", "adaround", "qdrop"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_zero_points_fit_weights_of_one_sign(bits, rounding):
    """A sign less is as good as a bit more, whatever rounds."""
    errors = {}
    for symmetric in (True, False):
        small = octavo.quantize(
            shifted(), bits, [X], activations="float", rounding=rounding, group_size=32,
            symmetric=symmetric, progress=False,
        )  # fmt: skip
        for name in ("wide", "table"):
            layer, weight = small.get_submodule(name), shifted().get_submodule(name).weight
            errors[name, symmetric] = float(F.mse_loss(layer.weight, weight.detach()))
            zero = layer.weight_zero_point
            assert (zero is None) == symmetric and layer.symmetric == symmetric
            if zero is not None:
                assert zero.dtype is torch.uint8 and zero.shape == layer.weight_scale.shape
                assert bool((zero == (0 if name == "wide" else 2**bits - 1)).all())
                shown = (
                    layer.codes()
                    + 2 ** (bits - 1)
                    - zero.repeat_interleave(32, 1)[:, : layer.codes().shape[1]].to(torch.int16)
                )
                assert torch.equal(shown.to(torch.int8), layer.level_values())
    if rounding in ("nearest", "squant", "hqq"):  # The others aim at outputs, not at weights.
        assert all(errors[name, False] < 0.75 * errors[name, True] for name in ("wide", "table"))


def test_zero_points_where_they_can_be():
    torch.manual_seed(0)
    small = octavo.quantize(
        shifted(), {"*": 4, "head": 8, "conv": 4}, [X], symmetric=False, progress=False
    )
    assert not small.wide.symmetric and not small.table.symmetric
    assert small.head.symmetric and small.conv.symmetric
    assert "symmetric=False" in repr(small.wide) and "symmetric" not in repr(small.head)
    report = octavo.report(small)
    assert any("keep symmetric weights: 'conv', 'head'" in note for note in report.notes)
    per = {row.layer.name: row.layer.granularity for row in report.rows}
    assert per["wide"] == "group of 32, affine" and per["conv"] == "channel"
    with torch.no_grad():
        assert F.cosine_similarity(shifted()(X).flatten(), small(X).flatten(), 0) > 0.95


def test_bad_zero_points(tmp_path):
    for kwargs, error, text in (
        ({"symmetric": 1}, TypeError, "symmetric must be True or False, got 1"),
        ({"symmetric": False, "grid": "nf"}, ValueError, "symmetric must be True with grid='nf'"),
    ):
        with pytest.raises(error, match=text):
            octavo.quantize(words(), 4, **kwargs)
    small = octavo.quantize(words(), 4, symmetric=False, group_size=32, progress=False)
    state = small.state_dict()
    rows, columns = state["wide.weight_zero_point"].shape
    for bad, text in (
        (torch.full((rows, columns), 16, dtype=torch.uint8), r"expected 0\.\.15, got 16"),
        (torch.zeros(rows, columns + 1, dtype=torch.uint8), "expected uint8 of shape"),
        (torch.zeros(rows, columns), "expected uint8 of shape"),
    ):
        twin = copy.deepcopy(small)
        with pytest.raises(RuntimeError, match=f"wide.weight_zero_point: {text}"):
            twin.load_state_dict({**state, "wide.weight_zero_point": bad})
        assert torch.equal(twin(X), small(X))
    del state["wide.weight_zero_point"]
    with pytest.raises(RuntimeError, match='Missing key.*"wide.weight_zero_point"'):
        copy.deepcopy(small).load_state_dict(state)
    path = tmp_path / "m.safetensors"
    octavo.save(small, path)
    tensors, metadata = safetensors_file.read(path)
    metadata = {key: value for key, value in metadata.items() if key != "sha256"}
    for bad in (torch.full((rows, columns), 16, dtype=torch.uint8), torch.zeros(rows, columns)):
        changed = {**tensors, "wide.weight_zero_point": bad}
        safetensors_file.write(tmp_path / "bad.safetensors", changed, metadata)
        with pytest.raises(octavo.CheckpointError, match="wide.weight_zero_point"):
            octavo.load(tmp_path / "bad.safetensors", Words())
