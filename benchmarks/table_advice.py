"""Asks the advisor about ten networks, runs the calls that it gives, and prints what came of them.

    python benchmarks/table_advice.py                              # all ten, every target
    python benchmarks/table_advice.py --models gpt2 --targets edge
    python benchmarks/table_advice.py --targets notebook --time    # times a call, one thread

Architectures of torchvision, timm and transformers with random weights (nothing is downloaded). Columns: the
call, bytes in memory as the advice said and as they are, signal-to-quantization-noise of the output (dB; random
weights say little about accuracy), and with --time the milliseconds of the float and the advised model.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from octavo.checkpoint.save import stored_bytes
from octavo.numerics.sqnr import sqnr
from octavo.reporting.report import resident_bytes

sys.path.insert(0, str(Path(__file__).parent))
from engines import float_model, images


@dataclass(frozen=True)
class Network:
    """package: that its architecture is from. build: the float model. batch: an input of so many samples."""

    package: str
    build: Callable[[], nn.Module]
    batch: Callable[[int], Any]


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **options)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:  # Real statistics, so that random weights make no denormals.
        norm.reset_running_stats()
        norm.momentum = None
    if norms:
        with torch.no_grad():
            model.train()(images(8, 224, 1000))
    return model.eval()


def _transformer(kind: str, config: str, **options: Any) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()


def _pictures(count: int) -> Tensor:
    return images(count, 224, 7)


def _text(length: int) -> Callable[[int], dict[str, Tensor]]:
    def batch(count: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(count)
        return {"input_ids": torch.randint(5, 2000, (count, length), generator=generator)}

    return batch


NETWORKS = {
    "resnet18": Network("torchvision", lambda: float_model("resnet18"), _pictures),
    "mobilenet_v2": Network("torchvision", lambda: float_model("mobilenet_v2"), _pictures),
    "shufflenet_v2_x1_0": Network(
        "torchvision", lambda: float_model("shufflenet_v2_x1_0"), _pictures
    ),
    "swin_t": Network("torchvision", lambda: float_model("swin_t"), _pictures),
    "vit_small_patch16_224": Network("timm", lambda: _timm("vit_small_patch16_224"), _pictures),
    "efficientnet_lite0": Network("timm", lambda: _timm("efficientnet_lite0"), _pictures),
    "convnext_atto": Network("timm", lambda: _timm("convnext_atto"), _pictures),
    "distilbert": Network(
        "transformers", lambda: _transformer("DistilBertModel", "DistilBertConfig"), _text(32)
    ),
    "gpt2": Network(
        "transformers", lambda: _transformer("GPT2LMHeadModel", "GPT2Config"), _text(1)
    ),
    "llama_small": Network(
        "transformers",
        lambda: _transformer(
            "LlamaForCausalLM", "LlamaConfig", vocab_size=8000, hidden_size=1024, num_hidden_layers=6,
            intermediate_size=2816, num_attention_heads=16, num_key_value_heads=4,
        ),
        _text(1),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What came of one call.

    found: bytes in memory; file_found: of the tensors in the file. noise: dB, None where the outputs
    are equal. float_ms, ms: fastest call, None if not timed.
    """

    found: int
    file_found: int
    noise: float | None
    float_ms: float | None = None
    ms: float | None = None


class Asked:
    """Asks about one model, and runs calls as text, each once whoever is told it."""

    def __init__(self, network: Network, rounds: int = 0, count: int = 1) -> None:
        """rounds: timed calls on ``count`` samples."""
        self.model = network.build()
        self._network, self._rounds, self._count = network, rounds, count
        self._rows: dict[str, Row] = {}

    def ask(self, target: str, with_data: bool) -> tuple[octavo.Advice, Row]:
        """The advice, and what comes of it."""
        count = self._count
        data = [self._network.batch(count), self._network.batch(count + 1)] if with_data else None
        advice = octavo.advise(self.model, target, data)
        if advice.call not in self._rows:
            self._rows[advice.call] = _measure(
                self._network, self.model, advice.call, data, self._rounds, count
            )
        return advice, self._rows[advice.call]


@torch.no_grad()
def _measure(
    network: Network, model: nn.Module, call: str, data: Any, rounds: int, count: int
) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        small = eval(call, {"octavo": octavo, "model": model, "data": data})
    x = network.batch(count)
    noise = sqnr(_output(model, x), _output(small, x))
    row = Row(resident_bytes(small), stored_bytes(small), noise)
    if not rounds:
        return row
    best = {"float": float("inf"), "small": float("inf")}
    for _ in range(rounds):
        for name, one in (("float", model), ("small", small)):
            start = time.perf_counter()
            _output(one, x)
            best[name] = min(best[name], time.perf_counter() - start)
    return Row(**{**vars(row), "float_ms": 1e3 * best["float"], "ms": 1e3 * best["small"]})


def _output(model: nn.Module, x: Any) -> Tensor:
    result = model(**x) if isinstance(x, dict) else model(x)
    return result if isinstance(result, Tensor) else result[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument(
        "--targets", nargs="+", default=["phone", "server", "edge", "notebook"], metavar="TARGET"
    )
    parser.add_argument("--time", action="store_true", help="time a call of both models")
    parser.add_argument("--batch", type=int, default=1, help="samples in a timed call")
    parser.add_argument("--data", choices=("with", "without", "both"), default="both")
    args = parser.parse_args()
    if args.time:
        torch.set_num_threads(1)
    print(
        f"octavo ISA {octavo.isa()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    failed = False
    for name in args.models:
        asked = Asked(NETWORKS[name], 12 if args.time else 0, args.batch)
        for target in args.targets:
            for with_data in {"with": (True,), "without": (False,), "both": (False, True)}[
                args.data
            ]:
                advice, row = asked.ask(target, with_data)
                said = advice.size
                failed |= said.bytes != row.found or said.file_bytes != row.file_found
                noise = "exact" if row.noise is None else f"{row.noise:.1f} dB"
                times = f"  {row.float_ms:.2f} ms float, {row.ms:.2f} ms" if row.ms else ""
                times += f" ({row.float_ms / row.ms:.2f} times)" if row.ms else ""
                print(f"{name}, {target}, {'data' if with_data else 'no data'}: {advice.call}")
                print(
                    f"    {said.bytes:,} bytes said, {row.found:,} found; {noise}{times}",
                    flush=True,
                )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
