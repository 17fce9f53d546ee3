"""Decoding of connectionist temporal classification (CTC), and the distance for error rates.

Graves et al. 2006, "Connectionist Temporal Classification": a path has one symbol per frame, a unit
or a blank.  Removing repeats and then blanks turns a path into a labelling.  The probability of a
labelling is the sum over all its paths.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

BLANK = 0

Labelling = Int[np.ndarray, " U"]
LogProbs = Float[np.ndarray, "T E"]


def collapse(path_T: Shaped[np.ndarray, " T"]) -> Labelling:
    """Returns the labelling of a path: without repeats, then without blanks."""
    path_T = np.asarray(path_T, np.int64)
    starts_T = np.diff(path_T, prepend=-1) != 0
    return path_T[starts_T & (path_T != BLANK)]


def greedy(log_probs_TE: LogProbs) -> Labelling:
    """Returns the labelling of the most probable path (best path decoding, section 3.2)."""
    return collapse(log_probs_TE.argmax(axis=1))


def prefix_beam_search(log_probs_TE: LogProbs, width: int) -> tuple[Labelling, float]:
    """Searches the most probable labelling with a beam over prefixes (Hannun et al. 2014).

    The probabilities of a prefix's paths are summed, separately for paths that end in a blank.
    Prefixes that leave the beam are lost, so the result is exact only if `width` holds all
    prefixes.

    Args:
      log_probs_TE: log probabilities of the symbols, in nats; column 0 is the blank.
      width: number of prefixes that are kept after each frame.

    Returns:
      The labelling, and the log probability of its paths that stayed in the beam.
    """
    log_probs_TE = np.asarray(log_probs_TE, np.float64)
    num_symbols = log_probs_TE.shape[1]
    prefixes: list[tuple[int, ...]] = [()]
    blank_P, unit_P = np.zeros(1), np.full(1, -np.inf)  # paths that end in a blank, and in a unit
    for log_probs_E in log_probs_TE:
        count = len(prefixes)
        last_P = np.array([prefix[-1] if prefix else BLANK for prefix in prefixes])
        has_last_P = last_P != BLANK
        all_P = np.logaddexp(blank_P, unit_P)
        stay_blank_P = all_P + log_probs_E[BLANK]
        stay_unit_P = np.where(has_last_P, unit_P + log_probs_E[last_P], -np.inf)
        longer_PE = all_P[:, None] + log_probs_E
        # A unit is repeated only over a blank.
        rows_P = np.flatnonzero(has_last_P)
        longer_PE[rows_P, last_P[rows_P]] = (blank_P + log_probs_E[last_P])[rows_P]
        longer_PE[:, BLANK] = -np.inf
        # A longer prefix may be in the beam already.
        places = {prefix: p for p, prefix in enumerate(prefixes)}
        for p, prefix in enumerate(prefixes):
            parent = places.get(prefix[:-1]) if prefix else None
            if parent is not None:
                stay_unit_P[p] = np.logaddexp(stay_unit_P[p], longer_PE[parent, prefix[-1]])
                longer_PE[parent, prefix[-1]] = -np.inf

        blanks = np.concatenate([stay_blank_P, np.full(longer_PE.size, -np.inf)])
        units = np.concatenate([stay_unit_P, longer_PE.ravel()])
        totals = np.logaddexp(blanks, units)
        kept = np.argsort(-totals, kind="stable")[:width]
        kept = kept[totals[kept] > -np.inf]
        prefixes = [
            prefixes[n] if n < count else _extended(prefixes, n - count, num_symbols)
            for n in kept.tolist()
        ]
        blank_P, unit_P = blanks[kept], units[kept]
    totals = np.logaddexp(blank_P, unit_P)
    best = int(totals.argmax())
    return np.array(prefixes[best], np.int64), float(totals[best])


def _extended(prefixes: list[tuple[int, ...]], number: int, num_symbols: int) -> tuple[int, ...]:
    parent, symbol = divmod(number, num_symbols)
    return (*prefixes[parent], symbol)


def edit_distance(found: Sequence[Hashable], expected: Sequence[Hashable]) -> int:
    """Counts the fewest insertions, deletions and substitutions between sequences (Levenshtein)."""
    numbers: dict[Hashable, int] = {}
    ours, theirs = (
        np.array([numbers.setdefault(x, len(numbers)) for x in items], np.int64)
        for items in (found, expected)
    )
    steps = np.arange(len(theirs) + 1)
    costs = steps
    for n, item in enumerate(ours, 1):
        changed = np.minimum(costs[1:] + 1, costs[:-1] + (theirs != item))
        changed = np.concatenate([[n], changed])
        # Insertions: the least cost to the left, each cost plus its distance.
        costs = np.minimum.accumulate(changed - steps) + steps
    return int(costs[-1])
