"""Times gated linear attention: `python -m kernels_pallas.benchmarks.run --help`.

What is timed is first compared with the reference: of the same programs and inputs, the first
images' values and gradients. An implementation that is off by more than the tolerance table allows
is not timed there, and the exit status is 1. With --peers fla, flash-linear-attention's operator is
timed in the same turns, and its error is printed.
"""

import argparse
import dataclasses
import functools
import itertools
import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.core.timing import Candidate, candidate, commit, driver, interleaved
from kernels_pallas.gla.api import IMPLEMENTATIONS, bidirectional_gla, gla
from kernels_pallas.gla.arg_specs import WORKLOADS, Workload
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
    decay_dtype: str
    gates: str

    def inputs(self, workload: Workload, seed: int) -> Inputs:
        return random_inputs(
            seed,
            batch=workload.batch,
            tokens=workload.tokens,
            heads=workload.heads,
            key_width=workload.key_width,
            value_width=workload.value_width,
            gates=self.gates,
            dtype=self.dtype,
            decay_dtype=self.decay_dtype,
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
    bandwidth = _bandwidth(options.repeats) if platform == "gpu" else None
    print(_where(options, seed))
    if bandwidth:
        print(f"a large copy moves {bandwidth / 1e9:.0f} GB/s: the byte floor")
    if peer:
        print(peer.versions())
    print()
    print(
        "| workload | B, T, H, K, V | pass | implementation | ms | spread | GB/s | of floor "
        "| speed |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    status = 0
    for workload in workloads:
        case = _Case(options.op or workload.op, options.dtype, options.decay_dtype, options.gates)
        inputs = case.inputs(workload, seed)
        programs = {
            name: (jax.jit(case.forward(name)), jax.jit(case.forward_backward(name)))
            for name in names
        }
        if peer or names != ["reference"]:
            expected = _expected(case, inputs)
        for name in names:
            if name != "reference" and (found := _wrong(case, inputs, programs[name], expected)):
                status = 1
                del programs[name]
                for complaint in found:
                    print(f"{workload.name} {name}, not timed: {complaint}", file=sys.stderr)
        if peer:
            told = f"fla on {workload.name}: it tries its tilings first, which takes minutes ..."
            print(told, file=sys.stderr, flush=True)
            print(_peer_errors(case, workload, inputs, peer, expected), file=sys.stderr)
        for row in _rows(case, workload, inputs, programs, peer, options.repeats, bandwidth):
            print(row, flush=True)
    return status


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
    parser.add_argument(
        "--decay-dtype", choices=TOLERANCES, help="of the log-decays (default: that of q, k, v)"
    )
    parser.add_argument("--gates", choices=GATE_KINDS, default="typical", help="kind of log-decays")
    parser.add_argument("--repeats", type=int, default=9, help="samples per row (default: 9)")
    parser.add_argument("--seed", type=int, help="of the inputs (default: a fresh one, printed)")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if options.sweep and options.workload:
        parser.error("--sweep and --workload exclude each other")
    options.decay_dtype = options.decay_dtype or options.dtype
    wide = "float64" in (options.dtype, options.decay_dtype)
    if options.peers and wide:
        parser.error("--peers fla has no float64")
    if wide:
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


_Results = tuple[Any, Sequence[Any]]  # the output and the gradient of every argument


def _wrong(
    case: _Case,
    inputs: Inputs,
    programs: tuple[Callable[..., Any], Callable[..., Any]],
    expected: _Results,
) -> list[str]:
    """What the programs that will be timed get wrong by more than they may."""
    forward, forward_backward = programs
    arguments = case.arguments(inputs)
    out = forward(*arguments)[:_CHECKED_IMAGES]
    out_error, *gradient_errors = _errors(forward_backward(inputs.cotangent, *arguments), expected)
    tolerance = TOLERANCES[case.dtype]
    found = [
        ("forward's output", rms_relative_error(out, expected[0]), tolerance.forward),
        ("output", out_error, tolerance.forward),
    ]
    found += [(f"gradient {i}", e, tolerance.gradient) for i, e in enumerate(gradient_errors)]
    return [
        f"{what} is off by {error:.1e}, allowed {allowed:.0e}"
        for what, error, allowed in found
        if not error <= allowed
    ]


def _peer_errors(
    case: _Case, workload: Workload, inputs: Inputs, peer: Any, expected: _Results
) -> str:
    """How far a peer is from our reference, for people: it is timed all the same."""
    results = peer.results(case.op, case.arguments(inputs), inputs.cotangent, _CHECKED_IMAGES)
    out_error, *gradient_errors = _errors(results, expected)
    return (
        f"fla on {workload.name}: output off by {out_error:.1e}, gradients by at most "
        f"{max(gradient_errors):.1e}"
    )


def _expected(case: _Case, inputs: Inputs) -> _Results:
    """The reference's in float32 or wider, of the first images alone: it needs much memory."""
    wide = jnp.promote_types(case.dtype, jnp.float32)
    first = Inputs(*(x[:_CHECKED_IMAGES].astype(wide) for x in inputs))
    return jax.jit(case.forward_backward("reference"))(first.cotangent, *case.arguments(first))


def _errors(results: _Results, expected: _Results) -> list[float]:
    """Of the output and of each gradient, on the first images."""
    pairs = zip((results[0], *results[1]), (expected[0], *expected[1]), strict=True)
    return [rms_relative_error(mine[:_CHECKED_IMAGES], reference) for mine, reference in pairs]


def _rows(
    case: _Case,
    workload: Workload,
    inputs: Inputs,
    programs: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]],
    peer: Any,
    repeats: int,
    bandwidth: float | None,
) -> list[str]:
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
        moved = given + inputs.v.nbytes
        if backward:
            # It reads the inputs again and the cotangent, and writes the gradients.
            moved += 2 * given + inputs.cotangent.nbytes
        runs: dict[str, Candidate] = {
            name: _candidate(both[backward], [s[first:] for s in sets])
            for name, both in programs.items()
        }
        if peer:
            cotangents = [s[0] for s in sets] if backward else None
            runs |= peer.candidates(case.op, [s[1:] for s in sets], cotangents)
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


def _candidate(run: Callable[..., Any], sets: Sequence[tuple[Any, ...]]) -> Candidate:
    in_turn = itertools.cycle(sets)
    return candidate(lambda: run(*next(in_turn)))


def _bandwidth(repeats: int) -> float:
    """Bytes per second of a large copy on the device, read and written."""
    source = jnp.ones(_COPIED_FLOATS, jnp.float32)
    copy = _candidate(jax.jit(jnp.copy), [(source,)])
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
        f"{options.dtype}, {options.decay_dtype} {options.gates} decays, seed {seed}, "
        f"{options.repeats} samples per row, on {device.device_kind} ({device.platform}), driver "
        f"{driver()}, Python "
        f"{sys.version.split()[0]}, JAX {jax.__version__}, numpy {np.__version__}, commit "
        f"{commit()}"
    )


if __name__ == "__main__":
    sys.exit(main())
