"""`his2lip prompts import`: released prompt sentences as a prompt file, by which a benchmark can score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from his2lip.cli.console import say, table
from his2lip.cli.options import check_outputs, refuse_unused
from his2lip.cli.registry import command
from his2lip.errors import ConfigError


@command("prompts import")
def import_prompts(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A released constants.py; it is never run.")],
    name: Annotated[
        str | None, typer.Option(help="The dictionary of the file. Default: list the dictionaries.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="The protocol's name of one of its classes. May be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The prompt file to write. Default: NAME.yaml.")] = None,
) -> None:
    """Import released prompt sentences, with their order, duplicates and accidents, as a prompt file.

    A benchmark scores by it beside its own prompts: pools={released: {DATASET: FILE}}.
    """
    from his2lip.config import dump_yaml
    from his2lip.evaluation import import_released, released_dictionaries

    if name is None:
        refuse_unused(
            {"--rename": rename, "--out": out}, "is for an import", fix="name a dictionary with --name"
        )
        found = released_dictionaries(source)
        rows = [(n, len(c), sum(map(len, c.values())), ", ".join(c)) for n, c in found.items()]
        table(("dictionary", "classes", "sentences", "names of the classes"), rows)
        return
    place = out or Path(f"{name}.yaml")
    check_outputs({"--out": place}, inputs=[source])
    prompts = import_released(source, name, rename=_renamed(rename or []))
    note = f"Released sentences: the dictionary {name} of {source.name}."
    place.parent.mkdir(parents=True, exist_ok=True)
    classes = {label: list(lines) for label, lines in prompts.sentences}
    place.write_text(dump_yaml({"note": note, "classes": classes}), encoding="utf-8")
    say(f"{len(prompts.all_sentences())} sentences of {len(classes)} classes written to {place}")


def _renamed(pairs: list[str]) -> dict[str, str]:
    """OLD -> NEW. Raises ConfigError for a pair of another form."""
    found = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            what = f"'{pair}' is not OLD=NEW"
            raise ConfigError(what, key="--rename", fix="write --rename 'Immune Cells=Immune cells'")
        found[old] = new
    return found
