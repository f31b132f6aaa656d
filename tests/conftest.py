"""Array shapes and types of every annotated function are checked while the tests run."""

import jaxtyping
import pytest

jaxtyping.install_import_hook(["kernels_pallas", "vig_jax"], "beartype.beartype")


@pytest.fixture
def unchecked():
    """Without those checks, to see our own errors as a user does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
