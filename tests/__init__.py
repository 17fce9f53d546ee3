"""The tests run on CPUs; libtpu, which some of them compile with, would look for a TPU."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
