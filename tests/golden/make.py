"""Writes files/ (once a format of files) and hashes.json: python tests/golden/make.py [files] [calls].

Files are kept as an earlier version wrote them: they show that it can still be read. `calls` writes the outputs'
SHA-256 of what `quantize` gives now; a commit that changes one of them says why.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import safetensors.torch
from calls import CALLS, CALLS_IN_FLOAT, FILES, digest, output, quantized

import octavo

FOLDER = Path(__file__).parent


def main() -> None:
    path = FOLDER / "hashes.json"
    hashes = json.loads(path.read_text()) if path.exists() else {}
    if "files" in sys.argv:
        hashes["files"] = {}
        for name, call in FILES.items():
            model = quantized(call)
            octavo.save(model, FOLDER / "files" / f"{name}.safetensors")
            hashes["files"][name] = digest(model, call)
    if "calls" in sys.argv:
        hashes["calls"] = {name: digest(quantized(call), call) for name, call in CALLS.items()}
        outputs = {name: output(quantized(call), call) for name, call in CALLS_IN_FLOAT.items()}
        safetensors.torch.save_file(outputs, FOLDER / "outputs.safetensors")
    path.write_text(json.dumps(hashes, indent=1) + "\n")


if __name__ == "__main__":
    main()
