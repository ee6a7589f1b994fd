"""separate: fused weights become layers of the same function, and go back; quantize reaches them."""

import copy
import itertools

import pytest
import torch
from torch import nn

import octavo
from octavo.nn import float_reasons
from octavo.nn.decomposed.attention import DecomposedAttention
from octavo.nn.decomposed.decompose import decompose, is_decomposable, recompose
from octavo.nn.decomposed.experts import DecomposedExperts
from octavo.nn.decomposed.window_attention import DecomposedWindowAttention

BATCH, LENGTH, SOURCE, WIDTH, HEADS = 3, 5, 7, 32, 4


def decibels(wanted, got):
    return float(10 * torch.log10(wanted.square().sum() / (wanted - got).square().sum()))


def drawn(module, seed=0):
    """All parameters from a normal distribution: biases are zero at first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return module.eval()


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def slow_path():
    """torch's fast path computes masked rows in another way."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


# ---- attention

FORMS = {
    "plain": {},
    "no-bias": {"bias": False},
    "batch-first": {"batch_first": True},
    "bias-kv": {"add_bias_kv": True, "batch_first": True},
    "zero": {"add_zero_attn": True},
    "bias-kv-zero": {"add_bias_kv": True, "add_zero_attn": True},
    "widths": {"kdim": 24, "vdim": 20, "batch_first": True},
    "widths-no-bias": {"kdim": 24, "bias": False},
}
MASKS = {
    "none": (None, None),
    "bool": (torch.ones(LENGTH, SOURCE).triu(3).bool(), None),
    "float": (normal(LENGTH, SOURCE, seed=4), None),
    "heads": (normal(BATCH * HEADS, LENGTH, SOURCE, seed=5), None),
    "padding": (None, torch.arange(SOURCE).repeat(BATCH, 1) >= torch.tensor([[7], [5], [2]])),
    "both": (
        normal(LENGTH, SOURCE, seed=6),
        torch.where(torch.arange(SOURCE).repeat(BATCH, 1) > 4, -torch.inf, 0.0),
    ),
}


def inputs(attention, shared):
    """Query, key and value; one tensor for keys and values if `shared`."""
    sizes = [(LENGTH, WIDTH), (SOURCE, attention.kdim), (SOURCE, attention.vdim)]
    made = [normal(BATCH, *size, seed=i) for i, size in enumerate(sizes)]
    made = made if attention.batch_first else [x.transpose(0, 1) for x in made]
    return [made[0], made[1], made[1]] if shared else made


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", FORMS)
def test_attention_is_the_same_function(form, mask, slow_path):
    attention = drawn(nn.MultiheadAttention(WIDTH, HEADS, **FORMS[form]))
    layered = decompose(copy.deepcopy(attention))
    assert type(layered) is DecomposedAttention
    attn_mask, padding = MASKS[mask]
    for shared, weights, average in itertools.product((False, True), repeat=3):
        if shared and attention.kdim != attention.vdim:
            continue
        call = inputs(attention, shared)
        options = {
            "attn_mask": attn_mask, "key_padding_mask": padding, "need_weights": weights,
            "average_attn_weights": average,
        }  # fmt: skip
        wanted, got = attention(*call, **options), layered(*call, **options)
        torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-5)
        assert (got[1] is None) == (wanted[1] is None)
        if weights:
            torch.testing.assert_close(got[1], wanted[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_self_attention_causal_unbatched_and_empty(batch_first, weights, slow_path):
    attention = drawn(nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first))
    layered = decompose(copy.deepcopy(attention))
    causal = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    batched = normal(BATCH, LENGTH, WIDTH) if batch_first else normal(LENGTH, BATCH, WIDTH)
    for x, options in (
        (batched, {"attn_mask": causal, "is_causal": True}),
        (batched, {}),
        (normal(LENGTH, WIDTH), {"attn_mask": causal}),
        (normal(LENGTH, WIDTH), {"key_padding_mask": torch.arange(LENGTH) > 3}),
    ):
        wanted = attention(x, x, x, need_weights=weights, **options)
        got = layered(x, x, x, need_weights=weights, **options)
        for one, other in zip(wanted, got, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="is_causal"):
        layered(batched, batched, batched, is_causal=True)


def test_masks_of_other_shapes_are_refused():
    layered = decompose(drawn(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)))
    x = normal(BATCH, LENGTH, WIDTH)
    with pytest.raises(RuntimeError, match="attn_mask must have the shape"):
        layered(x, x, x, attn_mask=torch.zeros(LENGTH, SOURCE))
    with pytest.raises(RuntimeError, match="key_padding_mask must end in 5"):
        layered(x, x, x, key_padding_mask=torch.zeros(BATCH, SOURCE, dtype=torch.bool))


