"""PyTorch models that compute in few bits on ordinary CPUs: quantize, look, save, load."""

from octavo import plot
from octavo.advice.advise import Advice, advise
from octavo.advice.pareto import ParetoFront, pareto_front
from octavo.api import dequantize, quantize
from octavo.checkpoint.load import load
from octavo.checkpoint.save import save
from octavo.deciding.sensitivity import Sensitivity, sensitivity
from octavo.errors import CalibrationError, CheckpointError, NothingQuantizedError, OctavoError
from octavo.library import __version__, isa, isas, set_isa
from octavo.numerics.grids import grids
from octavo.planning.plan import Plan
from octavo.reporting.report import Report, report
from octavo.training.distill import DistillationLoss
from octavo.training.freeze import freeze
from octavo.training.schedule import TrainingSchedule, reestimate_batch_norm
from octavo.training.trainee import range_parameters
from octavo.training.verify import Verification, verify

__all__ = [
    "Advice",
    "CalibrationError",
    "CheckpointError",
    "DistillationLoss",
    "NothingQuantizedError",
    "OctavoError",
    "ParetoFront",
    "Plan",
    "Report",
    "Sensitivity",
    "TrainingSchedule",
    "Verification",
    "__version__",
    "advise",
    "dequantize",
    "freeze",
    "grids",
    "isa",
    "isas",
    "load",
    "pareto_front",
    "plot",
    "quantize",
    "range_parameters",
    "reestimate_batch_norm",
    "report",
    "save",
    "sensitivity",
    "set_isa",
    "verify",
]
