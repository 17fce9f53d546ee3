"""Chunk forms as TPU kernels: a state stays in VMEM from the first chunk of a sequence to the last.

`chunk_scan` walks the chunks, forward and backward; `additive`, `decay` and `delta` are the
mathematics of one chunk of one head; `arithmetic` is what they share.
"""