@pytest.mark.parametrize("form", FORMS)
def test_attention_goes_back(form):
    attention = drawn(nn.MultiheadAttention(WIDTH, HEADS, **FORMS[form]))
    before = dict(attention.named_parameters())
    again = recompose(decompose(attention))
    assert again is attention and type(again) is nn.MultiheadAttention
    assert type(again.out_proj) is nn.modules.linear.NonDynamicallyQuantizableLinear
    assert dict(again.named_parameters()).keys() == before.keys()
    assert all(parameter is before[name] for name, parameter in again.named_parameters())
    assert not is_decomposable(decompose(attention))


def test_dropout_in_training():
    attention = drawn(nn.MultiheadAttention(WIDTH, HEADS, dropout=0.5, batch_first=True)).train()
    layered, x = decompose(copy.deepcopy(attention)), normal(BATCH, LENGTH, WIDTH)
    for weights in (False, True):
        one, other = (layered(x, x, x, need_weights=weights)[0] for _ in range(2))
        assert not torch.equal(one, other)


# ---- windows


@pytest.mark.parametrize("version", ["", "V2"])
@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((8, 8), 4, 2), ((8, 12), 4, 0), ((7, 9), 4, 2), ((3, 9), 4, 2), ((4, 4), 4, 2)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_windows_are_the_same_function_and_go_back(version, size, window, shift, bias):
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    cls = getattr(swin, f"ShiftedWindowAttention{version}")
    module = drawn(cls(32, [window, window], [shift, shift], 4, qkv_bias=bias, proj_bias=bias))
    before, x = copy.deepcopy(module.state_dict()), normal(2, *size, 32)
    with torch.no_grad():
        wanted = module(x)
        got = decompose(module)(x)
    assert type(module) is DecomposedWindowAttention
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert type(recompose(module)) is cls and module.state_dict().keys() == before.keys()
    if not version:
        assert all(torch.equal(module.state_dict()[name], x) for name, x in before.items())


# ---- whole models


def encoder(norm_first=False, **options):
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 64, batch_first=True, norm_first=norm_first, **options
    )
    return drawn(nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("activations", ["dynamic", "static", "float"])
def test_an_encoder_is_quantized_whole(activations):
    model, x = encoder(), normal(BATCH, LENGTH, WIDTH)
    padding = torch.arange(LENGTH).repeat(BATCH, 1) >= torch.tensor([[5], [4], [2]])
    kept = ~padding
    options = {"data": [x]} if activations == "static" else {"activations": activations}
    small = octavo.quantize(model, 8, progress=False, **options)
    names = ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    kinds = {name: type(small.get_submodule(f"layers.1.{name}")).__name__ for name in names}
    assert kinds == dict.fromkeys(names, "QLinear")
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention  # The user's stays.
    assert model.use_nested_tensor and model.layers[0].activation_relu_or_gelu
    with torch.no_grad():
        assert decibels(model(x), small(x)) > 30
        wanted, got = (m(x, src_key_padding_mask=padding) for m in (model, small))
        assert decibels(wanted[kept], got[kept]) > 30
        back = octavo.dequantize(small)
        assert type(back.layers[0].self_attn) is nn.MultiheadAttention
        assert back.use_nested_tensor and back.layers[0].activation_relu_or_gelu
        assert back.state_dict().keys() == model.state_dict().keys()
        assert decibels(model(x), back(x)) > 35


def test_an_encoder_layer_alone_and_a_decoder():
    x, memory = normal(BATCH, LENGTH, WIDTH), normal(BATCH, SOURCE, WIDTH, seed=2)
    model = drawn(nn.Transformer(WIDTH, HEADS, 1, 1, 64, batch_first=True))
    small = octavo.quantize(model, 8, progress=False)
    alone = drawn(nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True))
    with torch.no_grad():
        assert decibels(model(memory, x), small(memory, x)) > 30
        assert decibels(alone(x), octavo.quantize(alone, 8, progress=False)(x)) > 30
    assert not [n for n, why in float_reasons(decompose(alone)).items() if "reads" in why]


def vision(name):
    models = pytest.importorskip("torchvision.models")
    if name == "vit":
        return drawn(models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10))
    swin = models.swin_transformer
    v2 = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    options = v2 if name == "swin_v2" else {}
    return drawn(
        swin.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=10, **options)
    )


