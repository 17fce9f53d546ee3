"""The environment of the tests, of xdist's workers and of the processes that tests start."""

import atexit
import os
import shutil
import tempfile

import jaxlib.version

_OF_A_RUN = "LINEAR_TRANSFORMER_TESTS"


def _prepare() -> None:
    # The tests run on CPUs; libtpu, which some of them compile with, would look for a TPU.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # One cache of compiled programs for all processes of a run, new for each run: no program of an
    # earlier state of the code is tested.
    cache = tempfile.mkdtemp(prefix="compiled-for-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ[_OF_A_RUN] = os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # Most of the time of these tests is LLVM's, for programs that run once. XLA's own passes stay
    # on, and so does everything of a TPU's compiler.
    flags = [
        "--xla_backend_optimization_level=0",
        # The cores are busy with other tests, and LLVM's work on one module is less than on parts.
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    if jaxlib.version.__version_info__ < (0, 11):
        # A third of the time to compile; later versions have no other emitters, and no such flag.
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")]).strip()


if _OF_A_RUN not in os.environ:
    _prepare()
