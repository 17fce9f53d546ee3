"""Published tables beside the measurements of this project.

    python -m linear_transformer.papers --list
    python -m linear_transformer.papers --table=katharopoulos2020/table1
    python -m linear_transformer.papers --table=qin2022/table8 --output=table8.md
    python -m linear_transformer.papers --all --output=docs/results.md
    python -m linear_transformer.papers --table=qin2022/table8 --launch
    python -m linear_transformer.papers --table=qin2022/table4 --launch --scale=paper \
        --files=wikitext103=FOLDER
    python -m linear_transformer.papers --table=yang2024/table_mad,arora2023/figure2 --launch \
        --scale=paper --cores=1 --dry_run

A table is a file `configs/papers/PAPER/TABLE.py`.  `--list` counts the cells of every table: how
many were measured in the paper's setting, by training ("learned") or by a benchmark ("speed"), how
many by a reduced twin for small machines, and how many were not measured.  `--table` prints tables
as Markdown, with date, command and time of each run that they quote.  `--output` writes them to a
file, and pictures (.png) of bars or curves beside it.  `--all` makes one document of all tables
with a measured cell; this document and one of several tables begin with the list.

A cell is filled by a run or by a benchmark file found on disk, and by nothing else:

- `--runs=DIR` (default: runs) is searched with all folders below it.  A run counts if it is at its
  last step and its config equals the config of the cell, except for the seed, paths and intervals
  of reports.  Runs with several seeds are averaged.  The value is the result of eval.py, or else
  of the last evaluation during training.
- docs/results/records is searched in the same way.  `--keep` copies the config, the metrics and
  the evaluations of the runs that fill a table to this folder, where git keeps them.
- Speeds are read from JSON files of `python -m benchmarks.NAME`, in DIR, in docs/results/records or
  in build/benchmarks; the newest file that fits is used.  Compare the hardware before the numbers.

The difference from the published number is printed only at the paper's scale.  For reduced twins,
compare the order of the rows.

`--launch` first runs the missing experiments of the tables, one after the other in the given order:
the reduced twins, or the paper's settings with `--scale=paper`.  `--dry_run` only prints what it
would run.  `--launch` resumes runs that were stopped.  After a failure, it prints one line and
starts the next run; the exit status is then 1.  `--cores=N` limits the runs to N cores.
`--files=NAME=PATH` names data that the user must supply; if they are missing, the run prints the
NAME.
"""

import pathlib
import shlex
import sys

from absl import flags

from linear_transformer.errors import ConfigError, RunError
from linear_transformer.reports import cells, launch, report
from linear_transformer.reports.runs import RECORDS, Found
from linear_transformer.reports.tables import PAPER, REDUCED, Table, load_table, table_names
from linear_transformer.runtime import program

_SCALES = {"paper": PAPER, "reduced": REDUCED}


def write_all(tables: dict[str, Table], found: Found, output: str | None) -> None:
    """Prints the list and the tables with a measured cell; writes them if `output` is given."""
    filled = {name: cells.fill(table, found) for name, table in tables.items()}
    parts = [
        "# Published tables beside what was measured\n\nWritten by "
        f"`{shlex.join(['python', '-m', 'linear_transformer.papers', *sys.argv[1:]])}`; a cell is "
        "filled by a run or a benchmark file, and by nothing else.  Reduced twins of the papers' "
        "experiments show an order at most; their numbers are not the papers'.\n",
        report.listing(filled) + "\n",
    ]
    for name, table in tables.items():
        if all(cell.scale is None for cell in filled[name]):
            continue
        part = name.replace("/", "-")
        parts.append(report.markdown(table, filled[name], part=part))
        if output:
            picture = pathlib.Path(output).with_suffix("") / f"{part}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            if report.plot(table, filled[name], picture):
                parts.append(f"![{table.title}]({picture.parent.name}/{picture.name})\n")
            for name, caption in table.pictures:
                if (picture.parent / name).exists():
                    parts.append(f"{caption}\n\n![{name}]({picture.parent.name}/{name})\n")
    print(text := "\n".join(parts))
    if output:
        launch.write_text(text, pathlib.Path(output))


def write(table: Table, found: Found, output: str | None) -> None:
    """Prints a table; writes it with its picture if `output` is given."""
    filled = cells.fill(table, found)
    text = report.markdown(table, filled)
    print(text)
    if not output:
        return
    path = pathlib.Path(output)
    launch.write_text(text, pathlib.Path(output))
    picture = path.with_suffix(".png")
    drawn = report.plot(table, filled, picture)
    print(f"wrote {path}{f' and {picture}' if drawn else '; there is nothing to draw yet'}")


def _files(arguments: list[str]) -> dict[str, str]:
    """Converts ["wsj=PATH"] to {"wsj": PATH}."""
    files = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or not path:
            raise ConfigError(f"--files={argument}: must be NAME=PATH")
        files[name] = path
    return files


def _define_flags() -> None:
    flags.DEFINE_bool("list", False, "All tables, with counts of their cells.")
    flags.DEFINE_bool("all", False, "All tables of which anything was measured.")
    flags.DEFINE_list("table", [], "The tables to print, separated by commas; see --list.")
    flags.DEFINE_string("runs", "runs", "Folder of runs, searched with all below it.")
    flags.DEFINE_string("output", None, "Markdown file to write, with a picture beside it.")
    flags.DEFINE_bool("launch", False, "Run what the table lacks.")
    flags.DEFINE_enum("scale", "reduced", list(_SCALES), "Of what --launch runs.")
    flags.DEFINE_bool("dry_run", False, "For --launch: print what would run.")
    flags.DEFINE_integer("cores", 0, "For --launch: cores that the runs may use; 0 is all.", 0)
    flags.DEFINE_bool("keep", False, f"Copy the runs that fill the tables to {RECORDS}.")
    flags.DEFINE_multi_string("files", [], "For --launch: NAME=PATH of data; may be given again.")


def main() -> None:
    values = flags.FLAGS
    folder = pathlib.Path(values.runs).expanduser()
    if values.list + values["all"].value + bool(values.table) != 1:
        raise ConfigError("nothing to do; give --list, --all, or --table=NAME")
    if values.output and pathlib.Path(values.output).suffix != ".md":
        raise ConfigError(f"--output={values.output}: the name must end in .md")
    if values["runs"].present and not values.launch and not folder.is_dir():
        raise ConfigError(f"--runs={values.runs}: no such folder")
    if values.list:
        found = launch.search(folder)
        print(report.listing({n: cells.fill(load_table(n), found) for n in table_names()}))
        return
    names = table_names() if values["all"].value else values.table
    tables, failures = {name: load_table(name) for name in names}, []
    if values.launch:
        launch.limit_cores(values.cores)
        failures = launch.run_missing(
            list(tables.values()),
            _SCALES[values.scale],
            folder,
            _files(values.files),
            dry_run=values.dry_run,
        )
    found = launch.search(folder)
    if values.keep:
        for table in tables.values():
            launch.keep(table, found, folder)
    if len(tables) > 1:
        write_all(tables, found, values.output)
    else:
        write(tables[names[0]], found, values.output)
    if failures:
        raise RunError(f"{len(failures)} failed, the first: {failures[0]}")


if __name__ == "__main__":
    _define_flags()
    program.run(main)
