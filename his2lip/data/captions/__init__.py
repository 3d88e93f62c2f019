"""Captions: templates, the caption bank, and the import of a published corpus."""

from his2lip.data.captions.bank import NOTE, CaptionBank, RowCaptions
from his2lip.data.captions.templates import PLACES, STAINS

__all__ = ["NOTE", "PLACES", "STAINS", "CaptionBank", "RowCaptions"]
