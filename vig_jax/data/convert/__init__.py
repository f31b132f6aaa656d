"""Converts a data set to another format: folder, ArrayRecord, tar, parquet."""

from vig_jax.data.convert.conversion import convert
from vig_jax.data.convert.options import Options
from vig_jax.data.convert.splits import find_kind, open_splits
from vig_jax.data.convert.verification import verify

__all__ = ["Options", "convert", "find_kind", "open_splits", "verify"]
