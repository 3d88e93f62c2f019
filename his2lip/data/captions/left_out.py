"""Captions that training leaves out of a bank, so that models can be chosen by retrieval on them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from his2lip.data.captions.bank import CaptionBank
from his2lip.data.captions.biology import Pair
from his2lip.data.captions.corpus import split_by_family

LeftOut = dict[tuple[str, str], tuple[str, ...]]


def leave_out(bank: CaptionBank, share: float) -> tuple[CaptionBank, LeftOut]:
    """The bank without about `share` of each pair's captions, and those captions by pair.

    Nearly equal sentences stay together. A bank does not know its seed families, so that other rewordings of
    a seed may be on both sides. Only pairs with a tissue type and a biomarker give captions away, and each
    keeps at least one. A caption of several pairs stays. Which ones are left out depends on the captions
    only. A share of 0 gives the bank itself.
    """
    if not share:
        return bank, {}
    lines: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for (tissue, biomarker), own in bank.captions.items():
        if tissue is not None and biomarker is not None:
            lines[tissue, biomarker].update(dict.fromkeys(own))
    for (tissue, biomarker, _), own in bank.stained.items():
        if (tissue, biomarker) in lines:
            lines[str(tissue), str(biomarker)].update(dict.fromkeys(own))
    blocks: dict[Pair, list[list[str]]] = {pair: [[text] for text in own] for pair, own in lines.items()}
    held_out = split_by_family(blocks, share=share).held_out
    gone: dict[Pair, dict[str, None]] = {pair: dict.fromkeys(own) for pair, own in held_out.items()}
    captions = {
        pair: kept
        for pair, own in bank.captions.items()
        if (kept := tuple(t for t in own if t not in gone.get(pair, ())))
    }
    captions |= {pair: own[:1] for pair, own in bank.captions.items() if pair not in captions}
    stained = {
        key: kept
        for key, own in bank.stained.items()
        if (kept := tuple(text for text in own if text not in gone.get(key[:2], ())))
    }
    trained = {text for part in (captions, stained) for own in part.values() for text in own}
    left_out = {pair: tuple(text for text in gone.get(pair, ()) if text not in trained) for pair in lines}
    return replace(bank, captions=captions, stained=stained, ours=False), {
        p: own for p, own in left_out.items() if own
    }
