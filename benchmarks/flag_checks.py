"""Checks of flags that are lists: the parser refuses a wrong entry before anything is measured."""

from collections.abc import Collection

from absl import flags


def whole_numbers(*holders: flags.FlagHolder[list[str]]) -> None:
    """Makes the parser refuse entries that are not numbers from 1 on."""
    for holder in holders:
        flags.register_validator(
            holder,
            lambda texts: all(text.isdecimal() and int(text) for text in texts),
            "must be whole numbers from 1 on, separated by commas",
        )


def among(choices: Collection[str], holder: flags.FlagHolder[list[str]]) -> None:
    """Makes the parser refuse entries that are not among the choices."""
    flags.register_validator(
        holder,
        lambda names: all(name in choices for name in names),
        f"must be among {', '.join(choices)}",
    )
