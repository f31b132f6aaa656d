"""Finds the fastest tilings on the GPU at hand: `python -m kernels_pallas.autotune.tuning --help`.

Every candidate of every workload is timed forward, and forward + backward, by itself and as part of
`vig_mixer`. The winners are written to `autotune/data/<device>/pallas_triton.json`; calls of the
same shape use them.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas.core.device import cuda_device_name
from kernels_pallas.gla import pallas_triton
from kernels_pallas.gla.arg_specs import WORKLOADS, Workload
from kernels_pallas.gla.pallas_triton.config import (
    TUNING_DATA,
    Config,
    KernelConfig,
    as_entry,
    default_warps,
    heuristic,
)
from kernels_pallas.gla.spec import GlaSpec
from kernels_pallas.vig_mixer import pallas_triton as mixer
from kernels_pallas.vig_mixer.spec import MixerInputs, MixerSpec

_INPUT_SETS = 2  # more bytes than the cache holds, so that memory is read


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kernels_pallas.autotune.tuning")
    parser.add_argument("--workload", action="append", choices=sorted(WORKLOADS), metavar="NAME")
    parser.add_argument("--calls", type=int, default=12, help="calls per sample (default: 12)")
    parser.add_argument("--samples", type=int, default=5, help="samples per row (default: 5)")
    parser.add_argument("--out", type=pathlib.Path, help="file to write instead of the stored one")
    options = parser.parse_args(argv)
    device = cuda_device_name()
    if device is None:
        print("Tuning needs a CUDA GPU, and JAX sees none.", file=sys.stderr)
        return 1
    path = options.out or TUNING_DATA / device / "pallas_triton.json"
    known = json.loads(path.read_text()) if path.exists() else []
    on_gpu = [name for name in WORKLOADS if name.startswith(("vig_", "lm_"))]
    todo = [(name, spec) for name in options.workload or on_gpu for spec in _specs(WORKLOADS[name])]
    for name, spec in todo:
        label = name if spec.gate_normalizer is None else f"{name} in vig_mixer"
        times = functools.partial(_times, spec, options.calls, options.samples)
        best = heuristic(spec)
        ranked = times(_forward_candidates(spec), backward=False)
        print(f"{label} forward: {_told(ranked, lambda config: [config.forward])}", flush=True)
        best = dataclasses.replace(best, forward=ranked[0][1].forward)
        ranked = times(_training_candidates(spec, best), backward=True)
        print(
            f"{label} forward + backward: "
            f"{_told(ranked, lambda config: [config.training, config.backward])}",
            flush=True,
        )
        entry = as_entry(spec, ranked[0][1])
        known = [other for other in known if other["call"] != entry["call"]] + [entry]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1) + "\n")
    return 0


def _specs(workload: Workload) -> list[GlaSpec]:
    """The operator by itself, and where ViG has such heads, in the mixer."""
    bfloat16 = jnp.dtype(jnp.bfloat16)
    spec = GlaSpec(
        batch=workload.batch,
        tokens=workload.tokens,
        heads=workload.heads,
        key_width=workload.key_width,
        value_width=workload.value_width,
        dtype=bfloat16,
        decay_dtype=bfloat16,
        scale=workload.key_width**-0.5,
        bidirectional=workload.op == "bidirectional_gla",
    )
    return [spec, dataclasses.replace(spec, gate_normalizer=16.0)] if spec.bidirectional else [spec]


def _mixer_spec(spec: GlaSpec) -> MixerSpec:
    return MixerSpec(
        batch=spec.batch,
        tokens=spec.tokens,
        heads=spec.heads,
        width=spec.heads * spec.value_width,
        rank=16,
        out_features=spec.heads * spec.value_width,
        dtype=spec.dtype,
        scale=spec.scale,
        gate_normalizer=16.0,
        epsilon=1e-6,
        activation=None,
    )


def _launches(spec: GlaSpec) -> Iterator[KernelConfig]:
    """Tilings worth trying; more warps than a chunk has rows of 16 compute the same twice."""
    usual = heuristic(spec).forward
    warps = default_warps(spec)
    # 11 eighths: of the usual 192 programs, they make two for each of an H200's multiprocessors.
    segments = {usual.segments, max(1, usual.segments // 2), usual.segments * 11 // 8}
    for chunk, num_warps, num_stages in (
        (16, warps, 3),
        (16, warps, 4),
        (32, 2, 3),
        (32, 4, 3),
        (64, 4, 3),
    ):
        for count in segments:
            yield KernelConfig(chunk, num_warps, num_stages, count, exact_num_warps=max(4, warps))


def _forward_candidates(spec: GlaSpec) -> list[Config]:
    ways = (False, True) if spec.bidirectional else (False,)
    return [
        Config(forward=dataclasses.replace(launch, split_directions=split))
        for launch in _launches(spec)
        for split in ways
    ]


def _training_candidates(spec: GlaSpec, best: Config) -> list[Config]:
    ways: tuple[tuple[bool, bool], ...] = ((False, False),)
    if spec.bidirectional:
        ways = ((False, False), (False, True), (True, True))
    if spec.gate_normalizer is not None:  # its gradients have one place each
        ways = ((False, False), (True, False))
    return [
        Config(
            best.forward,
            dataclasses.replace(launch, split_directions=forward),
            dataclasses.replace(launch, split_directions=backward),
        )
        for launch in _launches(spec)
        if launch.chunk <= 32 and launch.num_stages == 3
        for forward, backward in ways
    ]


def _times(
    spec: GlaSpec, calls: int, samples: int, configs: Sequence[Config], *, backward: bool
) -> list[tuple[float, Config]]:
    """Median seconds per call of each config that compiles, fastest first."""
    sets = [_inputs(spec, seed) for seed in range(_INPUT_SETS)]

    def compiled(config: Config) -> Any:
        try:
            run = jax.jit(_run(spec, config, backward)).lower(*sets[0]).compile()
            jax.block_until_ready(run(*sets[0]))
            return run
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            print(f"  skipped {config}: {str(error)[:200]}", file=sys.stderr)
            return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(compiled, configs))
    ranked = []
    for config, run in zip(configs, runs, strict=True):
        if run is not None:
            seconds = statistics.median(_sample(run, sets, calls) for _ in range(samples))
            ranked.append((seconds, config))
    return sorted(ranked, key=lambda pair: pair[0])


def _run(spec: GlaSpec, config: Config, backward: bool) -> Callable[..., Any]:
    def forward(*arguments):
        if spec.gate_normalizer is not None:
            return mixer.vig_mixer(_mixer_spec(spec), MixerInputs(*arguments), config=config)
        if spec.bidirectional:
            return pallas_triton.bidirectional_gla(spec, *arguments, config=config)
        q, k, v, log_decay, _ = arguments
        return pallas_triton.gla(spec, q, k, v, log_decay, None, config=config)[0]

    def both(*arguments):
        out, pullback = jax.vjp(forward, *arguments[:-1])
        return out, pullback(arguments[-1])

    return both if backward else lambda *arguments: forward(*arguments[:-1])


def _sample(run: Callable[..., Any], sets: Sequence[tuple[Any, ...]], calls: int) -> float:
    for arguments in sets:
        jax.block_until_ready(run(*arguments))
    start = time.perf_counter()
    for call in range(calls):
        result = run(*sets[call % len(sets)])
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def _inputs(spec: GlaSpec, seed: int) -> tuple[Any, ...]:
    """Arguments and a cotangent, drawn on the device."""
    if spec.gate_normalizer is not None:
        return _mixer_inputs(_mixer_spec(spec), seed)
    keys = (spec.batch, spec.tokens, spec.heads, spec.key_width)
    values = (*keys[:3], spec.value_width)

    @jax.jit
    def draw(key):
        parts = jax.random.split(key, 6)
        decays = [jax.nn.log_sigmoid(2 * jax.random.normal(part, keys)) / 16 for part in parts[3:5]]
        normal = functools.partial(jax.random.normal, dtype=spec.dtype)
        return (
            normal(parts[0], keys),
            normal(parts[1], keys),
            normal(parts[2], values),
            *(decay.astype(spec.decay_dtype) for decay in decays),
            normal(parts[5], values),
        )

    return jax.block_until_ready(draw(jax.random.key(seed)))


def _mixer_inputs(spec: MixerSpec, seed: int) -> tuple[Any, ...]:
    @jax.jit
    def draw(key):
        tokens = (spec.batch, spec.tokens)
        shapes: tuple[tuple[tuple[int, ...], Any], ...] = (
            ((*tokens, 3 * spec.width + spec.rank), spec.dtype),
            ((*tokens, spec.width), spec.dtype),
            ((spec.width,), jnp.float32),
            ((spec.rank, spec.width), spec.dtype),
            ((spec.width,), jnp.float32),
            ((spec.value_width,), jnp.float32),
            ((spec.value_width,), jnp.float32),
            ((spec.width, spec.out_features), spec.dtype),
            ((*tokens, spec.out_features), spec.dtype),
        )
        keys = jax.random.split(key, len(shapes))
        return tuple(
            jax.random.normal(key, shape, dtype)
            for key, (shape, dtype) in zip(keys, shapes, strict=True)
        )

    return jax.block_until_ready(draw(jax.random.key(seed)))


def _told(
    ranked: Sequence[tuple[float, Config]], launches: Callable[[Config], list[KernelConfig]]
) -> str:
    def short(launch: KernelConfig) -> str:
        split = "split" if launch.split_directions else "together"
        return (
            f"C{launch.chunk} w{launch.num_warps} s{launch.num_stages} g{launch.segments} {split}"
        )

    return "; ".join(
        f"{seconds * 1e3:.4f} ms {', '.join(short(launch) for launch in launches(config))}"
        for seconds, config in ranked[:3]
    )


if __name__ == "__main__":
    sys.exit(main())
