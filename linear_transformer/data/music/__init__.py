"""Music: MIDI files, piano pieces, chorales."""
