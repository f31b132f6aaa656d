"""Times gated linear attention: `python -m kernels_pallas.benchmarks.run --help`.

Every implementation is first compared with the reference, values and gradients; if one is off by
more than the tolerance table allows, nothing is timed and the exit status is 1.
"""

import argparse
import dataclasses
import functools
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.gla.api import IMPLEMENTATIONS, bidirectional_gla, gla
from kernels_pallas.gla.workloads import WORKLOADS, Workload
from kernels_pallas.testing import (
    GATE_KINDS,
    TOLERANCES,
    Inputs,
    random_inputs,
    rms_relative_error,
)

_SWEEP = (196, 392, 784, 1568, 3136, 4096, 8192, 16384)
_DEFAULTS = {
    "cpu": ("cpu_784", "cpu_196", "cpu_49"),
    "gpu": ("vig_s_224", "vig_t_1024", "vig_h_t_224_stage1", "vig_h_t_224_stage3"),
}
_CHECKED_IMAGES = 2
_SAMPLE_SECONDS = 0.02  # one sample is as many calls as fill this, so that dispatch does not count


@dataclasses.dataclass(frozen=True)
class _Case:
    """What is run: operator, passes and types are the same for every row of one table."""

    op: str
    dtype: str
    gates: str

    def inputs(self, workload: Workload, seed: int, batch: int) -> Inputs:
        return random_inputs(
            seed,
            batch=batch,
            tokens=workload.tokens,
            heads=workload.heads,
            key_width=workload.key_width,
            value_width=workload.value_width,
            gates=self.gates,
            dtype=self.dtype,
        )

    def arguments(self, inputs: Inputs) -> tuple[jax.Array, ...]:
        return tuple(inputs[: 5 if self.op == "bidirectional_gla" else 4])

    def forward(self, implementation: str) -> Callable[..., Any]:
        op = bidirectional_gla if self.op == "bidirectional_gla" else gla
        return functools.partial(op, implementation=implementation)

    def forward_backward(self, implementation: str) -> Callable[..., Any]:
        forward = self.forward(implementation)

        def run(cotangent, *arguments):
            out, pullback = jax.vjp(forward, *arguments)
            return out, pullback(cotangent)

        return run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _options(argv)
    case = _Case(options.op, options.dtype, options.gates)
    seed = options.seed
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    platform = "cpu" if jax.default_backend() == "cpu" else "gpu"
    if options.sweep:
        workloads = [Workload(f"sweep_{tokens}", 1, tokens, 3, 32, 64) for tokens in _SWEEP]
    else:
        workloads = [WORKLOADS[name] for name in options.workload or _DEFAULTS[platform]]

    complaints = [
        complaint
        for workload in workloads
        for name in options.implementation
        if name != "reference"
        for complaint in _wrong(case, workload, name, seed)
    ]
    if complaints:
        print("Not timed, results are wrong:", *complaints, sep="\n  ", file=sys.stderr)
        return 1

    print(_where(case, seed, options.repeats))
    print()
    print("| workload | B, T, H, K, V | pass | implementation | ms | spread | GB/s | speed |")
    print("|---|---|---|---|---|---|---|---|")
    for workload in workloads:
        for row in _rows(case, workload, options.implementation, seed, options.repeats):
            print(row, flush=True)
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kernels_pallas.benchmarks.run",
        description="Check, then time, gated linear attention: forward, and forward + backward.",
        epilog="ms is the median over interleaved samples and spread its quartiles; GB/s counts "
        "each input, output and gradient once; speed is relative to the reference.",
    )
    parser.add_argument(
        "--workload",
        action="append",
        choices=sorted(WORKLOADS),
        metavar="NAME",
        help=f"a named shape, may be repeated (default: a few that suit the device); one of "
        f"{', '.join(WORKLOADS)}",
    )
    parser.add_argument(
        "--sweep", action="store_true", help=f"instead, one image of {_SWEEP} tokens, 3 heads"
    )
    parser.add_argument(
        "--implementation",
        nargs="+",
        choices=IMPLEMENTATIONS,
        default=[
            name
            for name in IMPLEMENTATIONS
            if name != "pallas_triton" or jax.default_backend() == "gpu"
        ],
        help="which to time (default: all that run on the device)",
    )
    parser.add_argument(
        "--op", choices=("bidirectional_gla", "gla"), default="bidirectional_gla", help="operator"
    )
    parser.add_argument("--dtype", choices=TOLERANCES, default="float32", help="of q, k, v")
    parser.add_argument("--gates", choices=GATE_KINDS, default="typical", help="kind of log-decays")
    parser.add_argument("--repeats", type=int, default=9, help="samples per row (default: 9)")
    parser.add_argument("--seed", type=int, help="of the inputs (default: a fresh one, printed)")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if options.sweep and options.workload:
        parser.error("--sweep and --workload exclude each other")
    if options.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    return options


