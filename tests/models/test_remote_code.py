"""A model's files can name a program: it is refused by name, even where someone at a terminal says yes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from model_factory import (
    SMALL_CLIP,
    hf_config,
    hf_dual,
    hf_model,
    published_open_clip,
    published_plip,
    wordpiece_folder,
)

from his2lip.errors import ModelError
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import load_model
from his2lip.models.transformers_folder import from_transformers


def bring_program(file: Path, mark: Path) -> None:
    """Makes a Hugging Face configuration name a program beside it, which creates `mark` when it runs."""
    tree = json.loads(file.read_text()) if file.is_file() else {}
    names = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.Evil", "AutoTokenizer": [None, "evil.Evil"]}
    file.write_text(json.dumps(tree | {"model_type": "evil", "auto_map": names}))
    (file.parent / "evil.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import BertConfig as EvilConfig, BertModel as Evil\n"
    )


def published(kind: str, folder: Path) -> Path:
    """A folder with a Hugging Face text tower: open_clip's hub layout, or a checkpoint of his2lip."""
    if kind == "checkpoint":
        return save_checkpoint(folder / "checkpoint", hf_dual(folder / "hub"), meta={})
    hub = wordpiece_folder(folder / "hub")
    return published_open_clip(hub, hf_config(hub))


FILES = [
    ("hub layout", "config.json"),
    ("hub layout", "tokenizer_config.json"),
    ("checkpoint", "hf_text/config.json"),
    ("checkpoint", "tokenizer_config.json"),
]


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_configuration_that_names_a_program_is_refused_by_name(
    kind: str, name: str, tmp_path: Path
) -> None:
    folder = published(kind, tmp_path)
    bring_program(folder / name, tmp_path / "ran")
    with pytest.raises(ModelError) as refused:
        load_model(f"local-dir:{folder}")
    assert (refused.value.key, refused.value.where) == ("auto_map", folder / name)
    assert not (tmp_path / "ran").exists()


def test_a_program_below_the_top_of_a_configuration_is_refused_too(tmp_path: Path) -> None:
    folder = published_plip(tmp_path, hf_model(**SMALL_CLIP))
    tree = json.loads((folder / "config.json").read_text())
    tree["text_config"]["auto_map"] = {"AutoModel": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError) as refused:
        from_transformers(folder, name="plip")
    assert (refused.value.key, refused.value.where) == ("auto_map", folder / "config.json")


def test_a_text_tower_elsewhere_that_is_a_program_is_refused(tmp_path: Path) -> None:
    """The configuration of a layout can point its text tower to any folder or repository."""
    elsewhere = wordpiece_folder(tmp_path / "elsewhere")
    folder = published_open_clip(tmp_path / "hub", hf_config(elsewhere))
    bring_program(elsewhere / "config.json", tmp_path / "ran")
    with pytest.raises(ModelError) as refused:
        load_model(f"local-dir:{folder}")
    assert (refused.value.key, refused.value.where) == ("auto_map", str(elsewhere))
    assert not (tmp_path / "ran").exists()


# Runs two commands in one process, which imports what both need only once; ends with the codes of both.
_BOTH = """
import sys
from his2lip.cli import main
codes = 0
for command in sys.argv[1:]:
    sys.argv = ["his2lip", *command.split()]
    try:
        main()
    except SystemExit as end:
        codes = 10 * codes + end.code
sys.exit(codes)
"""


def test_a_program_does_not_run_for_a_terminal_that_answers_yes(tmp_path: Path) -> None:
    hub, saved = published("hub layout", tmp_path / "1"), published("checkpoint", tmp_path / "2")
    bring_program(hub / "config.json", tmp_path / "ran")
    bring_program(saved / "hf_text/config.json", tmp_path / "ran")
    (tmp_path / "image.png").touch()
    commands = (
        f"models convert {hub} --from open_clip --out {tmp_path / 'out'}",
        f"classify {tmp_path / 'image.png'} --model {saved}",
    )
    code, shown = at_a_terminal([sys.executable, "-c", _BOTH, *commands], cwd=tmp_path)
    assert not (tmp_path / "ran").exists(), shown
    assert code == 22, shown
    assert shown.count("auto_map") >= 2
    assert "[y/N]" not in shown


def at_a_terminal(command: list[str], *, cwd: Path) -> tuple[int, str]:
    """Exit code and output of a command at a pseudo-terminal at which yes was typed ahead."""
    ours, theirs = os.openpty()
    os.write(ours, b"y\n" * 8)
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the terminal's other end is closed: the process has ended
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return process.wait(), shown.decode(errors="replace")
