"""Token mixers: the protocol in base.py, the table in registry.py, a mechanism in each other file."""
