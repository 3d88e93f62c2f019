"""Captions: templates, the caption bank, the import of a published corpus, and the staining of a caption."""

from his2lip.data.captions.bank import NOTE, CaptionBank, Origin, RowCaptions, Subject
from his2lip.data.captions.biology import PLACES, STAINS
from his2lip.data.captions.corpus import plain
from his2lip.data.captions.left_out import leave_out
from his2lip.data.captions.staining import captioned

__all__ = [
    "NOTE",
    "PLACES",
    "STAINS",
    "CaptionBank",
    "Origin",
    "RowCaptions",
    "Subject",
    "captioned",
    "leave_out",
    "plain",
]
