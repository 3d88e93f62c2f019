"""WISE forward and backward: the memory-linear path against the naive N x N form.

Limits (N = 8,192, D = 512, float32, 2 CPU threads): at most 1.2x the time and 10 % of the peak memory.
The naive form is a careful direct implementation: three N x N products (image-text, which also gives the
other direction by its transpose; image-image; text-text), soft targets, and log-softmax by autograd.
"""

from __future__ import annotations

import argparse

import torch
from _pairs import Program, arguments, compare, write
from torch.nn import functional

from his2lip.loss.wise import WISELoss

TIME_LIMIT, MEMORY_LIMIT = 1.2, 0.10


def naive(
    image: torch.Tensor,
    text: torch.Tensor,
    tissue: torch.Tensor,
    biomarker: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """The default WISE loss, directly from its formula; features (N, D), labels (N,), log-space scale."""
    same_tissue = tissue[:, None] == tissue[None, :]
    same_pair = same_tissue & (biomarker[:, None] == biomarker[None, :])
    targets = functional.softmax(same_tissue.float() + same_pair.float(), dim=1)
    x, c = functional.normalize(image, dim=1), functional.normalize(text, dim=1)
    logits = scale.exp() * x @ c.T

    def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
        return -(targets * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()

    image_text = 0.5 * (cross_entropy(logits) + cross_entropy(logits.T))
    return image_text + 0.5 * cross_entropy(x @ x.T) + 0.5 * cross_entropy(c @ c.T)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this script."""
    parser.add_argument("--n", type=int, default=None, help="pairs (default 8192; 1024 with --quick)")
    parser.add_argument("--d", type=int, default=512, help="features per pair (default 512)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


def main() -> None:
    """Draws one batch, records how much both forms differ, then times them in turn."""
    args = arguments(
        "wise_loss", "the WISE loss, forward and backward: memory-linear against naive", add_sizes
    )
    torch.set_num_threads(args.threads)
    n = args.n or (1024 if args.quick else 8192)
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, args.d, generator=generator).to(args.device) for _ in range(2))
    tissue, biomarker = (
        torch.randint(0, classes, (n,), generator=generator).to(args.device) for classes in (7, 12)
    )
    loss = WISELoss()
    gradients: dict[str, list[torch.Tensor]] = {}

    def step(name: str) -> None:
        leaves = [image.clone(), text.clone(), torch.tensor(2.6592, device=args.device)]
        x, c, scale = (leaf.requires_grad_() for leaf in leaves)
        if name == "naive":
            total = naive(x, c, tissue, biomarker, scale)
        else:
            total = loss(x, c, tissue, biomarker, scale).total
        total.backward()
        if name not in gradients:
            gradients[name] = [total.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    step("naive")
    step("linear")
    differences = [
        float((a - b).norm() / b.norm()) for a, b in zip(gradients["linear"], gradients["naive"], strict=True)
    ]
    pair = compare(
        Program("naive", lambda: step("naive")),
        Program("linear", lambda: step("linear")),
        repeats=args.repeats,
    )
    named = dict(zip(("value", "image", "text", "logit_scale"), differences, strict=True))
    result = {"n": n, "d": args.d, "device": args.device, "relative_difference": named, **pair}
    # At --quick sizes the logits fit in one tile, so the memory limit is not checked.
    limits = {"time": pair["time_ratio"] <= TIME_LIMIT, "memory": pair["memory_ratio"] <= MEMORY_LIMIT}
    write(args, result, limits={} if args.quick else limits)


if __name__ == "__main__":
    main()
