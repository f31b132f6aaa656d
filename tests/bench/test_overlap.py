"""The overlap of communication and computation, read from a made-up profile."""

import jax
import pytest

from vig_jax.bench.overlap import merged, profile, timelines

# One GPU, two calls; microseconds: (stream, name, begin, duration).
EVENTS = (
    ("Stream #7(Compute)", "gemm", 0, 10),
    ("Stream #7(Compute)", "loop_fusion", 10, 10),
    ("Stream #9(NCCL)", "ncclDevKernel_AllReduce_Sum_f32_RING_LL", 15, 15),
    ("Stream #9(NCCL)", "ncclDevKernel_AllReduce_Sum_f32_RING_LL", 28, 4),
    ("Stream #7(Compute)", "gemm", 40, 20),
    ("Stream #7(Compute)", "MemcpyD2D", 55, 10),
    ("Stream #9(NCCL)", "all_gather_kernel", 45, 10),
    ("XLA Ops", "not a kernel", 0, 1000),
)


def xspace():
    """Returns the profile as the profiler would write it."""
    lines = []
    for line in dict.fromkeys(stream for stream, *_ in EVENTS):
        rows = "".join(
            f"events {{ metadata_id: {number} offset_ps: {begin * 10**6} "
            f"duration_ps: {duration * 10**6} }}\n"
            for number, (stream, _, begin, duration) in enumerate(EVENTS, 1)
            if stream == line
        )
        lines.append(f'lines {{ name: "{line}" timestamp_ns: 5000 {rows} }}')
    names = "".join(
        f'event_metadata {{ key: {number} value {{ id: {number} name: "{name}" }} }}\n'
        for number, (_, name, *_) in enumerate(EVENTS, 1)
    )
    host = 'planes { name: "/host:CPU" }'
    return f'planes {{ name: "/device:GPU:1" {names} {" ".join(lines)} }} {host}'


def test_exposed_communication():
    text = jax.profiler.ProfileData.text_proto_to_serialized_xspace(xspace())
    (one,) = timelines(jax.profiler.ProfileData.from_serialized_xspace(text), calls=2)
    assert one.device == "/device:GPU:1"
    milliseconds = (one.span_ms, one.compute_ms, one.communication_ms, one.exposed_ms, one.idle_ms)
    assert [2e3 * ms for ms in milliseconds] == pytest.approx([65, 45, 27, 12, 8])
    assert next(iter(one.kernels)) == "gemm"
    assert 2e3 * one.kernels["gemm"] == pytest.approx(30)
    assert "not a kernel" not in one.kernels


def test_union():
    assert merged([(3.0, 4.0), (0.0, 2.0), (1.0, 2.0), (2.0, 3.0), (6.0, 7.0)]) == [(0, 4), (6, 7)]


def test_no_gpu():
    call = jax.jit(lambda x: x + 1).lower(1.0).compile()
    assert profile(lambda calls: [call(1.0) for _ in range(calls)], 2) == []
