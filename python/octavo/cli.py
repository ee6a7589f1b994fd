"""The command line: `octavo demo`, `octavo info`, also as `python -m octavo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

import octavo
from octavo.demo import run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="octavo", description="Neural networks in few bits, fast on ordinary CPUs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="quantize a small network for handwritten digits and compare the results"
    )
    demo.add_argument(
        "--rounds", type=_positive, default=50, help="timed calls of each model; the fastest counts"
    )
    commands.add_parser("info", help="versions and instruction sets")
    options = parser.parse_args(arguments)
    if options.command == "demo":
        print(run(options.rounds))
    else:
        print(_info())
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _info() -> str:
    return "\n".join(
        [
            f"octavo {octavo.__version__}, torch {torch.__version__}, Python "
            f"{sys.version.split()[0]}",
            f"instruction sets of this machine: {', '.join(octavo.isas())}",
            f"in use: {octavo.isa()}, {torch.get_num_threads()} threads",
        ]
    )
