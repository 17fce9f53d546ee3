"""Set-up of a command's process before JAX is imported; this module does not import JAX."""

import sys

from linear_transformer.runtime.host_memory import use_huge_pages


def prepare(usage: str | None) -> None:
    """Restarts the process with huge pages, and prepares --compile_only.

    Args:
      usage: text of --help for a command whose script has no docstring.
    """
    use_huge_pages()
    main = sys.modules["__main__"]
    main.__doc__ = main.__doc__ or usage
    from linear_transformer.cli import compile_only

    compile_only.prepare()


def show_in_help(*modules: str) -> None:
    """Makes --help list the flags of modules."""
    from absl import flags

    for module in modules:
        for flag in flags.FLAGS.get_key_flags_for_module(module):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
