"""Models: load one by name, save one as a checkpoint, list what is known."""

from his2lip.models.backbones import load_model
from his2lip.models.catalogue import list_backbones
from his2lip.models.checkpoint import ResumeState, read_meta, save_checkpoint
from his2lip.models.encoder import DualEncoder

__all__ = ["DualEncoder", "ResumeState", "list_backbones", "load_model", "read_meta", "save_checkpoint"]
