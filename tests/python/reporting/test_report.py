"""report: rows for every layer, bytes that are there, noise that is measured."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import octavo
from octavo.numerics.sqnr import sqnr


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.LayerNorm(576),
        nn.Linear(576, 10),
    ).eval()  # fmt: skip


X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_rows_and_totals():
    floats = model()
    fast = octavo.quantize(floats, 8, data=X, progress=False)
    report = octavo.report(fast, X)
    rows = {row.layer.name: row for row in report.rows}
    assert rows["0"].layer.bits == rows["5"].layer.bits == 8 and rows["4"].layer.bits == 0
    assert "LayerNorm has no integer form" in rows["4"].layer.reason
    assert rows["5"].layer.float_bytes == 4 * (576 * 10 + 10) and rows["5"].bytes < 10000
    assert report.float_bytes == sum(t.nbytes for t in floats.state_dict().values())
    assert report.bytes >= sum(row.bytes for row in report.rows)
    assert report.multiplies.integer == 32 * (16 * 27 * 36 + 5760)
    assert report.multiplies.integer_share == 1.0
    assert report.isa == octavo.isa()
    text = str(report)
    assert "LayerNorm has no integer form" in text and "multiply-adds in integers: 100.00 %" in text
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["layer"]["name"] == "0"


def test_float_multiplies_are_counted():
    fast = octavo.quantize(model(), 8, data=X, exclude="5", progress=False)
    counted = octavo.report(fast, X).multiplies
    assert counted.floating == 32 * 5760 and counted.integer == 32 * 16 * 27 * 36


def test_noise_against_a_reference_agrees_with_what_quantize_measured():
    floats = model()
    fast = octavo.quantize(floats, 8, data=X, progress=False)
    measured = octavo.report(fast)
    compared = octavo.report(fast, X, reference=floats)
    for one, other in zip(measured.rows, compared.rows, strict=True):
        if one.layer.bits:
            assert one.output_sqnr > 30 and abs(one.output_sqnr - other.output_sqnr) < 1.5
    with torch.no_grad():
        assert compared.output_sqnr == pytest.approx(sqnr(floats(X), fast(X)), abs=1e-3)


def test_the_record_travels(tmp_path):
    fast = octavo.quantize(model(), 8, data=X, progress=False)
    wanted = str(octavo.report(fast))
    octavo.save(fast, tmp_path / "m.safetensors")
    for twin in (
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        octavo.load(tmp_path / "m.safetensors", model()),
    ):
        assert str(octavo.report(twin)) == wanted


def test_html(tmp_path):
    floats = model()
    fast = octavo.quantize(floats, 8, data=X, progress=False)
    report = octavo.report(fast, X, reference=floats)
    report.save_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.count("<tr>") == 1 + len(report.rows)
    assert "LayerNorm has no integer form" in text and "multiply-adds in integers" in text
    inline = report._repr_html_()
    assert inline in text and inline.count('class="bar"') >= 2 * len(report.rows)


def test_html_is_escaped():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("a<b>&c", nn.Linear(8, 8))

        def forward(self, x):
            return getattr(self, "a<b>&c")(x)

    html = octavo.report(octavo.quantize(Odd(), 8, progress=False))._repr_html_()
    assert "a&lt;b&gt;&amp;c" in html and "a<b>" not in html


def test_what_is_no_quantized_model():
    with pytest.raises(TypeError, match="model must be a quantized nn.Module, got 3"):
        octavo.report(3)
    with pytest.raises(ValueError, match="got a Sequential without octavo's record"):
        octavo.report(model())
    with pytest.raises(
        ValueError, match="data must be batches where a reference is given, got None"
    ):
        octavo.report(octavo.quantize(model(), 8, progress=False), reference=model())


def test_both_kinds_of_prelu_run_in_integers():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.PReLU(), nn.Conv2d(8, 8, 3), nn.PReLU(8), nn.Conv2d(8, 4, 3)
    ).eval()
    small = octavo.quantize(net, 8, data=[torch.randn(2, 3, 16, 16)], progress=False)
    told = {r.layer.name: r.layer.reason for r in octavo.report(small).rows}
    assert told["1"] == told["3"] and "computed in integers" in told["1"]
