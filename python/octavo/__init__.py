"""PyTorch models that compute in few bits on ordinary CPUs: quantize, look, save, load."""

from octavo.library import __version__, isa, isas, set_isa  # first: it loads the compiled library

from octavo import plot  # isort: skip
from octavo.advise import Advice, advise  # isort: skip
from octavo.api import dequantize, quantize  # isort: skip
from octavo.checkpoint import load, save  # isort: skip
from octavo.freeze import freeze  # isort: skip
from octavo.front import Front, front  # isort: skip
from octavo.errors import CalibrationError, CheckpointError, NothingQuantizedError, OctavoError  # isort: skip
from octavo.grids import grids  # isort: skip
from octavo.mixed import Sensitivity, sensitivity  # isort: skip
from octavo.plan import Plan  # isort: skip
from octavo.report import Report, report  # isort: skip
from octavo.distill import DistillationLoss  # isort: skip
from octavo.schedule import TrainingSchedule, reestimate  # isort: skip
from octavo.trainee import range_parameters  # isort: skip
from octavo.verify import Verification, verify  # isort: skip

__all__ = [
    "Advice",
    "CalibrationError",
    "CheckpointError",
    "DistillationLoss",
    "Front",
    "NothingQuantizedError",
    "OctavoError",
    "Plan",
    "Report",
    "Sensitivity",
    "TrainingSchedule",
    "Verification",
    "__version__",
    "advise",
    "dequantize",
    "freeze",
    "front",
    "grids",
    "isa",
    "isas",
    "load",
    "plot",
    "quantize",
    "range_parameters",
    "reestimate",
    "report",
    "save",
    "sensitivity",
    "set_isa",
    "verify",
]
