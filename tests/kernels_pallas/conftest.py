"""Checks the shapes written on the library's functions while its tests run."""

from jaxtyping import install_import_hook

install_import_hook("kernels_pallas", "beartype.beartype")
