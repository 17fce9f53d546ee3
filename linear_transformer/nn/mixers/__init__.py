"""Token mixers: base.py has the protocol, registry.py the table, the others their mechanisms."""
