"""Datasets: cards, shards, captions, and the stream of batches that training reads."""

from his2lip.data.cards import Card, Protocol, list_cards, load_card
from his2lip.data.shards import Patch, ShardWriter, open_shards

__all__ = ["Card", "Patch", "Protocol", "ShardWriter", "list_cards", "load_card", "open_shards"]