@pytest.mark.parametrize("name", ["vit", "swin", "swin_v2"])
def test_vision_transformers_are_integers_but_for_scores(name, tmp_path):
    model, x = vision(name), normal(4, 3, 32, 32)
    small = octavo.quantize(model, 8, data=[x], progress=False)
    rows = octavo.report(small, [x])
    assert not [r.layer.name for r in rows.rows if "reads its weight" in r.layer.reason]
    assert 0.9 < rows.multiplies.integer_share < 1.0
    octavo.save(small, tmp_path / "small.safetensors")
    with torch.no_grad():
        assert decibels(model(x), small(x)) > 15
        again = octavo.load(tmp_path / "small.safetensors", vision(name))
        assert torch.equal(again(x), small(x))


def test_save_load_and_copies_have_the_same_bits(tmp_path):
    model, x = encoder(), normal(BATCH, LENGTH, WIDTH)
    small = octavo.quantize(model, 4, data=[x], progress=False)
    octavo.save(small, tmp_path / "small.safetensors")
    torch.save(small, tmp_path / "small.pt")
    with torch.no_grad():
        wanted = small(x)
        for again in (
            octavo.load(tmp_path / "small.safetensors", encoder()),
            copy.deepcopy(small),
            torch.load(tmp_path / "small.pt", weights_only=False),
        ):
            assert torch.equal(again(x), wanted)


def test_inplace_changes_the_model_itself_or_nothing():
    model, x = encoder(), normal(BATCH, LENGTH, WIDTH)
    with pytest.raises(ValueError):
        octavo.quantize(model, 8, include=["nothing"], inplace=True, progress=False)
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention
    assert model.layers[0].activation_relu_or_gelu and "in_proj_weight" in dict(
        model.layers[0].self_attn.named_parameters()
    )
    assert octavo.quantize(model, 8, inplace=True, progress=False) is model
    assert type(model.layers[0].self_attn) is DecomposedAttention
    model(x)


def test_names_reach_projections():
    model = encoder()
    small = octavo.quantize(
        model, {"*": 8, "layers.0.self_attn": 4}, exclude=["*.out_proj"], progress=False
    )
    bits = {name: module.bits for name, module in small.named_modules() if hasattr(module, "bits")}
    assert bits["layers.0.self_attn.in_proj"] == 4 and bits["layers.1.self_attn.in_proj"] == 8
    assert not any("out_proj" in name for name in bits)


