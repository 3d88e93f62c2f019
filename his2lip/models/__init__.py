"""Models: load one by name, save one as a checkpoint, list what is known."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from his2lip.models.backbones import load_model
    from his2lip.models.catalogue import list_backbones
    from his2lip.models.checkpoint import save_checkpoint
    from his2lip.models.encoder import DualEncoder
    from his2lip.models.provenance import read_meta
    from his2lip.models.resume import ResumeState

# Names are looked up when they are asked for: open_clip takes seconds to import, and a list needs none of it.
_HOMES = {
    "DualEncoder": "his2lip.models.encoder",
    "ResumeState": "his2lip.models.resume",
    "list_backbones": "his2lip.models.catalogue",
    "load_model": "his2lip.models.backbones",
    "read_meta": "his2lip.models.provenance",
    "save_checkpoint": "his2lip.models.checkpoint",
}
__all__ = ["DualEncoder", "ResumeState", "list_backbones", "load_model", "read_meta", "save_checkpoint"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
