"""`sampling: released`: one caption a patch, fixed by its row among the sorted names of its pair."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from his2lip.data.captions import CaptionBank
from his2lip.data.info import id_key

_PAIR = ("tissue", "biomarker")
NOTE = (
    "sampling: released gives each patch one caption for all epochs, in the order of sorted names; the "
    "authors' order was that of their folders, which nobody knows, so it approximates theirs"
)


class RowCaptions:
    """The k-th patch of a pair, by sorted patch ids, gets the pair's captions in turn: number k modulo n.

    Stands in for `CaptionBank.draw`. Memory: 16 bytes a patch.
    """

    def __init__(self, bank: CaptionBank, patches: pa.Table) -> None:
        """`patches`: the columns patch_id, tissue and biomarker of a split."""
        self._bank = bank
        keys = [(name, "ascending") for name in (*_PAIR, "patch_id")]
        table = patches.take(pc.sort_indices(patches, sort_keys=keys))
        names = (table[name].fill_null("") for name in _PAIR)
        pairs = pc.binary_join_element_wise(*names, "\t").combine_chunks().dictionary_encode().indices
        _, first, run = np.unique(pairs.to_numpy(), return_index=True, return_inverse=True)
        place = np.arange(len(pairs)) - first[run]
        ids = np.array([id_key(i) for i in table["patch_id"].to_pylist()], dtype=np.uint64)
        order = np.argsort(ids)
        self._ids, self._place = ids[order], place[order]

    def draw(self, seed: int, epoch: int, patch_id: str, tissue: str | None, biomarker: str | None) -> str:
        """The patch's one caption, whatever the seed and the epoch. Raises DatasetError as the bank does."""
        lines = self._bank.lines(tissue, biomarker)
        at = np.searchsorted(self._ids, np.uint64(id_key(patch_id)))
        return lines[int(self._place[at]) % len(lines)]
