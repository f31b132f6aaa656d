"""Shared by tests and benchmarks; `testing.op_test` has the base class of operator tests."""

from kernels_pallas.core.accuracy import rms_relative_error
from kernels_pallas.core.launch import interpret
from kernels_pallas.testing.inputs import GATE_KINDS, Inputs, random_inputs
from kernels_pallas.testing.launches import launch_equations, launch_names, launches
from kernels_pallas.testing.tolerances import TOLERANCES, Tolerance

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
