"""WISE on a GPU against the naive form, and the CLIP loss against memeff and open_clip: forward and backward.

python benchmarks/speed/gpu_loss.py [--quick] [--sizes 32768 65536] [--d 512] [--tiles 22 24 26 28]

WISE is measured with several sizes of a tile (logits, as powers of two), and against the naive N x N form
where that fits the GPU. The CLIP loss (one-hot targets, temperature 0.07) is that of our tiled form, of
open_clip's ClipLoss, and of memeff (PyPI, Triton) where it is installed. Products are in full float32, and
for the CLIP loss in TF32 too; `error` is the relative distance of a gradient from that in float64.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip
import torch
from _pairs import Program, arguments, gpu, in_turn, whole, write
from torch.nn import functional
from wise_loss import draw, gradients, naive

from his2lip.loss.distributed import Ranks
from his2lip.loss.linear import LinearCrossEntropy, unit_rows
from his2lip.loss.wise import WISELoss

TEMPERATURE = 0.07
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of image and text features


def fits(step: Callable[[], Any]) -> bool:
    """Whether a step runs; that of a Triton kernel may ask for more shared memory than the GPU has."""
    try:
        step()
        return True
    except Exception as error:
        if not isinstance(error, torch.OutOfMemoryError) and type(error).__name__ != "OutOfResources":
            raise
        print(str(error).splitlines()[0], file=sys.stderr)
        return False
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def wise(n: int, d: int, tiles: list[int], device: str, repeats: int) -> dict[str, Any]:
    """WISE with N pairs: the naive form and ours with each size of a tile, in turn."""
    batch = draw(n, d, device)
    forms = {f"tiled 2^{power}": _tiled(max(1, (1 << power) // n)) for power in tiles}
    result: dict[str, Any] = {"naive_fits": fits(lambda: gradients(naive, batch))}
    if result["naive_fits"]:
        plain = [value.cpu() for value in gradients(naive, batch)]
        first = next(iter(forms.values()))
        near = [_gap(a.cpu(), b) for a, b in zip(gradients(first, batch), plain, strict=True)]
        result["relative_difference"] = dict(zip(("value", "image", "text", "scale"), near, strict=True))
        forms = {"naive": naive, **forms}
    programs = [Program(name, partial(whole, gradients, form, batch)) for name, form in forms.items()]
    return result | {"programs": in_turn(programs, repeats=repeats)}


def _tiled(rows: int) -> Callable[..., torch.Tensor]:
    loss = WISELoss(tile=rows)
    return lambda *batch: loss(*batch).total


def clip(n: int, d: int, tile: int, device: str, repeats: int) -> dict[str, Any]:
    """The CLIP loss with N pairs: every program in turn, and how near its gradients are to float64."""
    batch = draw(n, d, device)
    image, text = batch[:2]
    exact = _features_gradients(_ours(n, device, tile, torch.float64), image.double(), text.double())
    of_open_clip = open_clip.ClipLoss()
    losses: dict[str, Loss] = {
        "his2lip": _ours(n, device, tile, torch.float32),
        "open_clip": lambda a, b: of_open_clip(
            functional.normalize(a, dim=1), functional.normalize(b, dim=1), 1 / TEMPERATURE
        ),
    }
    try:
        from memeff import MemoryEfficientCLIPLoss
    except ImportError:
        pass
    else:
        theirs = MemoryEfficientCLIPLoss(temperature=TEMPERATURE, stable=False)
        losses["memeff"] = theirs
        losses["memeff bf16"] = lambda a, b: theirs(a.bfloat16(), b.bfloat16())
    found = {}
    for precision in ("ieee", "tf32"):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        able = {
            name: loss
            for name, loss in losses.items()
            if fits(partial(_features_gradients, loss, image, text))
        }
        errors = {
            name: [_gap(a, b) for a, b in zip(_features_gradients(loss, image, text), exact, strict=True)]
            for name, loss in able.items()
        }
        sides = in_turn(
            [
                Program(name, partial(whole, _features_gradients, loss, image, text))
                for name, loss in able.items()
            ],
            repeats=repeats,
        )
        found[precision] = {"error": errors, "programs": sides, "do_not_fit": sorted({*losses} - {*able})}
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def _ours(n: int, device: str, tile: int, dtype: torch.dtype) -> Loss:
    labels = torch.zeros(3, n, dtype=torch.int64, device=device)
    scale = torch.tensor(1 / TEMPERATURE, device=device, dtype=dtype)
    ranks = Ranks.of(n, torch.device(device))

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        form = LinearCrossEntropy(
            labels, None, tau=1.0, ranks=ranks, dtype=dtype, tile=max(1, (1 << tile) // n)
        )
        return form.between(unit_rows(a), unit_rows(b), scale) / n

    return loss


def _features_gradients(loss: Loss, image: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
    a, b = image.clone().requires_grad_(), text.clone().requires_grad_()
    loss(a, b).backward()
    assert a.grad is not None
    assert b.grad is not None
    return [a.grad, b.grad]


def _gap(found: torch.Tensor, exact: torch.Tensor) -> float:
    exact = exact.double()
    return float((found.double() - exact).norm() / exact.norm())


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[32_768, 65_536], help="pairs")
    parser.add_argument("--d", type=int, default=512, help="features per pair")
    parser.add_argument("--tiles", type=int, nargs="+", default=[22, 24, 26, 28], help="log2 of logits")


def main() -> None:
    """Measures both losses at each size."""
    args = arguments("gpu_loss", "WISE and the CLIP loss on a GPU", _options)
    device = gpu(args)
    if args.quick:
        args.sizes, args.tiles, args.repeats = [512], [14, 16], 1
    torch.set_num_threads(args.threads)
    found = {
        str(n): {
            "wise": wise(n, args.d, args.tiles, device, args.repeats),
            "clip": clip(n, args.d, args.tiles[-2], device, args.repeats),
        }
        for n in args.sizes
    }
    write(args, {"device": device, "d": args.d, "by_pairs": found})


if __name__ == "__main__":
    main()
