"""A training step of ViT-B/32 on the CPU in float32, against the released code's arithmetic.

python benchmarks/speed/train_step.py [--quick] [--batch 32] [--tokens 30 20]

The released code encodes every image and caption twice per step, once for the image-text term and once for
the intramodal terms, and pads captions to 77 tokens. The baseline does the same and nothing slower, with the
same weights, batch, captions, loss, optimizer and threads. Our step encodes once, at the length of the
longest caption. The ceiling is the ratio of the counted FLOPs of the two steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _pairs import Program, arguments, compare, write
from torch.utils.flop_counter import FlopCounterMode

from his2lip.loss.wise import LossWeights, WISELoss
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model

LEAST_SPEEDUP, LEAST_SHARE = 2.5, 0.9

# Each is one token of CLIP's vocabulary, so a caption of n words has n + 2 tokens.
_WORDS = (
    "tumor",
    "cell",
    "brown",
    "blue",
    "strong",
    "weak",
    "stain",
    "tissue",
    "dark",
    "pale",
    "nuclear",
    "lung",
)


def captions(count: int, tokens: int) -> list[str]:
    """`count` different captions of `tokens` tokens each, including start and end of text."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(_WORDS), (count, tokens - 2), generator=generator)
    return [" ".join(_WORDS[i] for i in row) for row in picks.tolist()]


class Step:
    """One step on one fixed batch; `twice` selects the released code's arithmetic."""

    def __init__(self, model: DualEncoder, batch: int, tokens: int, *, twice: bool) -> None:
        sentences = captions(batch, tokens)
        self.model = model.train()
        self.twice = twice
        self.images = torch.randn(
            batch, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(1)
        )
        self.short = model.tokenize(sentences)
        self.full = model.tokenizer.tokenizer(sentences, context_length=model.tokenizer.context_length)
        assert self.short.shape[1] == tokens, self.short.shape
        self.labels = torch.arange(batch) % 7, torch.arange(batch) % 12
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)

    def backward(self) -> torch.Tensor:
        """Computes the loss and its gradients; returns the loss."""
        loss = self._released() if self.twice else self._ours()
        loss.backward()
        return loss.detach()

    def run(self) -> None:
        """One step: forward, backward, gradient clipping, update."""
        self.optimizer.zero_grad(set_to_none=True)
        self.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def _ours(self) -> torch.Tensor:
        features = self.model(self.images, self.short)
        return self._wise(LossWeights(), *features)

    def _released(self) -> torch.Tensor:
        clip: Any = self.model.clip
        image_text = clip.encode_image(self.images), clip.encode_text(self.full)
        intramodal = clip.encode_image(self.images), clip.encode_text(self.full)
        first = self._wise(LossWeights(image_image=0, text_text=0), *image_text)
        return first + self._wise(LossWeights(image_text=0), *intramodal)

    def _wise(self, weights: LossWeights, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return WISELoss(weights=weights)(image, text, *self.labels, self.model.logit_scale).total


def flops(run: Callable[[], Any]) -> int:
    """FLOPs of one call: its matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def measure(architecture: str, batch: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Runs both steps in turn at one caption length: times, speed-up, FLOPs ceiling, share of the ceiling."""
    model = load_model(architecture)
    steps = [Step(model, batch, tokens, twice=twice) for twice in (True, False)]
    counted = [flops(step.backward) for step in steps]
    pair = compare(Program("released", steps[0].run), Program("ours", steps[1].run), repeats=repeats)
    ceiling = counted[0] / counted[1]
    return {
        "tokens": tokens,
        "flops": dict(zip(("released", "ours"), counted, strict=True)),
        "ceiling": ceiling,
        "share_of_ceiling": pair["speedup"] / ceiling,
        **pair,
    }


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=32, help="images and captions per step")
    parser.add_argument("--tokens", type=int, nargs="+", default=[30, 20], help="caption lengths")


def main() -> None:
    """Measures every caption length and writes the figures with their limits."""
    args = arguments("train_step", "a training step against the released code's arithmetic", _options)
    torch.set_num_threads(args.threads)
    architecture, batch, repeats = "ViT-B-32", args.batch, max(args.repeats, 5)
    if args.quick:
        architecture, batch, repeats, args.tokens = "ViT-S-32-alt", 2, 1, args.tokens[:1]
    lengths = {str(n): measure(architecture, batch, n, repeats) for n in args.tokens}
    kept = {}
    for n, found in lengths.items():
        kept[f"{n}: at least {LEAST_SPEEDUP}x"] = found["speedup"] >= LEAST_SPEEDUP
        kept[f"{n}: at least {LEAST_SHARE:.0%} of the ceiling"] = found["share_of_ceiling"] >= LEAST_SHARE
    write(args, {"architecture": architecture, "batch": batch, "by_tokens": lengths}, limits=kept)


if __name__ == "__main__":
    main()
