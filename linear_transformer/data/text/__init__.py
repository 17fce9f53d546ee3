"""Text corpora and their tokenizers."""
