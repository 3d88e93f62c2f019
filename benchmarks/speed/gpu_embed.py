"""Embedding a split on a GPU, from shards to features, against only encoding the same crops there.

python benchmarks/speed/gpu_embed.py [--quick] [--images 20000] [--models ViT-B-32 ViT-B-16]

`bare` encodes crops, uint8, that are on the GPU already; `ours` is the path of a grid task (`encode_rows`):
reading, sha256, decoding on `--decode-threads` threads, and the copies to and from the GPU. Limit: 90 % of
the bare rate. `decode` only decodes, on the same threads: it bounds `ours` where a tower is faster. `nvjpeg`
decodes the same files on the GPU (torchvision); the difference of its pixels from ours is in the result. The
images are noise over blocks, with files as large as those of stained tissue (some 25 KB). `--quick` runs on
the CPU where there is no GPU.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _pairs import Program, arguments, gpu, in_turn, write
from grid_cores import write_images
from torchvision.io import decode_jpeg

from his2lip.data.images import decode
from his2lip.data.shards import ShardSet, open_shards
from his2lip.evaluation.decoding import decoded, read_images
from his2lip.evaluation.embeddings import encode_rows
from his2lip.evaluation.encoders import ModelEncoder, inference
from his2lip.models import load_model

LEAST = 0.9


def programs(name: str, shards: ShardSet, batch: int, threads: int, device: str) -> list[Program]:
    """The programs that are compared, for one model; each goes through all images."""
    model = load_model(name, device=device, precision="bf16").lowered()
    encoder = ModelEncoder(model)
    rows = list(range(len(shards.table("test", ["sha256"]))))
    first = read_images(shards, "test", rows[:batch])
    (inputs,) = decoded(encoder, first, batch_size=batch, threads=threads)
    there = torch.from_numpy(inputs.crops).to(device).permute(0, 3, 1, 2).contiguous()

    def bare() -> None:
        with inference(model):
            for _ in range(0, len(rows), batch):
                features = model.encode_image(model.preprocess.normalize(there), normalize=False)
            features.cpu()

    def ours() -> None:
        for _ in encode_rows(encoder, shards, "test", rows, batch_size=batch, threads=threads):
            pass

    def only_decoding() -> None:
        for _ in decoded(encoder, read_images(shards, "test", rows), batch_size=batch, threads=threads):
            pass

    return [Program("bare", bare), Program("ours", ours), Program("decode", only_decoding)]


def on_the_gpu(shards: ShardSet, count: int) -> tuple[Program, dict[str, float]]:
    """Decoding by nvJPEG, and by how much its pixels differ from ours (of 255)."""
    files = [image for _, row in read_images(shards, "test", range(count)) for image in [row["image"]]]
    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]

    def nvjpeg() -> None:
        for start in range(0, len(encoded), 256):
            decode_jpeg(encoded[start : start + 256], device="cuda")

    few = decode_jpeg(encoded[:64], device="cuda")
    gaps = [
        np.abs(a.cpu().numpy().transpose(1, 2, 0).astype(int) - decode(data).astype(int))
        for a, data in zip(few, files[:64], strict=True)
    ]
    difference = {
        "largest": float(max(g.max() for g in gaps)),
        "mean": float(np.mean([g.mean() for g in gaps])),
    }
    return Program("nvjpeg", nvjpeg), difference


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=256, help="as `batch_size: auto` on a GPU")
    parser.add_argument("--decode-threads", type=int, default=16)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])


def main() -> None:
    """Measures each model, and decoding on the GPU where there is one."""
    args = arguments("gpu_embed", "embedding a split on a GPU against only encoding", _options)
    device = gpu(args)
    if args.quick:
        args.images, args.batch, args.repeats, args.models = 48, 16, 1, ["tiny"]
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {}
    kept: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "shards", args.images, noise=12)
        shards = open_shards(str(Path(folder) / "shards"))
        for name in args.models:
            sides = in_turn(
                programs(name, shards, args.batch, args.decode_threads, device), repeats=args.repeats
            )
            rates = {side: args.images / figures["median_s"] for side, figures in sides.items()}
            share = rates["ours"] / rates["bare"]
            found[name] = {"images_s": rates, "share_of_bare": share, "programs": sides}
            kept[f"{name}: at least {LEAST:.0%} of the bare rate"] = share >= LEAST
        decoding: dict[str, Any] = {}
        if device == "cuda":
            count = min(args.images, 5_000)
            program, difference = on_the_gpu(shards, count)
            figures = in_turn([program], repeats=args.repeats)["nvjpeg"]
            decoding = {"images_s": count / figures["median_s"], "pixel_difference": difference, **figures}
    setting = {"device": device, "images": args.images, "batch": args.batch}
    setting["decode_threads"] = args.decode_threads
    write(args, setting | {"models": found, "nvjpeg": decoding}, limits=kept)


if __name__ == "__main__":
    main()
