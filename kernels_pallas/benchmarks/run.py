"""Times operators: `python -m kernels_pallas.benchmarks.run --help`.

Every program is first compared with the reference: its values, and its gradients. An implementation
that is off by more than the tolerance table allows is not timed, and the exit status is 1. With
`--peers fla` the operator of flash-linear-attention is timed in the same rounds, and its error is
printed.
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

from ..core.accuracy import rms_relative_error
from ..core.arg_specs import MODEL, Case
from ..core.derivatives import is_float, vjp_of_floats
from ..core.dispatch import observe
from ..core.timing import Candidate, candidate, commit, driver, interleaved
from ..gla.arg_specs import Workload, make_case
from ..operators import OPERATORS
from ..testing import GATE_KINDS, TOLERANCES
from ..testing.inputs import draw_log_decays

_GLA = ("bidirectional_gla", "gla")
_SWEEP = (196, 392, 784, 1568, 3136, 4096, 8192, 16384)
_DEFAULTS = ("vig_s_224", "vig_t_1024", "vig_h_t_224_stage1", "vig_h_t_224_stage3")
_CPU_DEFAULTS = ("cpu_784", "cpu_196", "cpu_49")
_PASSES = {False: "forward", True: "forward + backward"}
_COLUMNS = ("case", "pass", "implementation", "ms", "spread", "GB/s", "of floor", "speed")
_SAMPLE_SECONDS = 0.02  # a sample fills this with calls, so that dispatch does not count
_ROTATED_BYTES = 256_000_000  # of inputs that calls cycle through on a GPU: more than any L2 cache
_MAX_SETS = 8
_COPIED_FLOATS = 2**28  # of the copy that measures the bandwidth: 1 GiB read, 1 GiB written
_COMPARED_IMAGES = 2  # with a peer

Run = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Programs:
    """The two programs of an implementation that are checked and timed.

    Attributes:
        forward: A function of the arrays that returns results.
        both: A function of the cotangents and the arrays that returns results and gradients.
    """

    forward: Run
    both: Run


def make_programs(op: str, case: Case, implementation: str) -> Programs:
    """Makes the programs of an implementation for a case."""
    run = case.bind(OPERATORS[op].function, implementation=implementation)

    def both(cotangents: Any, *arrays: jax.Array) -> Any:
        out, pullback = vjp_of_floats(run, *arrays)
        return out, pullback(cotangents)

    return Programs(jax.jit(run), jax.jit(both))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = parse(argv)
    peer = load_peer(options.peers)
    seed = options.seed
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    on_gpu = jax.default_backend() != "cpu"
    bandwidth = _bandwidth(options.repeats) if on_gpu else None
    print(_where(options, seed))
    if bandwidth:
        print(f"a large copy moves {bandwidth / 1e9:.0f} GB/s: the byte floor")
    if peer:
        print(peer.versions())
    print(f"\n| operator | {' | '.join(_COLUMNS)} |")
    print("|---" * (len(_COLUMNS) + 1) + "|")
    status = 0
    for op, case in select(options, on_gpu):
        arrays, cotangents = _inputs(op, case, seed)
        names = options.implementation or _implementations(op, case, on_gpu)
        programs = {name: make_programs(op, case, name) for name in names}
        expected = None
        if peer or names != ["reference"]:
            expected = _expected(op, case, arrays, cotangents)
        for name in names:
            if name != "reference":
                found = _mistakes(case, programs[name], arrays, cotangents, expected)
                if found:
                    status = 1
                    del programs[name]
                    for text in found:
                        print(f"{op} {case.name} {name}, not timed: {text}", file=sys.stderr)
        if peer and op in _GLA:
            text = f"fla on {case.name}: it tries its configs first, which takes minutes ..."
            print(text, file=sys.stderr, flush=True)
            print(_peer_errors(op, case, arrays, cotangents, peer, expected), file=sys.stderr)
        del expected
        for row in _rows(op, case, arrays, cotangents, programs, peer, options.repeats, bandwidth):
            print(row, flush=True)
    return status


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line, and enables 64-bit types if they are asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels_pallas.benchmarks.run",
        description="Checks, then times operators: forward, and forward + backward.",
        epilog="ms is the median over interleaved samples and spread its quartiles. GB/s counts "
        "each input, output and gradient once; of floor is its share of the bandwidth of a large "
        "copy (on a GPU). Speed is relative to the reference.",
    )
    add = parser.add_argument
    add("--op", nargs="+", choices=(*OPERATORS, "all"), help=f"operators (default: {_GLA[0]})")
    add(
        "--case",
        nargs="+",
        metavar="NAME",
        help="names of cases (default: all of the models' on a GPU, the small ones on a CPU; for "
        f"{_GLA[0]} {', '.join(_DEFAULTS)} or {', '.join(_CPU_DEFAULTS)})",
    )
    add("--sweep", action="store_true", help=f"instead, one image of {_SWEEP} tokens, 3 heads")
    names = sorted({name for op in OPERATORS for name in _table(op)})
    add("--implementation", nargs="+", choices=names, help="which to time (default: all)")
    add("--peers", choices=("fla",), help="also times flash-linear-attention (GPU and torch)")
    add("--dtype", choices=TOLERANCES, default="float32", help="of arrays (default: float32)")
    add("--decay-dtype", choices=TOLERANCES, help="of log-decays (default: --dtype)")
    add("--gates", choices=GATE_KINDS, default="typical", help="kind of log-decays")
    add("--repeats", type=int, default=9, help="samples per row (default: 9)")
    add("--seed", type=int, help="of the inputs (default: a fresh one, printed)")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if options.sweep and options.case:
        parser.error("--sweep and --case exclude each other")
    options.decay_dtype = options.decay_dtype or options.dtype
    wide = "float64" in (options.dtype, options.decay_dtype)
    if options.peers and wide:
        parser.error("--peers fla has no float64")
    if wide:
        jax.config.update("jax_enable_x64", True)
    known = {case.name for op in OPERATORS for case in OPERATORS[op].cases}
    for name in options.case or ():
        if name not in known:
            parser.error(f"unknown case {name!r} (known: {', '.join(sorted(known))})")
    return options


def select(options: argparse.Namespace, on_gpu: bool) -> list[tuple[str, Case]]:
    """Returns the cases to run, in the types and with the decays that are asked for."""
    ops = options.op or (_GLA if options.case else _GLA[:1])
    selected = []
    for op in OPERATORS if "all" in ops else ops:
        if options.sweep:
            shapes = (Workload(f"sweep_{tokens}", 1, tokens, 3, 32, 64) for tokens in _SWEEP)
            cases = [make_case(op, shape) for shape in shapes] if op in _GLA else []
        elif options.case:
            cases = [case for case in OPERATORS[op].cases if case.name in options.case]
        elif op == _GLA[0]:
            names = _DEFAULTS if on_gpu else _CPU_DEFAULTS
            cases = [case for case in OPERATORS[op].cases if case.name in names]
        else:
            cases = [case for case in OPERATORS[op].cases if (MODEL in case.tags) == on_gpu]
        selected += [(op, _with_decays(case.astype(options.dtype), options)) for case in cases]
    return selected


def _with_decays(case: Case, options: argparse.Namespace) -> Case:
    decays = [name for name in case.args if name.startswith("log_decay")]
    args = dict(case.args)
    for name in decays:
        args[name] = jax.ShapeDtypeStruct(args[name].shape, options.decay_dtype)
    draw = functools.partial(draw_log_decays, gates=options.gates)
    return dataclasses.replace(case, args=args, draws={**case.draws, **dict.fromkeys(decays, draw)})


def _table(op: str) -> Mapping[str, Any]:
    function, cases = OPERATORS[op]
    return observe(cases[0].bind(function), *cases[0].args.values()).table


def _implementations(op: str, case: Case, on_gpu: bool) -> list[str]:
    """Returns the implementations that can serve a case on this machine."""
    call = observe(case.bind(OPERATORS[op].function), *case.args.values())
    return [
        name
        for name, impl in call.table.items()
        if (on_gpu or not impl.platforms) and impl.supports(call.spec, None) is None
    ]


def _inputs(op: str, case: Case, seed: int) -> tuple[tuple[jax.Array, ...], Any]:
    """Draws arrays, and cotangents of the results."""
    arrays = case.arrays(seed)
    run = case.bind(OPERATORS[op].function, implementation="reference")
    outs, tree = jax.tree.flatten(jax.eval_shape(run, *arrays))
    generator = np.random.default_rng(seed + 1)
    drawn = [jnp.asarray(generator.standard_normal(out.shape), out.dtype) for out in outs]
    return arrays, jax.tree.unflatten(tree, drawn)


def load_peer(name: str | None) -> Any:
    """Returns the module of the peer that is asked for; ends the program if it is missing."""
    if name is None:
        return None
    # Before JAX starts: else it takes most of the memory at once, and PyTorch has none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if jax.default_backend() != "gpu":  # and before PyTorch loads a cuDNN that may be too old
        sys.exit("--peers fla: its kernels need a CUDA GPU, and JAX sees none")
    try:
        from . import fla_peer
    except ImportError as error:
        sys.exit(f"--peers fla: {error}; it needs PyTorch and fla: pip install torch fla-core")
    return fla_peer


def _expected(op: str, case: Case, arrays: Sequence[jax.Array], cotangents: Any) -> Any:
    """Computes results and gradients by the reference in float32 or wider."""
    dtype = jnp.promote_types(case.dtype, jnp.float32)
    wide = jax.tree.map(lambda x: x.astype(dtype) if is_float(x) else x, (cotangents, *arrays))
    return make_programs(op, case, "reference").both(*wide)


def _mistakes(
    case: Case, programs: Programs, arrays: Sequence[jax.Array], cotangents: Any, expected: Any
) -> list[str]:
    """Returns what the programs that will be timed get wrong by more than is allowed."""
    tolerance = TOLERANCES[case.dtype.name]
    results = (programs.forward(*arrays), *programs.both(cotangents, *arrays))
    rights = (expected[0], expected[0], expected[1])
    allowed = (tolerance.forward, tolerance.forward, tolerance.gradient)
    found = []
    for what, mine, right, limit in zip(
        ("forward's output", "output", "gradient"), results, rights, allowed, strict=True
    ):
        for i, error in enumerate(_errors(mine, right)):
            if not error <= limit:
                found.append(f"{what} {i} is off by {error:.1e}, allowed {limit:.0e}")
    return found


def _errors(mine: Any, right: Any) -> list[float]:
    pairs = zip(jax.tree.leaves(mine), jax.tree.leaves(right), strict=True)
    return [rms_relative_error(x, y) for x, y in pairs]


def _peer_errors(
    op: str,
    case: Case,
    arrays: Sequence[jax.Array],
    cotangents: Any,
    peer: Any,
    expected: Any,
) -> str:
    """Describes the error of a peer, which is timed whatever it is."""
    results = peer.results(op, arrays, cotangents, _COMPARED_IMAGES)
    first = jax.tree.map(lambda x: x[:_COMPARED_IMAGES], expected)
    [out_error], gradient_errors = _errors(results[0], first[0]), _errors(results[1], first[1])
    return (
        f"fla on {case.name}: output off by {out_error:.1e}, gradients by at most "
        f"{max(gradient_errors):.1e}"
    )


def _rows(
    op: str,
    case: Case,
    arrays: Sequence[jax.Array],
    cotangents: Any,
    programs: Mapping[str, Programs],
    peer: Any,
    repeats: int,
    bandwidth: float | None,
) -> list[str]:
    given = sum(x.nbytes for x in arrays)
    outs = sum(x.nbytes for x in jax.tree.leaves(cotangents))
    # A model's inputs come from memory, not from the cache that the last call left them in.
    sets = [(cotangents, *arrays)]
    if bandwidth:
        count = min(_MAX_SETS, math.ceil(_ROTATED_BYTES / given))
        sets += [jax.tree.map(jnp.copy, sets[0]) for _ in range(count - 1)]
    rows = []
    for backward in (False, True):
        moved = given + outs
        if backward:
            # It reads the inputs again and the cotangents, and writes the gradients.
            moved += 2 * given + outs
        runs: dict[str, Candidate] = {
            name: _cycling(pair.both, sets)
            if backward
            else _cycling(pair.forward, [s[1:] for s in sets])
            for name, pair in programs.items()
        }
        if peer and op in _GLA:
            ours = [s[0] for s in sets] if backward else None
            runs |= peer.candidates(op, [s[1:] for s in sets], ours)
        seconds = interleaved(runs, repeats=repeats, sample_seconds=_SAMPLE_SECONDS)
        for name, samples in seconds.items():
            low, middle, high = (float(x) for x in np.quantile(samples, (0.25, 0.5, 0.75)))
            speed = "-"
            if "reference" in seconds:
                speed = f"{statistics.median(seconds['reference']) / middle:.2f}x"
            rate, share = f"{moved / middle / 1e9:.1f}", "-"
            if bandwidth:
                share = f"{moved / middle / bandwidth:.0%}"
            if "one direction" in name:  # other bytes, and another result
                rate = share = speed = "-"
            rows.append(
                f"| {op} | {case.name} | {_PASSES[backward]} | {name} | {middle * 1e3:.3f} "
                f"| {low * 1e3:.3f} to {high * 1e3:.3f} | {rate} | {share} | {speed} |"
            )
    return rows


def _cycling(run: Run, sets: Sequence[tuple[Any, ...]]) -> Candidate:
    """Makes a candidate whose calls cycle through sets of inputs."""
    cycle = itertools.cycle(sets)
    return candidate(lambda: run(*next(cycle)))


def _bandwidth(repeats: int) -> float:
    """Measures the bytes per second of a large copy on the device, read and written."""
    source = jnp.ones(_COPIED_FLOATS, jnp.float32)
    copy = _cycling(jax.jit(jnp.copy), [(source,)])
    [seconds] = interleaved(
        {"copy": copy}, repeats=repeats, sample_seconds=_SAMPLE_SECONDS
    ).values()
    return 2 * source.nbytes / statistics.median(seconds)


def _where(options: argparse.Namespace, seed: int) -> str:
    device = jax.devices()[0]
    return (
        f"{options.dtype}, {options.decay_dtype} {options.gates} decays, seed {seed}, "
        f"{options.repeats} samples per row, on {device.device_kind} ({device.platform}), driver "
        f"{driver()}, Python {sys.version.split()[0]}, JAX {jax.__version__}, "
        f"numpy {np.__version__}, commit {commit()}"
    )


if __name__ == "__main__":
    sys.exit(main())
