"""demo: the shipped network keeps its accuracy in integers, and the commands print what they
say.
"""

import subprocess
import sys

import pytest

from octavo.cli import main
from octavo.demo import load_digits
from octavo.demo.run import measure


def test_accuracy_and_size():
    digits = load_digits()
    assert digits.images.shape == (600, 1, 8, 8) and digits.labels.shape == (600,)
    rows = {row.name: row for row in measure(rounds=1)}
    floats = rows["float"]
    assert floats.accuracy > 98 and floats.integer_share == 0
    for name in ("integer weights, dynamic", "whole model in integers"):
        assert rows[name].accuracy >= floats.accuracy - 0.5
        assert rows[name].bytes < 0.4 * floats.bytes and rows[name].integer_share == 1


def test_commands(capsys):
    assert main(["demo", "--rounds", "1"]) == 0
    assert "whole model in integers" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "instruction sets of this machine" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["demo", "--rounds", "0"])
    assert "must be at least 1, got 0" in capsys.readouterr().err


def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "octavo", "info"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("octavo ")
