"""Recurrent networks: layers of the same function, quantized, trained, saved and given back."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import octavo
from conftest import isas_and_thread_counts
from octavo import ops
from octavo.nn import QLinear, float_reasons
from octavo.nn.decomposed.decompose import decompose, is_decomposable, recompose
from octavo.nn.decomposed.recurrence import cell, over_time
from octavo.nn.decomposed.recurrent import DecomposedLSTM

# What torch's own networks say about oneDNN, and weight_norm about its successor.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:.*weight_norm")

INPUT, HIDDEN = 5, 16
NETWORKS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}
FORMS = {
    "plain": {},
    "batch-first": {"batch_first": True},
    "no-bias": {"bias": False, "num_layers": 2},
    "both-ways": {"bidirectional": True},
    "deep": {"num_layers": 3, "bidirectional": True, "batch_first": True},
}
CASES = [(cls, form) for cls in NETWORKS.values() for form in FORMS.values()] + [
    (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
    (nn.LSTM, {"proj_size": 6, "num_layers": 2, "bidirectional": True}),
    (nn.LSTM, {"proj_size": 6, "bias": False, "batch_first": True}),
]


def name_of(value):
    return value.__name__ if isinstance(value, type) else "-".join(value) or "plain"


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def no_gradients(request):
    """But for tests of gradients and training."""
    wanted = any(word in request.node.name for word in ("gradients", "training"))
    with torch.set_grad_enabled(wanted):
        yield


def inputs():
    lengths = (2, 6, 3, 6, 1)
    sequences = [normal(n, INPUT, seed=i) for i, n in enumerate(lengths)]
    in_order = sorted(sequences, key=len, reverse=True)
    return {
        "batch": normal(3, 7, INPUT),
        "one": normal(7, INPUT),
        "single": normal(1, 1, INPUT),
        "packed": pack_sequence(sequences, enforce_sorted=False),
        "in order": pack_sequence(in_order),
    }


def drawn(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return module.eval()


def watched(module):
    """A hook on every layer, so that torch's own function is not taken."""
    for layer in module.children():
        layer.register_forward_hook(lambda *_: None)
    return module


def close(got, wanted, **tolerance):
    got, wanted = tree_leaves(got), tree_leaves(wanted)
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, **(tolerance or {"rtol": 1e-5, "atol": 1e-6}))


class Tagger(nn.Module):
    def __init__(self, cls=nn.LSTM, **form):
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.rnn = cls(32, 48, batch_first=True, bidirectional=True, **form)
        self.head = nn.Linear(96, 10)

    def forward(self, tokens):
        self.rnn.flatten_parameters()
        return self.head(self.rnn(self.table(tokens))[0])


def tagger(cls=nn.LSTM, **form):
    torch.manual_seed(0)
    return Tagger(cls, **form).eval()


def tokens(batches=8, batch=4, length=9):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(50, (batch, length), generator=generator) for _ in range(batches)]


# ---- the same function


