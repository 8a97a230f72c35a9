"""``python -m goat_jax``: the command line."""

import sys

from goat_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
