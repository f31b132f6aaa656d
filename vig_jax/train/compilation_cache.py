"""Compiled programs kept on disk: the next start of a run reads what this one compiles."""

import logging
from pathlib import Path

import jax

_LOG = logging.getLogger("vig_jax")


def use_compilation_cache(folder: str) -> None:
    """Has JAX keep compiled programs in a folder. To be called before the first is compiled.

    Args:
        folder: made if absent; "~" is the user's home. Empty: nothing is kept, unless
            JAX_COMPILATION_CACHE_DIR says so, which counts more in any case.
    """
    if not folder or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _LOG.warning("compiled programs are not kept: config.train.compilation_cache: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    # Small programs too: a start compiles dozens of them, on a GPU in a fraction of a second each.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
