"""PyTorch models that compute in few bits on ordinary CPUs: quantize, look, save, load."""

from octavo.library import __version__, isa, isas, set_isa  # first: it loads the compiled library

from octavo.api import dequantize, quantize  # isort: skip
from octavo.checkpoint import load, save  # isort: skip
from octavo.errors import CalibrationError, CheckpointError, NothingQuantizedError, OctavoError  # isort: skip
from octavo.plan import Plan  # isort: skip
from octavo.report import Report, report  # isort: skip

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "NothingQuantizedError",
    "OctavoError",
    "Plan",
    "Report",
    "__version__",
    "dequantize",
    "isa",
    "isas",
    "load",
    "quantize",
    "report",
    "save",
    "set_isa",
]
