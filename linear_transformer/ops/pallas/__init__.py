"""Chunk forms as TPU kernels: a state stays in VMEM from the first chunk of a sequence to the last.

`chunk_scan` runs over the chunks, forward and backward, in the blocks of `layout`; `additive`,
`decay` and `delta` have the mathematics of one chunk of one head; `arithmetic` has their shared
parts.
"""
