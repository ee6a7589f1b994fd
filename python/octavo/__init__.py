"""PyTorch models that compute in few bits on ordinary CPUs: quantize, look, save, load."""

from octavo.library import __version__, isa, isas, set_isa  # first: it loads the compiled library

from octavo.errors import CalibrationError, CheckpointError, NothingQuantizedError, OctavoError  # isort: skip

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "NothingQuantizedError",
    "OctavoError",
    "__version__",
    "isa",
    "isas",
    "set_isa",
]
