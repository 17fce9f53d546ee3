"""The shape alphabet, one letter per axis, and a glossary of the project's words.

An array's name ends in its axes: `q_BTHK`, `state_BHKV`, `logits_BTE`.

    B batch        T time (query tokens)   S source (key) tokens   D model width
    H heads        K key width per head    V value width per head  F feed-forward width
    C chunk        N chunks                E vocabulary, classes   L layers
    G chunks per block                     W value columns of a state (V, or V + 1 with normaliser)
    I input or inner width of a layer      O output width of a layer
    M random features, slots of a cache    R rounds of hashing
    P tokens before the tokens of a call   U projections side by side
    Y, X rows and columns of an image      X a last axis of any meaning

Some files still give a letter another meaning: N is the state width in `ops/selective_scan.py` and
the steps of a token in `ops/delta.py`; D is the channels in `ops/selective_scan.py`, the keys of a
tile in `ops/softmax.py`, and the shards in `ops/sequence_parallel.py`; E is half of the buckets in
`ops/hashing.py`; G is the gates of a cell in `nn/layers/bilstm.py`.

    mixer             the layer of a block that moves information between tokens
    feed-forward      the layer of a block that works on each token alone
    block             mixer and feed-forward with their norms; in `ops`, the chunks of one loop step
    recurrent state   the summary of all past tokens that a mixer carries, of constant size
    cache             keys and values of past tokens, the state of softmax attention
    form              a way to compute an operation: recurrent, parallel, associative, chunk, ...
    chunk             consecutive tokens that the chunk form computes together
    prefill           one call that processes a whole prompt
    decoding          calls that take a state and one token, and return the next state and logits
    causal            a token depends on itself and earlier tokens only
    anticausal        a token depends on itself and later tokens only
    bidirectional     a token depends on all tokens of its segment
    sequence          one example of a batch; many names call it a row
    document          a text of a corpus; [BOS, t1, ..., tn] as tokens
    segment           the tokens of one document in a sequence, marked by equal `segment_ids`
    packed            (of a sequence) made of several segments, without attention between them
    padding           tokens of weight 0 that fill a sequence up to a common length
    shard             the part of an array that one device holds
    run               one training and its folder (`--workdir`)
    cell              one number of a published table, with the run that measures it
    reduced twin      a small version of a published experiment, for a small machine
    split             train, validation or test

The aliases below are for signatures, which the tests check at run time.
"""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int

Activations = Float[Array, "B T D"]
Queries = Float[Array, "B T H K"]
Keys = Float[Array, "B S H K"]
Values = Float[Array, "B S H V"]
Outputs = Float[Array, "B T H V"]
State = Float[Array, "B H K W"]  # recurrent state; fp32, or fp64 for fp64 inputs
Tokens = Int[Array, "B T"]
Logits = Float[Array, "B T E"]
SegmentIds = Int[Array, "B T"]
Positions = Int[Array, "B T"]
KeyMask = Bool[Array, "B S"]
PRNGKey = Array
Metrics = dict[str, tuple[Array, Array]]  # name -> (sum, count), so that averages are exact


@runtime_checkable
class Device(Protocol):
    """Protocol of `jax.Device`, for type checkers: the class itself is compiled code.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      device_kind: name of the hardware model, such as "TPU v4".
    """

    @property
    def platform(self) -> str: ...

    @property
    def device_kind(self) -> str: ...

    def memory_stats(self) -> dict[str, Any] | None:
        """Memory statistics in bytes by name; None if the device does not count them."""
        ...