@pytest.mark.parametrize(("cls", "form"), CASES, ids=name_of)
def test_networks_are_the_same_function(cls, form):
    network = drawn(cls(INPUT, HIDDEN, **form))
    layered = decompose(copy.deepcopy(network))
    assert isinstance(layered, cls) and type(layered) is not cls
    assert not layered._parameters and not is_decomposable(layered)
    for x in inputs().values():
        with torch.no_grad():
            wanted = network(x)
            assert torch.equal(tree_leaves(layered(x))[0], tree_leaves(wanted)[0])
            step_by_step = watched(copy.deepcopy(layered))
            close(step_by_step(x), wanted)
            close(step_by_step(x, wanted[1]), network(x, wanted[1]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cls", CELLS.values(), ids=name_of)
def test_cells_are_the_same_function(cls, bias):
    cell = drawn(cls(INPUT, HIDDEN, bias=bias))
    layered = decompose(copy.deepcopy(cell))
    for x in (normal(3, INPUT), normal(INPUT)):
        state = cell(x)
        for one in (layered, watched(copy.deepcopy(layered))):
            close(one(x), state)
            close(one(x, state), cell(x, state))
    assert recompose(layered) is layered and type(layered) is cls
    close(layered(x, state), cell(x, state))


def test_relu_cell():
    cell = drawn(nn.RNNCell(INPUT, HIDDEN, nonlinearity="relu"))
    close(watched(decompose(copy.deepcopy(cell)))(normal(3, INPUT)), cell(normal(3, INPUT)))


@pytest.mark.parametrize(("cls", "form"), CASES, ids=name_of)
def test_networks_go_back(cls, form):
    network = drawn(cls(INPUT, HIDDEN, **form))
    wanted, names = network(normal(3, 7, INPUT)), list(dict(network.named_parameters()))
    before = dict(network.named_parameters())
    again = recompose(decompose(network))
    assert again is network and type(again) is cls
    assert list(dict(again.named_parameters())) == names
    assert all(parameter is before[name] for name, parameter in again.named_parameters())
    close(again(normal(3, 7, INPUT)), wanted)
    assert len(again._flat_weights) == len(names)


def test_gradients_are_the_same():
    for cls, form in CASES:
        network = drawn(cls(INPUT, HIDDEN, **form)).train()
        layered = watched(decompose(copy.deepcopy(network)))
        x = inputs()["packed"]
        for module in (network, layered):
            y, _ = module(x)
            y.data.square().sum().backward()
        for name, parameter in network.named_parameters():
            close(getattr(layered, name).grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_dropout_between_levels_in_training_only():
    network = drawn(nn.LSTM(INPUT, HIDDEN, num_layers=2, dropout=0.5))
    layered, x = watched(decompose(copy.deepcopy(network))), normal(4, 3, INPUT)
    assert torch.equal(layered(x)[0], layered(x)[0])
    layered.train()
    assert not torch.equal(layered(x)[0], layered(x)[0])


def test_what_users_do_with_one():
    network = drawn(nn.LSTM(INPUT, HIDDEN, num_layers=2, bidirectional=True))
    layered = decompose(copy.deepcopy(network))
    x = normal(7, 3, INPUT)
    close(pickle.loads(pickle.dumps(layered))(x), network(x))
    close(copy.deepcopy(layered)(x), network(x))
    layered.flatten_parameters()
    for wanted, got in zip(network.all_weights, layered.all_weights, strict=True):
        close(got, wanted)
    assert torch.equal(layered.weight_hh_l1_reverse, network.weight_hh_l1_reverse)
    with pytest.raises(AttributeError, match="weight_hh_l7"):
        _ = layered.weight_hh_l7
    assert layered.double()(x.double())[0].dtype is torch.float64
    assert "16, num_layers=2, bidirectional=True" in repr(layered)


@pytest.mark.parametrize(
    ("x", "hx", "error"),
    [
        (normal(3), None, "2D or 3D"),
        (normal(7, 3, INPUT + 1), None, "must be equal to input_size. Expected 5, got 6"),
        (normal(0, 3, INPUT), None, "sequence length to be larger than 0"),
        (normal(7, 3, INPUT), normal(1, 3, HIDDEN), "expected 2 states"),
        (normal(7, 3, INPUT), (normal(1, 2, HIDDEN),) * 2, r"hidden size \(1, 3, 16\)"),
        (normal(7, INPUT), (normal(2, HIDDEN),) * 2, r"hidden size \(1, 16\)"),
    ],
)
def test_bad_calls_are_refused(x, hx, error):
    layered = watched(decompose(drawn(nn.LSTM(INPUT, HIDDEN))))
    with pytest.raises((RuntimeError, ValueError), match=error):
        layered(x, hx)


def test_bad_calls_of_cells_are_refused():
    layered = watched(decompose(drawn(nn.GRUCell(INPUT, HIDDEN))))
    with pytest.raises(ValueError, match="1D or 2D"):
        layered(normal(2, 3, INPUT))
    with pytest.raises(RuntimeError, match=r"expected h of shape \[3, 16\]"):
        layered(normal(3, INPUT), normal(2, HIDDEN))


def test_what_is_no_plain_network_stays():
    class Own(nn.LSTM):
        def forward(self, x, hx=None):
            return super().forward(x + 1, hx)

    own = drawn(Own(INPUT, HIDDEN))
    normed = nn.utils.weight_norm(drawn(nn.LSTM(INPUT, HIDDEN)), "weight_hh_l0")
    for module in (own, normed):
        assert not is_decomposable(module)
        assert "no integer form" in float_reasons(module)[""]


# ---- quantized

OPTIONS = {
    "dynamic": {"bits": 8},
    "static": {"bits": 8, "data": tokens()},
    "packed": {"bits": 4},
    "packed static": {"bits": 4, "data": tokens(), "effort": "fast"},
    "few": {"bits": (4, 6), "data": tokens(), "effort": "fast"},
    "weight-only": {"bits": 4, "activations": "float"},
    "levels": {"bits": 3, "grid": "nf"},
    "average": {"bits": 4.5},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cls", NETWORKS.values(), ids=name_of)
def test_quantized_saved_loaded_and_given_back(cls, options, tmp_path):
    model, x = tagger(cls), tokens(1)[0]
    wanted = model(x)
    quantized = octavo.quantize(model, progress=False, **options)
    assert isinstance(quantized.rnn, cls)
    layers = dict(quantized.rnn.named_children())
    assert set(layers) == {f"{n}_l0{d}" for n in ("ih", "hh") for d in ("", "_reverse")}
    assert all(isinstance(layer, QLinear) for layer in layers.values())
    y = quantized(x)
    error = float((y - wanted).norm() / wanted.norm())
    assert error < (0.03 if options["bits"] == 8 else 0.4)
    octavo.save(quantized, tmp_path / "model.safetensors")
    assert torch.equal(octavo.load(tmp_path / "model.safetensors", tagger(cls))(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(quantized))(x), y)
    assert torch.equal(copy.deepcopy(quantized)(x), y)
    floats = octavo.dequantize(quantized)
    assert type(floats.rnn) is cls
    assert float((floats(x) - y).norm() / y.norm()) < 0.15


def test_calibrated_methods_see_every_time():
    model, data = tagger(num_layers=2), tokens()
    wanted = model(data[0])
    errors = {}
    for effort in ("fast", "balanced", "best"):
        quantized = octavo.quantize(model, 3, data, effort=effort, progress=False)
        errors[effort] = float((quantized(data[0]) - wanted).norm())
    assert errors["balanced"] < 0.9 * errors["fast"] and errors["best"] < 0.9 * errors["fast"]


def test_layers_called_in_a_loop_are_rounded_on_all_their_calls():
    """On the first call alone, whose state is zero, GPTQ was far worse than plain rounding."""
    model, mix = drawn(nn.GRU(32, 32)), normal(3, 32, seed=9)  # Hidden states correlate then.
    data = [normal(12, 16, 3, seed=i) @ mix for i in range(4)]
    wanted = model(data[0])[0]
    errors = {}
    for rounding in ("nearest", "gptq", "adaround"):
        quantized = octavo.quantize(
            model, 3, data, rounding=rounding, activations="dynamic", include=["hh_l0"],
            progress=False,
        )  # fmt: skip
        errors[rounding] = float((quantized(data[0])[0] - wanted).norm())
    assert errors["gptq"] < 0.8 * errors["nearest"]
    assert errors["adaround"] < 0.8 * errors["nearest"]


def test_some_layers_only():
    model = tagger()
    part = octavo.quantize(model, 8, exclude=["rnn.hh_*"], progress=False)
    kinds = {name: type(layer) for name, layer in part.rnn.named_children()}
    assert kinds["ih_l0"] is QLinear and kinds["hh_l0"] is nn.Linear
    none = octavo.quantize(model, 8, exclude=["rnn.*"], progress=False)
    assert all(type(layer) is nn.Linear for layer in none.rnn.children())
    x = model.table(tokens(1)[0])
    assert torch.equal(none.rnn(x)[0], model.rnn(x)[0])


def test_packed_sequences_and_batches_agree():
    network = octavo.quantize(drawn(nn.GRU(INPUT, HIDDEN, bidirectional=True)), 8)
    lengths = (2, 6, 3, 6, 1)
    sequences = [normal(n, INPUT, seed=i) for i, n in enumerate(lengths)]
    y, last = network(pack_sequence(sequences, enforce_sorted=False))
    padded, _ = pad_packed_sequence(y)
    for i, sequence in enumerate(sequences):
        alone, end = network(sequence)
        assert torch.equal(padded[: len(sequence), i], alone)
        assert torch.equal(last[:, i], end)


def test_cells_in_a_loop():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(INPUT, HIDDEN)

        def forward(self, x):
            state = None
            for step in x:
                state = self.cell(step, state)
            return state[0]

    model, x = drawn(Decoder()), normal(6, 3, INPUT)
    for options in ({}, {"data": [x]}):
        quantized = octavo.quantize(model, 8, progress=False, **options)
        assert isinstance(quantized.cell.hh, QLinear)
        close(quantized(x), model(x), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("cls", NETWORKS.values(), ids=name_of)
@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_training_reaches_what_is_frozen(cls, activations):
    model, data = tagger(cls), tokens()
    options = {"data": data} if activations == "static" else {}
    trainee = octavo.quantize(model, 4, qat=True, progress=False, **options)
    assert {id(p) for p in model.parameters()} <= {id(p) for p in trainee.parameters()}
    optimizer = torch.optim.SGD(trainee.parameters(), 0.5)
    trainee.train()
    losses = []
    for x in data * 3:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(trainee(x).flatten(0, 1), x.flatten() % 10)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trainee.eval()
    frozen = octavo.freeze(trainee)
    assert isinstance(frozen.rnn.hh_l0, QLinear)
    close(frozen(data[0]), trainee(data[0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", [None, "lsq"])
def test_trainees_are_saved_and_loaded(method, tmp_path):
    model, data = tagger(nn.GRU), tokens()
    trainee = octavo.quantize(model, 4, data, qat=True, qat_method=method, progress=False)
    trainee.train()(data[1])
    trainee.eval()
    octavo.save(trainee, tmp_path / "trainee.safetensors")
    again = octavo.load(tmp_path / "trainee.safetensors", tagger(nn.GRU))
    assert torch.equal(again(data[0]), trainee(data[0]))
    assert torch.equal(octavo.freeze(again)(data[0]), octavo.freeze(trainee)(data[0]))


def test_hooks_fire_for_every_time():
    quantized = octavo.quantize(tagger(), 8)
    x, seen = tokens(1, length=9)[0], []
    wanted = quantized(x)
    handle = quantized.rnn.hh_l0.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(quantized(x), wanted)
    assert len(seen) == 9
    handle.remove()


def test_weight_only_layers_pass_gradients():
    network = octavo.quantize(drawn(nn.LSTM(32, 32)), 4, activations="float")
    floats = octavo.dequantize(network)
    grads = []
    for module in (network, floats):
        x = normal(4, 2, 32).requires_grad_()
        module(x)[0].square().sum().backward()
        grads.append(x.grad)
    close(grads[0], grads[1], rtol=1e-3, atol=1e-4)


def test_integer_networks_refuse_gradients():
    network = octavo.quantize(drawn(nn.LSTM(INPUT, HIDDEN)), 8)
    x = normal(4, 2, INPUT).requires_grad_()
    with pytest.raises(RuntimeError, match="inference only"):
        network(x)[0].sum().backward()


def test_half_precision_in_and_out():
    network = octavo.quantize(drawn(nn.LSTM(INPUT, HIDDEN)), 8)
    y, (h, c) = network(normal(4, 2, INPUT).bfloat16())
    assert {y.dtype, h.dtype, c.dtype} == {torch.bfloat16}
    close(y.float(), network(normal(4, 2, INPUT))[0], rtol=0.1, atol=0.05)


def test_all_forms_quantize():
    for (cls, form), options in itertools.product(CASES, ({}, {"data": [normal(7, 3, INPUT)]})):
        network = drawn(cls(INPUT, HIDDEN, **form))
        quantized = octavo.quantize(network, 8, progress=False, **options)
        for x in inputs().values():
            got, wanted = (tree_leaves(m(x)) for m in (quantized, network))
            for one, other in zip(got, wanted, strict=True):
                if isinstance(one, torch.Tensor) and one.is_floating_point():
                    assert float((one - other).norm() / other.norm()) < 0.15


def test_layered_lstm_is_what_separate_makes():
    assert type(decompose(nn.LSTM(INPUT, HIDDEN))) is DecomposedLSTM


# ---- the operators

MODES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
LAYERS = {
    "dense dynamic": {},
    "dense static": {"data": [normal(7, 3, 48)]},
    "packed dynamic": {"bits": 4},
    "packed static": {"bits": (3, 5), "data": [normal(7, 3, 48)], "effort": "fast"},
    "packed float": {"bits": 2, "activations": "float"},
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [[3] * 5, [4, 4, 2, 1], [1]], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("mode", MODES)
def test_all_steps_are_the_steps(isa, mode, layer, sizes, reverse):
    options = {"bits": 8, **LAYERS[layer]}
    gates, width = MODES[mode], 48
    hh = octavo.quantize(nn.Sequential(drawn(nn.Linear(width, gates * width))),
                         progress=False, **options)[0]  # fmt: skip
    x = normal(sum(sizes), gates * width, seed=2)
    state = tuple(normal(sizes[0], width, seed=3 + i) for i in range(2 if mode == "LSTM" else 1))

    def step(gates, state):
        h, c = ops.recurrent_cell(gates, hh(state[0]), state[-1], mode)
        return (h, c) if mode == "LSTM" else (h,)

    wanted, ends = over_time(x, state, sizes, reverse, step)
    p = hh.input_params
    static = () if p is None else (p.scale, p.zero_point, p.qmax)
    y, h, c = ops.recurrent(
        x, hh.current_panel(), state[0], state[1] if mode == "LSTM" else None, sizes, reverse,
        mode, hh.activations, *(static or (1.0, 0, 255)), hh.packed,
    )  # fmt: skip
    assert torch.equal(y, wanted) and torch.equal(h, ends[0])
    assert torch.equal(c, ends[1]) if mode == "LSTM" else c.numel() == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_step_is_that_of_torch(isa, mode):
    x, h = (2 * normal(3, MODES[mode] * 37, seed=seed) for seed in (1, 2))
    state = tuple(normal(3, 37, seed=3 + i) for i in range(2 if mode == "LSTM" else 1))
    for got, wanted in zip(ops.recurrent_cell(x, h, state[-1], mode), cell(mode, x, h, state),
                           strict=False):  # fmt: skip
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_every_isa_and_thread_count_has_the_same_bits():
    network = octavo.quantize(drawn(nn.LSTM(64, 128, num_layers=2, bidirectional=True)), 8)
    x = normal(5, 40, 64)
    found = [network(x)[0] for _ in isas_and_thread_counts()]
    assert all(torch.equal(y, found[0]) for y in found)


BAD = {
    "mode": ({"mode": "LSTN"}, "mode: expected"),
    "activations": ({"activations": "float"}, "activations: expected"),
    "first": ({"batch_sizes": [2, 1]}, "the first to be 3"),
    "none": ({"batch_sizes": []}, "the first to be 3"),
    "grow": ({"batch_sizes": [3, 1, 2]}, "never grow"),
    "huge": ({"batch_sizes": [3, 3, 3]}, "of 6 rows in all"),
    "negative": ({"batch_sizes": [3, -1]}, "never grow"),
    "c": ({"c": None}, "expected a tensor for 'LSTM'"),
    "width": ({"h": torch.zeros(3, 5), "c": torch.zeros(3, 5)}, "gates: expected shape"),
    "weight": ({"weight": torch.zeros(64, dtype=torch.uint8)}, "expected a weight panel"),
    "dtype": ({"h": torch.zeros(3, 16, dtype=torch.float64)}, "expected float32"),
    "scale": ({"activations": "static", "scale": 0.0}, "scale: expected"),
    "code": ({"activations": "static", "zero_point": 300}, "zero_point: expected 0..255"),
}


@pytest.mark.parametrize("change", BAD)
def test_bad_arguments_are_refused(change):
    hh = octavo.quantize(nn.Sequential(drawn(nn.Linear(16, 64))), 8, progress=False)[0]
    call = {
        "gates": torch.zeros(6, 64), "weight": hh.current_panel(), "h": torch.zeros(3, 16),
        "c": torch.zeros(3, 16), "batch_sizes": [3, 3], "reverse": False, "mode": "LSTM",
    }  # fmt: skip
    ops.recurrent(**call)
    arguments, error = BAD[change]
    with pytest.raises(RuntimeError, match=error):
        ops.recurrent(**{**call, **arguments})


def test_a_convolutions_panel_is_refused():
    conv = octavo.quantize(nn.Sequential(drawn(nn.Conv2d(16, 16, 3))), 8, progress=False)[0]
    state = torch.zeros(3, 16)
    with pytest.raises(RuntimeError, match="got a convolution's"):
        ops.recurrent(torch.zeros(3, 16), conv.current_panel(), state, None, [3], False, "RNN_TANH")


def test_verify_and_report():
    model, data = tagger(), tokens()
    trainee = octavo.quantize(model, 8, data=data, qat=True, progress=False)
    frozen = octavo.freeze(trainee)
    assert "rnn.hh_l0" in str(octavo.verify(trainee, frozen, data))
    assert "6 of 6 layers in integers" in str(octavo.report(frozen))


def test_compiled_network_is_the_same():
    network = octavo.quantize(drawn(nn.GRU(INPUT, HIDDEN)), 8, progress=False)
    x = normal(6, 3, INPUT)
    compiled = torch.compile(network, backend="eager")
    assert torch.equal(compiled(x)[0], network(x)[0])
