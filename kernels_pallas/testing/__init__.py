"""Shared by tests and benchmarks; `testing.op_test` has the base class of operator tests."""

from ..core.accuracy import rms_relative_error
from ..core.launch import interpret
from .inputs import GATE_KINDS, Inputs, random_inputs
from .launches import launch_equations, launch_names, launches
from .tolerances import TOLERANCES, Tolerance

__all__ = [
    "GATE_KINDS",
    "TOLERANCES",
    "Inputs",
    "Tolerance",
    "interpret",
    "launch_equations",
    "launch_names",
    "launches",
    "random_inputs",
    "rms_relative_error",
]
