"""Dataset cards, and the terms of use that they state."""

from his2lip.data.cards.card import (
    MAX_MPP,
    MIN_MPP,
    PROTOCOL_REMARKS,
    Card,
    Carve,
    Grouping,
    LabelsOf,
    Mpp,
    Protocol,
    Role,
    is_project_card,
    list_cards,
    load_card,
)
from his2lip.data.cards.terms import Terms, strictest, terms_of, terms_of_card

__all__ = [
    "MAX_MPP",
    "MIN_MPP",
    "PROTOCOL_REMARKS",
    "Card",
    "Carve",
    "Grouping",
    "LabelsOf",
    "Mpp",
    "Protocol",
    "Role",
    "Terms",
    "is_project_card",
    "list_cards",
    "load_card",
    "strictest",
    "terms_of",
    "terms_of_card",
]
