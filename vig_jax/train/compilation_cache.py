"""Keeps compiled programs on disk, so that the next start of a run can read them."""

import logging
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

_LOG = logging.getLogger("vig_jax")


def use_compilation_cache(folder: str) -> None:
    """Makes JAX keep compiled programs in a folder, from the next compilation on.

    Args:
        folder: created if absent; "~" is the user's home. Empty: nothing is kept. The environment
            variable JAX_COMPILATION_CACHE_DIR takes precedence.
    """
    if not folder or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    try:
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home folder
        _LOG.warning("compiled programs are not kept: config.train.compilation_cache: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    reset_cache()  # otherwise an earlier compilation has settled that there is none
    # Keep small programs too: a start compiles dozens of them, each in a fraction of a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
