"""Shape alphabet, with one letter per axis, and glossary of the project's terms.

The name of an array ends in its axes: `q_BTHK`, `state_BHKV`, `logits_BTE`.

    B batch        T time (query tokens)   S source (key) tokens   D model width
    H heads        K key width per head    V value width per head  F feed-forward width
    C chunk        N chunks                E vocabulary, classes   L layers
    G chunks per block                     W value columns of a state (V, or V + 1 with normaliser)
    I input or inner width of a layer      O output width of a layer
    J heads of keys and values, each shared by H / J heads of queries
    M features, slots of a cache           R rounds of hashing
    P tokens before the tokens of a call   U projections stacked on one axis
    Y, X rows and columns of an image      X any other width, if only time matters

Some files give a letter another meaning: N is the state width in `ops/selective_scan.py` and the
steps per token in `ops/delta.py`; D is the channels in `ops/selective_scan.py`, the keys of a tile
in `ops/blockwise_softmax.py`, and the shards in `ops/sequence_parallel.py`; E is half of the
buckets in `ops/hashing.py`; G is the gates of a cell in `nn/layers/bilstm.py`.

    mixer             layer of a block that mixes information between tokens
    feed-forward      layer of a block that is applied to each token alone
    block             mixer and feed-forward with their norms; in `ops`, the chunks of one loop step
    recurrent state   summary of the past tokens that a mixer carries, of constant size
    cache             keys and values of past tokens, in place of a recurrent state
    form              a way to compute an operation: recurrent, parallel, associative, chunk, ...
    chunk             tokens that the chunk form computes at once
    prefill           computing the state of a prompt in one call
    decoding          computing one output token from one input token and a state
    causal            a token depends on itself and earlier tokens only
    anticausal        a token depends on itself and later tokens only
    bidirectional     a token depends on all tokens of its segment
    sequence          one example of a batch; "row" in older names
    document          a text of a corpus; [BOS, t1, ..., tn] as tokens
    segment           tokens of one document in a sequence; `segment_ids` are different per segment
    packed            a sequence of several segments, which do not depend on each other
    padding           tokens of weight 0 that fill up a sequence
    shard             part of an array that one device holds
    run               one training, and its folder (`--workdir`)
    cell              one number of a published table, beside the run that measures it
    reduced twin      small version of a published experiment, for a small machine
    split             train, validation or test

The aliases below are types for signatures; the tests check them at run time.
"""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int

Activations = Float[Array, "B T D"]
Queries = Float[Array, "B T H K"]
Keys = Float[Array, "B S H K"]
Values = Float[Array, "B S H V"]
Outputs = Float[Array, "B T H V"]
State = Float[Array, "B H K W"]  # recurrent state; fp32, or fp64 for fp64 inputs
FeatureState = Float[Array, "B H M W"]  # recurrent state of M features of the keys
Tokens = Int[Array, "B T"]
Logits = Float[Array, "B T E"]
SegmentIds = Int[Array, "B T"]
Positions = Int[Array, "B T"]
KeyMask = Bool[Array, "B S"]
PRNGKey = Array
Metrics = dict[str, tuple[Array, Array]]  # name -> (sum, count), so that averages are exact


@runtime_checkable
class Device(Protocol):
    """Protocol of `jax.Device`, since type checkers do not know the compiled class itself.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      device_kind: name of the device model, such as "TPU v4".
    """

    @property
    def platform(self) -> str: ...

    @property
    def device_kind(self) -> str: ...

    def memory_stats(self) -> dict[str, Any] | None:
        """Returns bytes by name; None if the device does not report memory."""
        ...
