"""XLA's options for programs that several GPUs run together."""

from jax.sharding import Mesh

# XLA's scheduler then starts an exchange as soon as its operands are there, and waits for it only
# where the result is used: gradients are summed during the rest of the backward pass.
_GPU = {"xla_gpu_enable_latency_hiding_scheduler": True}


def overlap_options(mesh: Mesh) -> dict[str, bool] | None:
    """Returns compiler options by which GPUs exchange arrays while they compute.

    How many bytes XLA combines to one exchange is left to its defaults and to XLA_FLAGS, with
    `--xla_gpu_all_reduce_combine_threshold_bytes` and likewise for `all_gather` and
    `reduce_scatter`. The options that pipeline collectives are about loops over layers, which these
    models do not have.

    Args:
        mesh: that the program is compiled for.

    Returns:
        The argument `compiler_options` of `jax.jit`; None for one device or for other platforms,
        where nothing is changed.
    """
    on_gpus = mesh.devices.flat[0].platform == "gpu"
    return dict(_GPU) if on_gpus and mesh.size > 1 else None
