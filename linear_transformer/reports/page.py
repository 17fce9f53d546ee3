"""A page of HTML with a table that a click on a heading sorts."""

import html
import string
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_PAGE = string.Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>$title</title>
<style>
  body { font: 14px sans-serif; margin: 2em }
  th, td { padding: 2px 8px; text-align: right }
  th { cursor: pointer; position: sticky; top: 0; background: #eee; vertical-align: bottom }
  th:first-child, td:first-child { text-align: left }
  tr:nth-child(even) { background: #f7f7f7 }
  #source { position: sticky; bottom: 0; background: #fff; padding: 1em 0; font-family: monospace }
</style>
<h1>$title</h1>
<p>$text</p>
<table>
<thead><tr>$head</tr></thead>
<tbody>
$rows
</tbody>
</table>
<p id="source">A click on a heading sorts the table; a click on a cell shows where it is from.</p>
<script>
  const body = document.querySelector("tbody");
  document.querySelectorAll("th").forEach((heading, column) => heading.onclick = () => {
    const value = row => row.cells[column].dataset.value;
    const direction = heading.dataset.direction = heading.dataset.direction === "1" ? -1 : 1;
    const compare = (a, b) => column ? a - b : a.localeCompare(b);
    const rows = [...body.rows].filter(row => value(row) !== undefined);
    rows.sort((a, b) => direction * compare(value(a), value(b)));
    body.prepend(...rows);  // rows without a value stay at the end
  });
  body.onclick = event => {
    if (event.target.title) document.getElementById("source").textContent = event.target.title;
  };
</script>
</html>
""")


class Entry(NamedTuple):
    """Entry of a table.

    Attributes:
      text: what the table shows.
      value: by which the column is sorted; None for an entry that stays at the end.
      source: where the value is from; a click on the entry shows it.
    """

    text: str
    value: float | str | None
    source: str = ""


def sortable_page(
    title: str, text: str, head: Sequence[str], rows: Iterable[Sequence[Entry]]
) -> str:
    """Returns a page of HTML; the first column is sorted by text, the others by number."""
    return _PAGE.substitute(
        title=html.escape(title),
        text=html.escape(text),
        head="".join(f"<th>{html.escape(name)}</th>" for name in head),
        rows="\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows),
    )


def _cell(entry: Entry) -> str:
    value = "" if entry.value is None else f' data-value="{html.escape(str(entry.value))}"'
    source = f' title="{html.escape(entry.source)}"' if entry.source else ""
    return f"<td{value}{source}>{html.escape(entry.text)}</td>"
