"""Token mixers: base.py has the protocol, registry.py the table, each other file a mechanism."""
