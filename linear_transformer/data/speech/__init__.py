"""Speech: utterances with transcripts, and their features."""
