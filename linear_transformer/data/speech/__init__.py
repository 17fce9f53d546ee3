"""Utterances with transcripts, and their features."""
