"""Array shapes and types of every annotated function are checked while the tests run."""

import ast
import gc
import importlib
import os
import shutil
import sys
from importlib.metadata import version

import jaxtyping
import pytest
from jaxtyping._import_hook import JaxtypingTransformer

# Nearly all of the tests' time is XLA's compilation for the CPU, of programs that then run once.
# These make it several times shorter and the programs slower. The second would touch code for a
# GPU too, which is to be tested as users run it.
if shutil.which("nvidia-smi") is None:
    os.environ["XLA_FLAGS"] = " ".join(
        (
            # Only JAX 0.10 knows it; an unknown flag ends the process.
            "--xla_cpu_use_fusion_emitters=false" if version("jax") < "0.11" else "",
            "--xla_backend_optimization_level=0",
            "--xla_llvm_disable_expensive_passes=true",
            "--xla_cpu_parallel_codegen_split_count=1",
            os.environ.get("XLA_FLAGS", ""),  # what is given counts more: it comes last
        )
    )

# Tracing makes many small objects that live: by default they are searched again and again.
gc.set_threshold(100_000, 20, 100)

# MLIR looks under this name, in vain and without remembering it, for every Triton operation it
# makes. Seen with JAX 0.10 alone.
if version("jax") < "0.11":
    sys.modules.setdefault(
        "jaxlib.mlir.dialects.tt", importlib.import_module("jaxlib.triton.dialect")
    )


def _visit_outside_of_functions(self, node):
    if not isinstance(node, ast.FunctionDef):
        ast.NodeVisitor.generic_visit(self, node)


# Functions inside of functions are left alone: they would be wrapped anew at each call of the outer
# one, a third of the time that tracing a model takes.
JaxtypingTransformer.generic_visit = _visit_outside_of_functions
jaxtyping.install_import_hook(["kernels_pallas", "vig_jax"], "beartype.beartype")


@pytest.fixture
def unchecked():
    """Without those checks, to see our own errors as a user does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
