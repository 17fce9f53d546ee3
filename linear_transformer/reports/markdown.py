"""Tables and footnotes of Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """Returns a Markdown table; `align` has letters for the columns after the first, "r" or "l"."""
    align = align.ljust(len(head) - 1, align[-1])
    rule = ("---", *("---:" if letter == "r" else "---" for letter in align))
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


class Footnotes:
    """Footnotes of a text, numbered in the order of their first marks.

    Args:
      part: name of the part of the document if several parts have footnotes.
    """

    def __init__(self, part: str = ""):
        self._prefix = f"{part}-" if part else ""
        self._marks: dict[str, str] = {}

    def marks(self, notes: Iterable[str]) -> str:
        """Returns the marks of notes; a new note gets the next number."""
        return "".join(
            self._marks.setdefault(note, f"[^{self._prefix}{len(self._marks) + 1}]")
            for note in notes
        )

    def __str__(self) -> str:
        """Returns all notes, one per line."""
        return "\n".join(f"{mark}: {note}" for note, mark in self._marks.items())