def test_training_shares_parameters_and_freezes():
    model, x = encoder(), normal(16, LENGTH, WIDTH)
    trainee = octavo.quantize(model, 4, data=[x], qat=True, progress=False)
    mine = {id(parameter) for parameter in model.parameters()}
    assert mine <= {id(parameter) for parameter in trainee.parameters()}
    target = model(x).detach()
    optimizer = torch.optim.Adam(trainee.parameters(), 1e-3)
    losses = []
    for _ in range(20):
        loss = nn.functional.mse_loss(trainee(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert model.layers[0].self_attn.in_proj_weight.grad is not None
    trainee.eval()
    frozen = octavo.freeze(trainee)
    with torch.no_grad():
        assert decibels(trainee(x), frozen(x)) > 20


# ---- experts


class Experts(nn.Module):
    """As transformers fuses them: what its decorator sets, and the loop of its models."""

    def __init__(self, gate=True, bias=False, transposed=False, norm=False):
        super().__init__()
        self.num_experts, width, inner = 4, 32, 48
        self.has_gate, self.has_bias, self.is_transposed = gate, bias, transposed
        self.has_post_expert_norm = norm
        self.act_fn = nn.SiLU()
        self.up_name = "gate_up_proj" if gate else "up_proj"
        sizes = {self.up_name: (inner * (1 + gate), width), "down_proj": (width, inner)}
        for name, size in sizes.items():
            shape = size[::-1] if transposed else size
            setattr(self, name, nn.Parameter(torch.empty(4, *shape)))
            if bias:
                setattr(self, f"{name}_bias", nn.Parameter(torch.empty(4, size[0])))
        if norm:
            self.post_expert_norm = nn.LayerNorm(width)

    def _apply_gate(self, x):
        gate, up = x.chunk(2, -1)
        return self.act_fn(gate) * up

    def _linear(self, x, name, expert):
        weight = getattr(self, name)[expert]
        bias = getattr(self, f"{name}_bias")[expert] if self.has_bias else None
        return nn.functional.linear(x, weight.t() if self.is_transposed else weight, bias)

    def forward(self, hidden_states, top_k_index, top_k_weights):
        y = torch.zeros_like(hidden_states)
        for token, (experts, weights) in enumerate(zip(top_k_index, top_k_weights, strict=True)):
            for expert, weight in zip(experts.tolist(), weights, strict=True):
                if expert == self.num_experts:
                    continue
                x = self._linear(hidden_states[token], self.up_name, expert)
                x = self._apply_gate(x) if self.has_gate else self.act_fn(x)
                x = self._linear(x, "down_proj", expert)
                y[token] += weight * (self.post_expert_norm(x) if self.has_post_expert_norm else x)
        return y


KINDS = {
    "gate": {},
    "no-gate": {"gate": False},
    "bias": {"bias": True},
    "transposed": {"transposed": True, "bias": True},
    "norm": {"norm": True},
}


def routed(tokens=11):
    index = torch.randint(0, 5, (tokens, 2), generator=torch.Generator().manual_seed(3))
    return normal(tokens, 32), index, normal(tokens, 2, seed=9).abs()


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_the_same_function_and_go_back(kind):
    experts, call = drawn(Experts(**KINDS[kind])), routed()
    before = {name: tensor.clone() for name, tensor in experts.state_dict().items()}
    with torch.no_grad():
        wanted = experts(*call)
        layered = decompose(experts)
        assert type(layered) is DecomposedExperts
        torch.testing.assert_close(layered(*call), wanted, rtol=1e-5, atol=1e-5)
        x, index, weights = call
        none = layered(x, torch.full_like(index, 4), top_k_weights=weights)
        assert not none.any() and layered(x[:0], index[:0], weights[:0]).shape == (0, 32)
    again = recompose(layered)
    assert type(again) is Experts and again.state_dict().keys() == before.keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_quantized_saved_and_loaded(kind, tmp_path):
    model = nn.ModuleDict({"experts": drawn(Experts(**KINDS[kind]))}).eval()
    small, call = octavo.quantize(model, 8, progress=False), routed()
    assert type(model["experts"]) is Experts
    assert sum(type(m).__name__ == "QLinear" for m in small.modules()) == 8
    octavo.save(small, tmp_path / "experts.safetensors")
    again = octavo.load(tmp_path / "experts.safetensors", model)
    with torch.no_grad():
        wanted, got = model["experts"](*call), small["experts"](*call)
        assert decibels(wanted, got) > 30
        assert torch.equal(again["experts"](*call), got)
        back = octavo.dequantize(small)["experts"]
        assert type(back) is Experts
        assert decibels(wanted, back(*call)) > 30


def test_experts_stay_fused_in_training():
    model = nn.Sequential(nn.Linear(32, 32), drawn(Experts()))
    assert type(decompose(model, training=True)[1]) is Experts
    assert "Experts has no integer form" in float_reasons(model)["1"]


class Mixture(nn.Module):
    """A router in front of experts, and a layer that other code sends every other sample to."""

    def __init__(self):
        super().__init__()
        self.first, self.experts = nn.Linear(32, 32), Experts()
        self.router = nn.Linear(32, 4)
        self.some = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))

    def forward(self, x):
        x = self.first(x)
        weights, index = self.router(x).softmax(-1).topk(2)
        y = self.experts(x, index, weights)
        some = y[:, 0] > 0
        return y.index_put((some,), self.some(y[some]))


@pytest.mark.parametrize(
    "options",
    [{"rounding": "gptq"}, {"rounding": "adaround"}, {"effort": "best"}, {"grid": "kmeans"}],
    ids=lambda options: str(*options.values()),
)
@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_rounding_where_samples_are_routed_otherwise_than_in_float(options, activations):
    model, data = drawn(Mixture()), [normal(64, 32, seed=i) for i in range(4)]
    static = {} if activations == "static" else {"activations": activations}
    bits = (3, 8) if activations == "static" else 3
    small = octavo.quantize(model, bits, data=data, progress=False, **options, **static)
    assert sum(type(m).__name__ == "QLinear" for m in small.modules()) == 12
    with torch.no_grad():
        assert decibels(model(data[0]), small(data[0])) > 3


def test_a_trainee_with_attention_is_saved_and_loaded(tmp_path):
    def build():
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True).eval()

    x = normal(BATCH, LENGTH, WIDTH)
    trainee = octavo.quantize(build(), 4, qat=True, progress=False).eval()
    octavo.save(trainee, tmp_path / "trainee.safetensors")
    again = octavo.load(tmp_path / "trainee.safetensors", build())
    with torch.no_grad():
        assert torch.equal(again(x), trainee(x))
