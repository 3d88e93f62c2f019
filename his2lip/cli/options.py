"""Arguments and options that several commands share, and the CSV files that they write."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from his2lip.cli.console import say, table
from his2lip.errors import ConfigError, redact

MODEL_HELP = "A checkpoint's folder, a model's name, or an MLflow URI (models:/NAME@ALIAS)."
ConfigFile = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file: your own, or one that his2lip carries.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[a.b=value]...", help="Settings that replace those of the file."),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Start from the beginning, even if a run of this name exists.")
]
Model = Annotated[str, typer.Option(help=MODEL_HELP)]
CsvFile = Annotated[Path | None, typer.Option(help="Also write the rows to this CSV file.")]
Cache = Annotated[str, typer.Option(help="Folder or URI of cached embeddings.")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(help="Of the features; bf16 is faster where the processor has it, auto is bf16 on a GPU."),
]
SIMILARITIES = {"cosine": "cosine", "dot": "dot product"}  # titles of the column, by how a model compares


# The configuration of each command that has one: module and name.
_CONFIGS = {
    "train": ("his2lip.training", "TrainConfig"),
    "tune": ("his2lip.tuning", "SweepConfig"),
    "benchmark": ("his2lip.evaluation", "BenchmarkConfig"),
}


def _show_config(context: typer.Context, parameter: typer.CallbackParam, asked: bool) -> None:
    """Prints the options of this command's configuration as a table, or as JSON Schema, and exits."""
    if not asked:
        return
    import importlib
    import json

    from his2lip.config import describe_options, json_schema

    module, name = _CONFIGS[context.info_name or ""]
    kind = getattr(importlib.import_module(module), name)
    if parameter.name == "schema":
        print(json.dumps(json_schema(kind), indent=1, ensure_ascii=False))
    else:
        rows = [(o.key, o.type, o.default, o.meaning) for o in describe_options(kind)]
        table(("key", "type", "default", "meaning"), rows)
    raise typer.Exit()


Options = Annotated[
    bool,
    typer.Option(
        "--options", callback=_show_config, is_eager=True, help="Print the options of CONFIG and exit."
    ),
]
Schema = Annotated[
    bool,
    typer.Option(
        "--schema", callback=_show_config, is_eager=True, help="Print CONFIG's JSON Schema and exit."
    ),
]


def refuse_unused(options: Mapping[str, object], what: str, *, fix: str = "leave it out") -> None:
    """Raises ConfigError for the first option of a command line that was given although nothing would use it.

    options  --option -> its value; None and False: it was not given
    what     why it is of no use, after its name: `--heat is for slides`
    """
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise ConfigError(f"{given[0]} {what}", key=given[0], fix=fix)


def split_names(names: str | None) -> list[str] | None:
    """Comma-separated names as a list; None where no name is given."""
    found = [name.strip() for name in (names or "").split(",") if name.strip()]
    return found or None


def check_outputs(
    files: Mapping[str, Path | None], *, folders: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Raises ConfigError, before any work, for an output that cannot be written, or replaces another file.

    files    --option -> its file
    folders  they are folders of files
    inputs   files that the command reads, and must not overwrite
    """
    read = list(inputs)
    written: dict[str, str] = {}  # place -> the option that names it
    for key, file in files.items():
        if file is None:
            continue
        if "\0" in str(file):
            raise ConfigError("a path cannot have the character NUL", key=key, fix="correct the path")
        other = written.setdefault(os.path.realpath(file), key)
        if other != key and not folders:
            fix = "name two files"
            raise ConfigError(f"this is the file of {other} too", where=file, key=key, fix=fix)
        if file.is_file() and any(one.is_file() and file.samefile(one) for one in read):
            fix = "name another place"
            raise ConfigError("this file is read, and would be overwritten", where=file, key=key, fix=fix)
        if file.is_dir() and not folders:
            raise ConfigError("this is a folder", where=file, key=key, fix="name a file in it")
        place = _place(file, folders=folders)
        if place is None or not _is_writable(place, folders=folders):
            what = f"this {'folder' if folders else 'file'} cannot be written"
            fix = "name one in a folder that you can write to"
            raise ConfigError(what, where=file, key=key, fix=fix)


def _place(file: Path, *, folders: bool) -> Path | None:
    """Where an output is written: of a file, behind its link. None where a link leads nowhere."""
    dangling = next((p for p in (file, *file.parents) if p.is_symlink() and not p.exists()), None)
    if dangling is None:
        return file.absolute()
    behind = Path(os.path.realpath(file))
    return behind if dangling == file and not folders and behind.parent.exists() else None


def _is_writable(place: Path, *, folders: bool) -> bool:
    """Whether a file, or a folder, can be written there; missing folders above it can be made."""
    nearest = next(parent for parent in (place, *place.parents) if parent.exists())
    is_taken = not nearest.is_dir() and (folders or nearest != place)
    return not is_taken and _takes_data(nearest)


def _takes_data(place: Path) -> bool:
    """Whether a file can be written, or a folder takes files: root may try either anywhere, and may fail."""
    if not place.is_dir():
        return os.access(place, os.W_OK)
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError:
        return False
    return True


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file (UTF-8) and prints its path.

    Bytes of file names that are not UTF-8 are escaped, and the secrets of addresses are left out.
    """
    import csv

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([redact(v) if isinstance(v, str) else v for v in row] for row in rows)
    say(f"written to {path}")
