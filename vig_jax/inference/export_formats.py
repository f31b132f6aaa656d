"""Files of exported programs: written, and run for a comparison."""

import contextlib
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import numpy as np
from jax import export as jax_export

from kernels_pallas import implementations
from vig_jax.errors import ConfigError, ExportError
from vig_jax.inference.export_program import Program

Format = Literal["stablehlo", "onnx"]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""Platforms that a StableHLO program can be lowered for."""
OLDEST_OPSET = 18
_FORBIDDEN = {"Scan", "Loop", "If"}


def format_of(target: Path) -> Format:
    """Returns the format that the name of a file stands for."""
    return "onnx" if target.suffix == ".onnx" else "stablehlo"


def check_packages(to: Format, verify: bool) -> None:
    """Checks that the packages of a format are installed.

    Raises:
        ConfigError: one is missing.
    """
    needed = {"stablehlo": ["flatbuffers"], "onnx": ["jax2onnx", "onnx"]}[to]
    if to == "onnx" and verify:
        needed.append("onnxruntime")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        extra = {"stablehlo": "export", "onnx": "onnx"}[to]
        raise ConfigError(
            f"writing {to} needs {', '.join(missing)}: pip install 'vig-jax[{extra}]'"
        )


def write_stablehlo(
    program: Program, batch_size: int | None, platforms: Sequence[str], path: Path
) -> None:
    """Writes a program as `jax.export` serialises it: for several platforms, without kernels."""
    with implementations("xla_chunked", "xla"):
        exporter = jax_export.export(jax.jit(program.run), platforms=tuple(platforms))
        exported = exporter(*_specs(program, batch_size))
    path.write_bytes(exported.serialize())


def run_stablehlo(path: Path, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the results of a file of `write_stablehlo` on this machine's platform."""
    exported = jax_export.deserialize(bytearray(path.read_bytes()))
    results: dict[str, np.ndarray] = jax.device_get(exported.call(*inputs))
    return results


def write_onnx(
    program: Program,
    batch_size: int | None,
    opset: int,
    facts: Mapping[str, str],
    path: Path,
) -> None:
    """Writes a program as an ONNX model, in float32.

    Args:
        program: without loops.
        batch_size: None for any.
        opset: of the operators.
        facts: properties of the model.
        path: the file.

    Raises:
        ConfigError: an opset that is too old or not known to the installed package.
        ExportError: an operation has no translation, or the model is too large for one file.
    """
    onnx = importlib.import_module("onnx")
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ConfigError(f"opset {opset} must be from {OLDEST_OPSET} to {newest}")

    def run(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        found = program.run(*inputs)
        return tuple(found[name] for name in program.outputs)

    with implementations("xla_unrolled", "portable"), _quiet():
        converter = importlib.import_module("jax2onnx")
        try:
            model = converter.to_onnx(
                run,
                inputs=_specs(program, batch_size),
                opset=opset,
                model_name="vig_jax",
                input_names=list(program.inputs),
                output_names=list(program.outputs),
            )
        except Exception as error:  # whatever the converter raises where it lacks something
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ExportError(
                f"jax2onnx cannot translate this model: {reason}; a fixed --batch (batch_size) may "
                "help, or write StableHLO"
            ) from error
    _check_operators(onnx, model)
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    try:
        onnx.save(model, str(path))
    except ValueError as error:  # protocol buffers end at 2 GiB
        raise ExportError(f"the model does not fit into one ONNX file: {error}") from error


def run_onnx(path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the results of an ONNX model by onnxruntime on the CPU."""
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _specs(program: Program, batch_size: int | None) -> list[jax.ShapeDtypeStruct]:
    """Returns the inputs of a batch, for None of symbolic size."""
    return program.batched(batch_size or jax_export.symbolic_shape("b")[0])


def _check_operators(onnx: ModuleType, model: Any) -> None:
    """Checks that a model is valid and has no loops and branches."""
    onnx.checker.check_model(model)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    if found := sorted({node.op_type for node in nodes} & _FORBIDDEN):
        raise ExportError(
            f"the translated model has {', '.join(found)} nodes, which most runtimes do not "
            "optimise: install the version of jax2onnx that this package names"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the converter's notes on shapes that it does not store."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
