"""The shape alphabet: one letter per axis, declared once.

    B batch        T time (query tokens)   S source (key) tokens   D model width
    H heads        K key width per head    V value width per head  F feed-forward width
    C chunk        N chunks                E vocabulary, classes   L layers
    G chunks per block                     W value columns of a state (V, or V + 1 with normaliser)

An array's name ends in its axes: `q_BTHK`, `state_BHKV`, `logits_BTE`.  The aliases below are for
signatures, where they are checked at run time in the tests.
"""

from jaxtyping import Array, Bool, Float, Int

Activations = Float[Array, "B T D"]
Queries = Float[Array, "B T H K"]
Keys = Float[Array, "B S H K"]
Values = Float[Array, "B S H V"]
Outputs = Float[Array, "B T H V"]
State = Float[Array, "B H K W"]  # of a recurrence; fp32, or fp64 for fp64 inputs
Tokens = Int[Array, "B T"]
Logits = Float[Array, "B T E"]
SegmentIds = Int[Array, "B T"]
Positions = Int[Array, "B T"]
KeyMask = Bool[Array, "B S"]
PRNGKey = Array
Metrics = dict[str, tuple[Array, Array]]  # name -> (sum, count), so that averages are exact
