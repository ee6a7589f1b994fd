"""Times whole networks in octavo and its peers: same float model, same data, one run, interleaved rounds.

    python benchmarks/models.py                      # everything: 3 models, batch 1 and 16, 1 and 2 threads
    python benchmarks/models.py --models resnet18 --batches 1 --threads 1 --rounds 10

Prints one table a setting: fastest and median time of a call, and octavo's time as a share of each peer's
(below 1: octavo is faster). Needs torchvision; an engine that is not installed is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from engines import ENGINES, GROUPS, float_model


class Worker:
    """A child process with its own thread settings."""

    def __init__(self, group: str, threads: int, folder: Path) -> None:
        environment = dict(os.environ)
        environment |= {
            "BENCH_THREADS": str(threads),
            "BENCH_FOLDER": str(folder),
            "OMP_NUM_THREADS": str(threads),
        }
        environment.pop("OMP_PROC_BIND", None)
        if group == "openmp" and threads > 1:
            environment["OMP_PROC_BIND"] = "true"
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("engines.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("BENCH_VERBOSE") else subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"error": "the worker process died"}

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measure(
    model: str,
    batch: int,
    threads: int,
    engines: list[str],
    rounds: int,
    seconds: float,
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """Returns for each engine either {"error"} or {"min", "median", "cosine"}, times in milliseconds."""
    groups = dict.fromkeys(GROUPS[e] for e in engines)
    workers = {group: Worker(group, threads, folder) for group in groups}
    results: dict[str, dict[str, Any]] = {}
    try:
        for worker in workers.values():
            worker.ask(do="load", model=model, batch=batch)
        for engine in engines:
            results[engine] = workers[GROUPS[engine]].ask(do="build", engine=engine)
        times: dict[str, list[float]] = {e: [] for e in engines if "error" not in results[e]}
        for i in range(rounds):
            order = list(times) if i % 2 == 0 else list(reversed(times))
            for engine in order:
                answer = workers[GROUPS[engine]].ask(do="time", engine=engine, seconds=seconds)
                if "error" in answer:
                    results[engine] = answer
                times[engine] += answer.get("seconds", [])
        for engine, values in times.items():
            if values and "error" not in results[engine]:
                results[engine]["min"] = 1e3 * min(values)
                results[engine]["median"] = 1e3 * statistics.median(values)
    finally:
        for worker in workers.values():
            worker.close()
    return results


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_features() -> str:
    wanted = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp")
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    found = set(text.split())
    return " ".join(f for f in wanted if f in found) or "none of those listed"


def print_table(title: str, results: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}")
    print(
        f"  {'engine':22}{'min ms':>9}{'median ms':>11}{'octavo/it':>11}{'(median)':>10}{'cosine':>9}"
    )
    own = results.get("octavo", {})
    for engine, row in results.items():
        if "error" in row:
            print(f"  {engine:22} not measured: {row['error']}")
            continue
        ratio = f"{own['min'] / row['min']:11.2f}" if "min" in own else f"{'-':>11}"
        middle = f"{own['median'] / row['median']:10.2f}" if "min" in own else f"{'-':>10}"
        print(
            f"  {engine:22}{row['min']:9.3f}{row['median']:11.3f}{ratio}{middle}{row['cosine']:9.4f}",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="time per engine and round")
    parser.add_argument("--json", type=Path, help="also write the results there")
    args = parser.parse_args()

    import torch

    versions = []
    for module in ("torch", "torchvision", "onnxruntime", "openvino", "nncf", "octavo"):
        try:
            versions.append(f"{module} {getattr(__import__(module), '__version__', '?')}")
        except ImportError:
            versions.append(f"{module} not installed")
    isa = "octavo not installed"
    if "octavo not installed" not in versions:
        import octavo

        isa = octavo.isa()
    print(f"CPU: {cpu_name()} ({os.cpu_count()} cores; {cpu_features()})")
    print(f"octavo ISA: {isa}; torch: {torch.backends.cpu.get_cpu_capability()}")
    print("; ".join(versions))

    collected = []
    with tempfile.TemporaryDirectory(prefix="octavo-bench-") as name:
        folder = Path(name)
        for model in args.models:
            torch.save(float_model(model), folder / f"{model}.pt")
            for threads in args.threads:
                for batch in args.batches:
                    results = measure(
                        model, batch, threads, args.engines, args.rounds, args.seconds, folder
                    )
                    print_table(f"{model}, batch {batch}, {threads} thread(s)", results)
                    collected.append(
                        {"model": model, "batch": batch, "threads": threads, "results": results}
                    )
                    if args.json:
                        args.json.write_text(json.dumps({"isa": isa, "rows": collected}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
