"""What is known of devices."""

import pytest

from vig_jax.bench.throughput import peak_flops


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("cpu", None),
    ],
)
def test_peak_flops(device, peak):
    assert peak_flops(device) == peak