def _wrong(case: _Case, workload: Workload, implementation: str, seed: int) -> list[str]:
    """Compares values and gradients of the first images with the reference in float32 or wider."""
    inputs = case.inputs(workload, seed, min(workload.batch, _CHECKED_IMAGES))
    wide = jnp.promote_types(case.dtype, jnp.float32)
    wide_inputs = Inputs(*(x.astype(wide) for x in inputs))
    out, gradients = jax.jit(case.forward_backward(implementation))(
        inputs.cotangent, *case.arguments(inputs)
    )
    expected_out, expected_gradients = jax.jit(case.forward_backward("reference"))(
        wide_inputs.cotangent, *case.arguments(wide_inputs)
    )
    tolerance = TOLERANCES[case.dtype]
    complaints = []
    for i, (mine, reference, allowed) in enumerate(
        zip(
            (out, *gradients),
            (expected_out, *expected_gradients),
            (tolerance.forward, *[tolerance.gradient] * len(gradients)),
            strict=True,
        )
    ):
        error = rms_relative_error(mine, reference)
        if error > allowed:
            what = f"gradient {i - 1}" if i else "output"
            complaints.append(
                f"{workload.name} {implementation}: {what} is off by {error:.1e}, "
                f"allowed {allowed:.0e}"
            )
    return complaints


def _rows(
    case: _Case, workload: Workload, names: Sequence[str], seed: int, repeats: int
) -> list[str]:
    inputs = case.inputs(workload, seed + 1, workload.batch)
    arguments = case.arguments(inputs)
    once = sum(x.nbytes for x in arguments) + inputs.v.nbytes
    shape = (
        f"{workload.batch}, {workload.tokens}, {workload.heads}, "
        f"{workload.key_width}, {workload.value_width}"
    )
    rows = []
    for label, build, given, moved in (
        ("forward", case.forward, arguments, once),
        (
            "forward + backward",
            case.forward_backward,
            (inputs.cotangent, *arguments),
            # The backward pass reads the inputs again and the cotangent, and writes the gradients.
            once + 2 * sum(x.nbytes for x in arguments) + inputs.cotangent.nbytes,
        ),
    ):
        runs = {name: jax.jit(build(name)) for name in names}
        seconds = _interleaved(runs, given, repeats)
        for name in names:
            low, middle, high = _quartiles(seconds[name])
            speed = "-"
            if "reference" in seconds:
                speed = f"{statistics.median(seconds['reference']) / middle:.2f}x"
            rows.append(
                f"| {workload.name} | {shape} | {label} | {name} | {middle * 1e3:.3f} "
                f"| {low * 1e3:.3f} to {high * 1e3:.3f} | {moved / middle / 1e9:.1f} | {speed} |"
            )
    return rows


def _interleaved(
    runs: Mapping[str, Callable[..., Any]], arguments: tuple[Any, ...], repeats: int
) -> dict[str, list[float]]:
    """Seconds per call: `repeats` samples of each, taken in turns so that drift hits all alike.

    One call before each sample is not counted: it gets back the memory that the others gave away.
    """
    calls = {}
    for name, run in runs.items():
        jax.block_until_ready(run(*arguments))  # compile
        calls[name] = max(1, round(_SAMPLE_SECONDS / max(1e-6, _seconds(run, arguments, 1))))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            _seconds(run, arguments, 1)
            seconds[name].append(_seconds(run, arguments, calls[name]))
    return seconds


def _seconds(run: Callable[..., Any], arguments: tuple[Any, ...], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = run(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def _quartiles(samples: list[float]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(samples, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def _where(case: _Case, seed: int, repeats: int) -> str:
    device = jax.devices()[0]
    return (
        f"{case.op}, {case.dtype}, {case.gates} gates, seed {seed}, {repeats} samples per row, on "
        f"{device.device_kind} ({device.platform}), Python {sys.version.split()[0]}, "
        f"JAX {jax.__version__}, numpy {np.__version__}, commit {_commit()}"
    )


def _commit() -> str:
    try:
        described = subprocess.run(
            ("git", "describe", "--always", "--dirty"),
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
