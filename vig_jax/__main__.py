"""`python -m vig_jax`: the `vig` command."""

import sys

from vig_jax.cli.main import main  # in a worker, which imports this file again, it blocks JAX

if __name__ == "__main__":
    sys.exit(main())
