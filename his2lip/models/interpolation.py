"""Weight-space interpolation between a model and its fine-tuned self (WiSE-FT, Wortsman et al. 2022)."""

from __future__ import annotations

import copy

import torch

from his2lip.errors import ModelError
from his2lip.models.encoder import DualEncoder


def blend(base: DualEncoder, tuned: DualEncoder, *, alpha: float) -> DualEncoder:
    """(1 - alpha) base + alpha tuned, tensor by tensor, with the preprocessing and tokenizer of `tuned`.

    alpha in [0, 1]: 0 gives exactly the base's weights, 1 exactly the tuned ones. Raises ModelError for
    another alpha, and where the two are not the same architecture.
    """
    if not 0 <= alpha <= 1:
        raise ModelError(f"alpha is {alpha}", key="alpha", fix="choose one from 0 (base) to 1 (tuned)")
    if base.config_digest() != tuned.config_digest():
        what = f"'{base.name}' and '{tuned.name}' are not the same architecture"
        raise ModelError(what, key=base.name, fix="blend a model with the one that it was tuned from")
    result = copy.deepcopy(tuned)
    result.read_digest = None
    result.name = f"{tuned.name}-blend-{alpha:g}"
    first, second = base.clip.state_dict(), tuned.clip.state_dict()
    result.clip.load_state_dict({name: _between(first[name], second[name], alpha) for name in second})
    return result


def _between(base: torch.Tensor, tuned: torch.Tensor, alpha: float) -> torch.Tensor:
    """Counters and index buffers are not weights: the tuned model's are used."""
    if not tuned.is_floating_point() or alpha == 1:
        return tuned
    return base.to(tuned) if alpha == 0 else torch.lerp(base.to(tuned), tuned, alpha)
