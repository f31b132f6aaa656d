"""Times gated linear attention: `python -m kernels_pallas.benchmarks.run --help`.

Every implementation is first compared with the reference, values and gradients; if one is off by
more than the tolerance table allows, nothing is timed and the exit status is 1. With --peers fla,
flash-linear-attention's operator is timed in the same turns, and its error is printed.
"""

import argparse
import dataclasses
import functools
import itertools
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.benchmarks.timing import Contestant, commit, contestant, driver, interleaved
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
_PASSES = {False: "forward", True: "forward + backward"}
_CHECKED_IMAGES = 2
_SAMPLE_SECONDS = 0.02  # one sample is as many calls as fill this, so that dispatch does not count
_ROTATED_BYTES = 256_000_000  # of inputs that calls go through on a GPU: more than any L2 cache
_MOST_SETS = 8
_COPIED_FLOATS = 2**28  # of the copy that measures the bandwidth: 1 GiB read, 1 GiB written


@dataclasses.dataclass(frozen=True)
class _Case:
    """What is run of a workload."""

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
    peer = _peer(options.peers)
    seed = options.seed
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    platform = "cpu" if jax.default_backend() == "cpu" else "gpu"
    names = options.implementation or [
        name for name in IMPLEMENTATIONS if name != "pallas_triton" or platform == "gpu"
    ]
    if options.sweep:
        workloads = [Workload(f"sweep_{tokens}", 1, tokens, 3, 32, 64) for tokens in _SWEEP]
    else:
        workloads = [WORKLOADS[name] for name in options.workload or _DEFAULTS[platform]]
    cases = [
        (_Case(options.op or workload.op, options.dtype, options.gates), workload)
        for workload in workloads
    ]

    complaints = [
        complaint
        for case, workload in cases
        for name in names
        if name != "reference"
        for complaint in _wrong(case, workload, name, seed)
    ]
    if complaints:
        print("Not timed, results are wrong:", *complaints, sep="\n  ", file=sys.stderr)
        return 1

    bandwidth = _bandwidth(options.repeats) if platform == "gpu" else None
    print(_where(options, seed))
    if bandwidth:
        print(f"a large copy moves {bandwidth / 1e9:.0f} GB/s: the byte floor")
    if peer:
        print(peer.versions())
        for case, workload in cases:
            print(_peer_errors(case, workload, peer, seed), flush=True)
    print()
    print(
        "| workload | B, T, H, K, V | pass | implementation | ms | spread | GB/s | of floor "
        "| speed |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case, workload in cases:
        for row in _rows(case, workload, names, peer, seed, options.repeats, bandwidth):
            print(row, flush=True)
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kernels_pallas.benchmarks.run",
        description="Check, then time, gated linear attention: forward, and forward + backward.",
        epilog="ms is the median over interleaved samples and spread its quartiles; GB/s counts "
        "each input, output and gradient once, and of floor is their share of the bandwidth of a "
        "large copy (on a GPU); speed is relative to the reference.",
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
        help="which to time (default: all that run on the device)",
    )
    parser.add_argument(
        "--peers", choices=("fla",), help="also time flash-linear-attention (needs a GPU and torch)"
    )
    parser.add_argument(
        "--op",
        choices=("bidirectional_gla", "gla"),
        help="operator (default: the one that the workload's model calls)",
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
    if options.peers and options.dtype == "float64":
        parser.error("--peers fla has no float64")
    if options.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    return options


def _peer(name: str | None) -> Any:
    """The module of the peer, if one is asked for; ends the program if it cannot be had."""
    if name is None:
        return None
    # Before JAX starts: else it takes most of the memory at once, and PyTorch has none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if jax.default_backend() != "gpu":  # and before PyTorch loads a cuDNN that may be too old
        sys.exit("--peers fla: its kernels need a CUDA GPU, and JAX sees none")
    try:
        from kernels_pallas.benchmarks import fla_peer
    except ImportError as error:
        sys.exit(f"--peers fla: {error}; it needs PyTorch and fla: pip install torch fla-core")
    return fla_peer


def _wrong(case: _Case, workload: Workload, implementation: str, seed: int) -> list[str]:
    """What is off by more than it may be, on the first images."""
    run = jax.jit(case.forward_backward(implementation))
    out_error, *gradient_errors = _errors(case, workload, seed, run)
    tolerance = TOLERANCES[case.dtype]
    found = [("output", out_error, tolerance.forward)]
    found += [(f"gradient {i}", e, tolerance.gradient) for i, e in enumerate(gradient_errors)]
    return [
        f"{workload.name} {implementation}: {what} is off by {error:.1e}, allowed {allowed:.0e}"
        for what, error, allowed in found
        if error > allowed
    ]


def _peer_errors(case: _Case, workload: Workload, peer: Any, seed: int) -> str:
    """How far a peer is from our reference, for people: it is timed all the same."""

    def run(cotangent: jax.Array, *arguments: jax.Array) -> Any:
        return peer.results(case.op, arguments, cotangent)

    out_error, *gradient_errors = _errors(case, workload, seed, run)
    return (
        f"fla on {workload.name}: output off by {out_error:.1e}, gradients by at most "
        f"{max(gradient_errors):.1e}"
    )


def _errors(case: _Case, workload: Workload, seed: int, run: Callable[..., Any]) -> list[float]:
    """Of the output and of each gradient, against the reference in float32 or wider."""
    inputs = case.inputs(workload, seed, min(workload.batch, _CHECKED_IMAGES))
    wide = jnp.promote_types(case.dtype, jnp.float32)
    wide_inputs = Inputs(*(x.astype(wide) for x in inputs))
    out, gradients = run(inputs.cotangent, *case.arguments(inputs))
    expected_out, expected_gradients = jax.jit(case.forward_backward("reference"))(
        wide_inputs.cotangent, *case.arguments(wide_inputs)
    )
    pairs = zip((out, *gradients), (expected_out, *expected_gradients), strict=True)
    return [rms_relative_error(mine, reference) for mine, reference in pairs]


def _rows(
    case: _Case,
    workload: Workload,
    names: Sequence[str],
    peer: Any,
    seed: int,
    repeats: int,
    bandwidth: float | None,
) -> list[str]:
    inputs = case.inputs(workload, seed + 1, workload.batch)
    arguments = case.arguments(inputs)
    given = sum(x.nbytes for x in arguments)
    # A model's inputs come from memory, not from the cache that the last call left them in.
    sets = [(inputs.cotangent, *arguments)]
    if bandwidth:
        count = min(_MOST_SETS, math.ceil(_ROTATED_BYTES / given))
        sets += [jax.tree.map(jnp.copy, sets[0]) for _ in range(count - 1)]
    shape = (
        f"{workload.batch}, {workload.tokens}, {workload.heads}, "
        f"{workload.key_width}, {workload.value_width}"
    )
    rows = []
    for backward in (False, True):
        first = 0 if backward else 1  # only the backward pass takes the cotangent
        build = case.forward_backward if backward else case.forward
        moved = given + inputs.v.nbytes
        if backward:
            # It reads the inputs again and the cotangent, and writes the gradients.
            moved += 2 * given + inputs.cotangent.nbytes
        runs: dict[str, Contestant] = {
            name: _contestant(jax.jit(build(name)), [s[first:] for s in sets]) for name in names
        }
        if peer:
            cotangents = [s[0] for s in sets] if backward else None
            runs |= peer.contestants(case.op, [s[1:] for s in sets], cotangents)
        seconds = interleaved(runs, repeats=repeats, sample_seconds=_SAMPLE_SECONDS)
        for name, samples in seconds.items():
            low, middle, high = _quartiles(samples)
            speed = "-"
            if "reference" in seconds:
                speed = f"{statistics.median(seconds['reference']) / middle:.2f}x"
            rate, share = f"{moved / middle / 1e9:.1f}", "-"
            if bandwidth:
                share = f"{moved / middle / bandwidth:.0%}"
            if "one direction" in name:  # other bytes, and another result
                rate = share = speed = "-"
            rows.append(
                f"| {workload.name} | {shape} | {case.op}, {_PASSES[backward]} | {name} "
                f"| {middle * 1e3:.3f} | {low * 1e3:.3f} to {high * 1e3:.3f} | {rate} | {share} "
                f"| {speed} |"
            )
    return rows


def _contestant(run: Callable[..., Any], sets: Sequence[tuple[Any, ...]]) -> Contestant:
    in_turn = itertools.cycle(sets)
    return contestant(lambda: run(*next(in_turn)))


def _bandwidth(repeats: int) -> float:
    """Bytes per second of a large copy on the device, read and written."""
    source = jnp.ones(_COPIED_FLOATS, jnp.float32)
    copy = _contestant(jax.jit(jnp.copy), [(source,)])
    (seconds,) = interleaved(
        {"copy": copy}, repeats=repeats, sample_seconds=_SAMPLE_SECONDS
    ).values()
    return 2 * source.nbytes / statistics.median(seconds)


def _quartiles(samples: list[float]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(samples, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def _where(options: argparse.Namespace, seed: int) -> str:
    device = jax.devices()[0]
    return (
        f"{options.dtype}, {options.gates} gates, seed {seed}, {options.repeats} samples per row, "
        f"on {device.device_kind} ({device.platform}), driver {driver()}, Python "
        f"{sys.version.split()[0]}, JAX {jax.__version__}, numpy {np.__version__}, commit "
        f"{commit()}"
    )


if __name__ == "__main__":
    sys.exit(main())
