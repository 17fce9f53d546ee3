"""Notes: MIDI files, piano pieces, chorales."""
