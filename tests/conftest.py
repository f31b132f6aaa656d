"""Array shapes and types of every annotated function are checked while the tests run."""

import gc
import importlib
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import jaxtyping
import pytest

from tests import annotations, golden_det, golden_seg

# Compilation by XLA takes most of the tests' time on a CPU, and the programs then run once. These
# flags make it several times shorter and the programs slower. VIG_TESTS_XLA=default (set by
# `make test-all`) leaves XLA as users have it. The second flag would change the code for a GPU too.
if shutil.which("nvidia-smi") is None and os.environ.get("VIG_TESTS_XLA") != "default":
    os.environ["XLA_FLAGS"] = " ".join(
        (
            # Only JAX 0.10 has this flag; an unknown one ends the process.
            "--xla_cpu_use_fusion_emitters=false" if version("jax") < "0.11" else "",
            "--xla_backend_optimization_level=0",
            "--xla_llvm_disable_expensive_passes=true",
            "--xla_cpu_parallel_codegen_split_count=1",
            os.environ.get("XLA_FLAGS", ""),  # last, so that it has precedence
        )
    )

# JAX looks at every frame of every exception that passes through it, with system calls for each.
os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")

# Tests start many processes. Without bytecode on disk each of them compiles every module again, and
# rewriting modules for the checks below takes twice as long as importing them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Tracing makes many small objects that stay alive; the default thresholds scan them too often.
gc.set_threshold(100_000, 20, 100)

# MLIR tries to import this name for every Triton operation that it builds, and does not remember
# the failure. Seen with JAX 0.10 only.
if version("jax") < "0.11":
    sys.modules.setdefault(
        "jaxlib.mlir.dialects.tt", importlib.import_module("jaxlib.triton.dialect")
    )


GOLDENS = (
    ("--golden-seg", golden_seg, "semantic segmentation"),
    ("--golden-det", golden_det, "Mask R-CNN"),
)


annotations.install()


def pytest_addoption(parser):
    for option, module, subject in GOLDENS:
        parser.addoption(
            option,
            metavar="DIR",
            type=Path,
            default=module.DEFAULT,
            help=f"golden values of {subject} (default: tests/{module.DEFAULT.name})",
        )


def pytest_configure(config):
    for option, module, _ in GOLDENS:
        module.use(config.getoption(option).resolve())


@pytest.fixture
def unchecked():
    """Switches those checks off, so that our own errors appear as a user sees them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """Compiles a small model once for all runs, those in other processes included."""
    import jax

    folder = tmp_path_factory.mktemp("compilation_cache")
    names = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in names.items()}
    for name, value in before.items():
        jax.config.update(name, value)
