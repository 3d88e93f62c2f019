"""WISE forward and backward: the memory-linear path against the naive N x N form.

Limits (N = 8,192, D = 512, float32, 2 CPU threads): at most 1.2x the time and 10 % of the peak memory.
The naive form is a careful direct implementation: three N x N products (image-text, which also gives the
other direction by its transpose; image-image; text-text), soft targets, and log-softmax by autograd.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _pairs import Program, arguments, compare, write
from torch.nn import functional

from his2lip.loss.wise import WISELoss

TIME_LIMIT, MEMORY_LIMIT = 1.2, 0.10
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
Form = Callable[..., torch.Tensor]  # of the batch and the logit scale (log space)


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


def linear() -> Form:
    """The memory-linear form of the same loss."""
    loss = WISELoss()
    return lambda *batch: loss(*batch).total


def draw(n: int, d: int, device: str) -> Batch:
    """Random image and text features (N, D), and tissue types and biomarkers (N,)."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, d, generator=generator).to(device) for _ in range(2))
    tissue, biomarker = (
        torch.randint(0, classes, (n,), generator=generator).to(device) for classes in (7, 12)
    )
    return image, text, tissue, biomarker


def gradients(form: Form, batch: Batch) -> list[torch.Tensor]:
    """The loss, and its gradients by the image features, the text features and the logit scale."""
    image, text, tissue, biomarker = batch
    leaves = [image.clone(), text.clone(), torch.tensor(2.6592, device=image.device)]
    x, c, scale = (leaf.requires_grad_() for leaf in leaves)
    total = form(x, c, tissue, biomarker, scale)
    total.backward()
    return [total.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


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
    batch = draw(n, args.d, args.device)
    forms = {"naive": naive, "linear": linear()}
    values = {name: gradients(form, batch) for name, form in forms.items()}
    differences = [
        float((a - b).norm() / b.norm()) for a, b in zip(values["linear"], values["naive"], strict=True)
    ]

    def step(name: str) -> None:
        gradients(forms[name], batch)

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
