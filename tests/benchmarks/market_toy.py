"""Made-up models for the processes of the market: calls that sleep, and every kind of failure."""

import os
import time
from types import SimpleNamespace

from benchmarks.market_worker import serve
from vig_jax.bench.latency import HostCall

SECONDS = {"vig_t": 2e-3, "quick": 1e-3}


def run_toy(connection, job):
    serve(connection, job, prepare, lambda job: ({"device": "a toy"}, "toy"))


def prepare(job, batch_size, *, check):
    name = job.name
    if name == "picky" and batch_size != 1:
        raise TypeError("no other batch than 1")
    if name == "dies":
        os._exit(3)
    if name == "endless":
        time.sleep(60)
    if name == "large" and batch_size > (4 if job.alone else 0):
        raise RuntimeError("CUDA out of memory")
    if name == "vig_t":
        assert check == (batch_size == job.batch_sizes[0])
    seconds = SECONDS.get(name, 5e-4)

    def run(calls):
        if name == "breaks" and calls > 1:
            raise RuntimeError("illegal memory access")
        time.sleep(calls * seconds)

    steps = HostCall(
        put=lambda: None,
        start=lambda pixels: time.sleep(seconds),
        wait=lambda results: None,
        fetch=lambda results: None,
    )
    facts = {"variant": "toy", "parameters": 7, "memory_bytes": 11, "flops": 13}
    return SimpleNamespace(run=run, host=steps, **facts)
