"""Packed documents: tokens of different segments never meet.

A segment is a run of equal ids along the time axis.  An initial state belongs to the segment of the
first token, as if the tokens before it had the same id; a caller that splits a packed sequence at a
boundary drops the state there (`continues`).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from linear_transformer.types import SegmentIds


def starts(segment_ids_BT: SegmentIds) -> Bool[Array, "B T"]:
    """True at the first token of every segment but the first one."""
    changes = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    return jnp.pad(changes, ((0, 0), (1, 0)))


def run_index(segment_ids_BT: SegmentIds) -> Int[Array, "B T"]:
    """Number of segment starts up to and including each token: 0, 0, 1, 1, 1, 2, ..."""
    return jnp.cumsum(starts(segment_ids_BT).astype(jnp.int32), axis=1)


def leaving(segment_ids_BT: SegmentIds) -> tuple[Bool[Array, "B T"], Bool[Array, " B"]]:
    """Which tokens are of the last segment, and whether it is the first one too."""
    run_BT = run_index(segment_ids_BT)
    return run_BT == run_BT[:, -1:], run_BT[:, -1] == 0


def continues(last_B: Int[Array, " B"], segment_ids_BT: SegmentIds) -> Bool[Array, " B"]:
    """Whether the first token continues the segment that the carried state belongs to."""
    return segment_ids_BT[:, 0] == last_B
