"""Segments of packed sequences: runs of equal ids along the time axis.

Tokens of different segments do not interact.  An initial state belongs to the segment of the first
token, as if the tokens before it had the same id; a caller that splits a packed sequence between
two segments must drop the state there (see `continues`).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from linear_transformer.types import SegmentIds


def starts(segment_ids_BT: SegmentIds) -> Bool[Array, "B T"]:
    """Mask of segment starts: True at the first token of every segment but the first."""
    changes = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    return jnp.pad(changes, ((0, 0), (1, 0)))


def segment_index(segment_ids_BT: SegmentIds) -> Int[Array, "B T"]:
    """Index of each token's segment in its sequence: 0, 0, 1, 1, 1, 2, ..."""
    return jnp.cumsum(starts(segment_ids_BT).astype(jnp.int32), axis=1)


def next_index(
    index_B: Int[Array, " B"], last_B: Int[Array, " B"], segment_ids_BT: SegmentIds
) -> Int[Array, "B T"]:
    """`segment_index` of tokens after a token of segment `last_B`, which has index `index_B`."""
    ids = jnp.concatenate([last_B[:, None], segment_ids_BT], axis=1)
    return index_B[:, None] + segment_index(ids)[:, 1:]


def leaving(segment_ids_BT: SegmentIds) -> tuple[Bool[Array, "B T"], Bool[Array, " B"]]:
    """Mask of the last segment's tokens, and mask of the sequences with a single segment."""
    run_BT = segment_index(segment_ids_BT)
    return run_BT == run_BT[:, -1:], run_BT[:, -1] == 0


def continues(last_B: Int[Array, " B"], segment_ids_BT: SegmentIds) -> Bool[Array, " B"]:
    """Returns whether the first token is in segment `last_B`, the segment of the carried state."""
    return segment_ids_BT[:, 0] == last_B
