"""Characters and phonemes of transcripts."""

import ml_collections
import numpy as np

from linear_transformer.data.speech.speech_units import load_units, parse_phonemes


def test_characters():
    units = load_units(ml_collections.ConfigDict({"units": "characters"}))
    ids = units.spell("  Don't <NOISE> STOP-now, ")
    assert units.write(ids) == "don't stop now"
    assert units.size == 28 and ids.min() >= 1 and ids.max() <= 28
    for transcript in ("dial 500", "café", "", "<NOISE>"):
        assert units.spell(transcript) is None


def test_phonemes():
    dictionary = ["HELLO  HH AH0 L OW1", "HELLO(1)  HH EH0 L OW1", "THE  DH AH0", "DON'T  D OW1"]
    phones = ["AH\tvowel", "D\tstop", "DH\tfricative", "HH\taspirate", "L\tliquid", "OW\tvowel"]
    units = parse_phonemes(dictionary, phones)
    assert units.size == 6 and not units.has_words
    ids = units.spell("Hello, the DON'T.")
    np.testing.assert_array_equal(ids, [4, 1, 5, 6, 3, 1, 2, 6])
    assert units.write(ids) == "HH AH L OW DH AH D OW"
    assert units.spell("hello world") is None
