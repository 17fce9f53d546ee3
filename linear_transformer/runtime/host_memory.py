"""Huge pages for the host's heap.

XLA allocates the temporaries of a step anew, and glibc returns large blocks to the kernel at once,
so every step faults its memory in again, 4 KB at a time: over a third of a training step on CPU
(benchmarks/README.md has the measurement).  glibc reads its tunables only when a process starts, so
the process is started once more, with the same arguments and the same process id.
"""

import os
import pathlib
import sys

_SWITCH = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Huge pages on request, and blocks of any size from the heap, which keeps freed memory.
_SIZE = 1 << 34
_TUNABLES = (
    "glibc.malloc.hugetlb=1",
    f"glibc.malloc.mmap_threshold={_SIZE}",
    f"glibc.malloc.trim_threshold={_SIZE}",
)


def use_huge_pages() -> None:
    """Restarts the process with huge pages if Linux offers them on request; call it first.

    It does nothing on other systems, where the kernel always or never uses huge pages, and if the
    user has set the tunable.  LINEAR_TRANSFORMER_HUGE_PAGES=0 prevents the restart.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or os.environ.get("LINEAR_TRANSFORMER_HUGE_PAGES") == "0":
        return
    if not (_SWITCH.exists() and "[madvise]" in _SWITCH.read_text()):
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, *_TUNABLES)))
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)
