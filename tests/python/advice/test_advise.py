"""advise: which rules fire for which models, calls that run as given, sizes that are exact."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import octavo
from octavo.advice.advise import RULES, TARGETS, Situation
from octavo.advice.cpu import Machine, machine
from octavo.advice.speeds import SPEEDS, speed_of
from octavo.advice.traits import traits
from octavo.checkpoint.save import stored_bytes
from octavo.reporting.report import resident_bytes


class Convolutional(nn.Sequential):
    def __init__(self, depthwise=False):
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, groups=32 if depthwise else 1), nn.ReLU(),
            nn.Conv2d(32, 64, 1, bias=False), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip


class SelfAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v))


class Writer(nn.Module):
    """Tokens to scores of the next one."""

    def __init__(self, width=64, layers=1, vocabulary=200):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.layers = nn.Sequential(*[SelfAttention(width) for _ in range(layers)])
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        return self.head(self.layers(self.table(tokens)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(200, (2, 5), generator=torch.Generator().manual_seed(0))
MODELS = {
    "plain": (Convolutional, IMAGES),
    "depthwise": (lambda: Convolutional(True), IMAGES),
    "writer": (Writer, TOKENS),
    "recurrent": (Recurrent, torch.randn(2, 5, 16)),
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)),
        torch.randn(8, 64),
    ),
    "bag": (
        lambda: nn.Sequential(nn.Embedding(500, 32), nn.Flatten(), nn.Linear(160, 4)),
        TOKENS,
    ),
}


def build(name):
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def rules(advice):
    return [reason.rule for reason in advice.reasons]


@pytest.mark.parametrize("with_data", [False, True], ids=["no data", "data"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_calls_run_as_given_and_sizes_are_exact(name, target, with_data):
    model, x = build(name), MODELS[name][1]
    data = [x] if with_data else None
    before = {key: value.clone() for key, value in model.state_dict().items()}
    advice = octavo.advise(model, target, data)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    small = eval(advice.call, {"octavo": octavo, "model": model, "data": data})
    assert resident_bytes(small) == advice.size.bytes
    assert stored_bytes(small) == advice.size.file_bytes
    assert advice.size.float_bytes == sum(t.nbytes for t in model.state_dict().values())
    with torch.no_grad():
        again = advice.apply(model, data, progress=False)
        assert torch.equal(small(x), again(x))
    assert json.loads(json.dumps(advice.to_dict()))["call"] == advice.call
    text = str(advice)
    assert advice.call.split(",")[0] in text and all(rule in text for rule in rules(advice))
    assert "<table>" in advice._repr_html_()


def test_convolutional_networks():
    server = octavo.advise(build("plain"), "server", [IMAGES])
    assert server.call == "octavo.quantize(model, 8, data)"
    assert "whole network in integers" in rules(server)
    phone = octavo.advise(build("plain"), "phone", [IMAGES])
    assert phone.arguments["bits"] == {"*": 4, "@first": 8, "@last": 8} and phone.uses_data
    assert phone.size.file_bytes < 0.8 * server.size.file_bytes
    assert phone.size.bytes == server.size.bytes  # Regions keep int8 panels.
    without = octavo.advise(build("plain"), "server")
    assert "no data" in rules(without) and any("give data" in hint for hint in without.hints)


def test_depthwise_layers_keep_eight_bits():
    advice = octavo.advise(build("depthwise"), "edge", [IMAGES])
    assert advice.traits.depthwise == ("3",)
    assert advice.arguments["bits"] == {"*": 5, "3": 8, "@first": 8, "@last": 8}
    without = octavo.advise(build("depthwise"), "edge")
    assert without.arguments == {"bits": 8} and "depthwise without data" in rules(without)


def test_patterns_of_depthwise_layers_match_no_other():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1)

    found = traits(nn.Sequential(nn.Sequential(Block(), Block())))
    assert found.depthwise == ("0.*.conv1",)
    mixed = nn.Sequential(
        *[nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8)) for _ in range(2)]
    )
    assert traits(mixed).depthwise == ("0.1", "1.1")


def test_models_that_write_text_wait_for_weights():
    wide = Writer(512, 2).eval()
    one = octavo.advise(wide, "notebook")
    assert one.traits.family == "transformer" and one.traits.generates
    assert one.arguments == {"bits": 4, "group_size": 64, "grid": "nf"}
    assert "few uses of a weight" in rules(one)
    many = octavo.advise(wide, "server", [torch.randint(200, (4, 16))])
    assert many.call == "octavo.quantize(model, 8)" and many.traits.uses > 16
    assert "many uses of a weight" in rules(many)
    few = octavo.advise(wide, "server", [TOKENS[:1, :2]])
    assert few.arguments["activations"] == "dynamic" and few.uses_data
    assert "few uses of a weight" in rules(few)


def test_recurrent_networks_are_recognised():
    advice = octavo.advise(build("recurrent"))
    assert advice.traits.family == "recurrent" and not advice.traits.left
    assert advice.traits.share("recurrent") > 0.95 and "stays float" not in rules(advice)
    many = octavo.advise(build("recurrent"), "server", [torch.randn(32, 5, 16)])
    assert "each weight is used 32 times at a time" in str(many)
    small = octavo.advise(build("recurrent"), "edge")
    assert small.arguments["bits"] == 4 and small.arguments["grid"] == "nf"
    small.apply(build("recurrent"))(torch.randn(2, 5, 16))


def test_what_stays_float_is_said():
    class Own(nn.LSTM):
        def forward(self, x, hx=None):
            return super().forward(x, hx)

    model = build("recurrent")
    model.lstm = Own(16, 32, batch_first=True).eval()
    advice = octavo.advise(model)
    assert advice.traits.family == "recurrent"
    (reason,) = [r.why for r in advice.reasons if r.rule == "stays float"]
    assert "1 Own (98 % of the weights: Own has no integer form)" in reason


def test_nothing_to_quantize():
    advice = octavo.advise(nn.Sequential(nn.LayerNorm(8), nn.ReLU()))
    assert advice.call == "" and advice.size is None and advice.arguments == {}
    assert "nothing to quantize" in str(advice)
    with pytest.raises(octavo.NothingQuantizedError, match="must hold a layer .* got none"):
        advice.apply(nn.LayerNorm(8))


def test_data_that_runs_the_model_itself_and_training_mode():
    model = build("plain").train()
    advice = octavo.advise(model, "phone", lambda m: m(IMAGES))
    assert advice.uses_data and advice.traits.samples == 4 and model.training
    assert advice.traits.multiplies == 4 * (16 * 16 * (27 * 32 + 288 * 32 + 32 * 64) + 640)


def test_multiplies_and_uses():
    found = octavo.advise(build("perceptron"), "server", torch.randn(8, 64)).traits
    assert found.multiplies == 8 * (64 * 64 + 64 * 8) and found.uses == 8


@pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
def test_every_rule_has_a_reason_a_source_and_a_case(rule):
    assert rule.source
    scalar = replace(machine(), isa="scalar")
    cases = [
        Situation(found, where, target, has_data)
        for found in (
            *(traits(build(name)) for name in MODELS),
            replace(traits(Writer(512, 2)), multiplies=10**9),
            traits(Writer(512, 2)),
            traits(nn.Sequential(nn.Bilinear(8, 8, 8), nn.Conv3d(1, 1, 3))),
        )
        for where in (machine(), scalar)
        for target in TARGETS.values()
        for has_data in (False, True)
    ]
    fired = [case for case in cases if rule.when(case)]
    assert fired and len(fired) < len(cases)
    assert all(len(rule.why(case)) > 20 for case in fired)


def test_speed_is_measured_or_unknown():
    kind = "convolutional, static"
    known = speed_of("avx512_vnni", kind)
    assert 1 < known.low < known.high and "measured on" in str(known)
    assert "not on neon_dotprod" in str(speed_of("neon_dotprod", kind))
    assert "no network of this kind" in str(speed_of("avx512_vnni", "spiking"))
    assert all(speed.low <= speed.high and "Zen 5" in speed.basis for speed in SPEEDS.values())
    phone = octavo.advise(build("plain"), "phone")
    assert phone.speed.low is None and "not measured" in str(phone.speed)


def test_machine(tmp_path: Path):
    here = machine()
    assert here.isa == octavo.isa() and here.threads == torch.get_num_threads()
    assert machine(tmp_path / "nowhere") == Machine(here.isa, {}, here.threads)
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "1M"), ("3", "x", "?")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    found = machine(tmp_path)
    assert found.caches == {1: 48 << 10, 2: 1 << 20} and found.last_cache == 1 << 20
    assert "L1 48 KiB, L2 1,024 KiB" in str(found)
    assert machine(tmp_path / "nowhere").last_cache is None


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((nn.Linear(2, 2), "toaster"), ValueError, "target must be one of phone, .* got 'toaster'"),
        ((nn.Linear(2, 2), 3), ValueError, "target must be one of .* got 3"),
        ((3,), TypeError, "model must be an nn.Module, got 3"),
        ((nn.Linear(2, 2), "phone", 3), TypeError, "data must be batches .* got 3"),
    ],
)
def test_messages(arguments, error, text):
    with pytest.raises(error, match=text):
        octavo.advise(*arguments)


def test_apply_needs_the_data_of_its_call():
    advice = octavo.advise(build("plain"), "server", [IMAGES])
    with pytest.raises(ValueError, match=r"data must be batches for octavo.quantize.* got None"):
        advice.apply(build("plain"))
