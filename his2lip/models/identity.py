"""What identifies the model that a name loads, by content: for the identity of a run; without torch."""

from __future__ import annotations

import re
from pathlib import Path

from his2lip.config import digest
from his2lip.files import file_digest
from his2lip.models.catalogue import BACKBONES
from his2lip.models.naming import LOCAL, folder_of
from his2lip.models.provenance import is_checkpoint, read_meta
from his2lip.models.registered import is_registered

_SHA256 = re.compile(r"[0-9a-f]{64}")


def weights_identity(name: str) -> str:
    """What identifies the model that a name loads, for the identity of a run.

    A checkpoint is identified by the digests of its weights, architecture and preprocessing; any other folder
    by the contents of its files; a name whose files come from a hub by itself and their contents,
    NAME@DIGEST; any other name by itself. Files of a hub that are not on this machine are fetched, as
    loading the model does. Raises ModelError where they cannot be.
    """
    folder = Path(folder_of(name))
    if name not in BACKBONES and is_checkpoint(folder):
        meta = read_meta(folder)
        keys = ("tensor_digest", "config_digest", "preprocess_digest", "tokenizer", "similarity")
        return digest({key: meta.get(key) for key in keys})
    if name not in BACKBONES and folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return digest({str(path.relative_to(folder)): _content(path) for path in files})
    return name if is_registered(name) or name.startswith(LOCAL) else _of_hub(name)


def _of_hub(name: str) -> str:
    backbone = BACKBONES.get(name)
    source = name if backbone is None else backbone.source
    if source is None:
        return name
    from his2lip.models.hub import loaded_files

    files = loaded_files(source, backbone)
    return f"{name}@{digest({key: _content(file) for key, file in files.items()})}" if files else name


def _content(file: Path) -> str:
    """sha256 of a file's content. Large files of the Hugging Face cache are named by it, and are not read."""
    blob = file.resolve()
    known = blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name)
    return blob.name if known else file_digest(blob)
