"""An epoch from shards through Ray Data against torch's DataLoader over files, same decoder and cores.

python benchmarks/speed/epoch.py [--quick] [--store-mb 100] [--data-ratio 10] [--out FILE]

Each turn runs in its own process. The start counts: for the DataLoader its worker processes, for the stream
the shards, the plan and the start of Ray Data. Imports and ray.init do not count. Both programs give batches
of uint8 pixels and ids; the stream also draws captions. The data is at least `--data-ratio` times the object
store. Files and shards are in the page cache.

`ray_share` is the share of the epoch's row groups that came through Ray: the rank reads the first ones itself
while Ray's processes start. `without_head` are turns in which Ray reads these too. The waits between batches
are measured over three epochs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from _pairs import Program, arguments, compare, write
from skimage.data import immunohistochemistry

from his2lip.data.captions.bank import CaptionBank
from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_jpeg
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ROW_GROUP_BYTES, ShardWriter
from his2lip.data.stream.train_stream import HEAD_BYTES, StreamOptions, TrainStream
from his2lip.runtime import start_ray, usable_cpus
from his2lip.taxonomy import MIHIC_BIOMARKERS, TISSUES

SIDE, BATCH = 224, 256  # px; patches of a batch
POOL = 2048  # distinct images, repeated under new names
RATE, FIRST_S = 0.8, 2.0  # limits: least rate against the DataLoader, most seconds to the first batch


def main() -> None:
    """Writes the data, runs both programs in turn, then measures waits and decoding; writes the result."""
    args = arguments("epoch", "an epoch through Ray Data against torch DataLoader", _options)
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
        return
    with tempfile.TemporaryDirectory(prefix="his2lip-epoch-") as folder:
        args.data = Path(folder)
        args.head_mb = (
            min(args.head_mb, 32) if args.quick else args.head_mb
        )  # else the rank reads everything itself
        size = make(args)
        turns: list[dict[str, float]] = []
        pair = compare(
            Program("torch DataLoader", lambda: _turn(args, "loader")["seconds"]),
            Program("TrainStream", lambda: _kept(turns, _turn(args, "stream"))),
            repeats=args.repeats,
        )
        waits, rate = _turn(args, "epochs"), _turn(args, "decode")
        args.head_mb = 0
        headless = [_turn(args, "stream") for _ in range(min(args.repeats, 3))]
    images = args.images // BATCH * BATCH
    result = {
        "images": args.images,
        "data_mb": size >> 20,
        "store_mb": args.store_mb,
        "images_per_s": {name: images / side["median_s"] for name, side in pair["programs"].items()},
        "decode_alone_images_per_s": rate["images_per_s"],
        "rate_against_loader": pair["speedup"],
        "first_batch_s": statistics.median(turn["first_s"] for turn in turns[1:]),
        "ray_share": turns[0]["ray_share"],
        "without_head": {key: statistics.median(turn[key] for turn in headless) for key in headless[0]},
        **waits,
        **pair,
    }
    limits = {
        "rate_against_loader": pair["speedup"] >= RATE,
        "first_batch_s": result["first_batch_s"] <= FIRST_S,
        "data_over_store": result["data_mb"] >= args.data_ratio * args.store_mb,
        "no_gap_between_epochs": waits["longest_wait_at_epochs_s"] <= waits["longest_wait_elsewhere_s"],
    }
    write(args, result, limits=limits)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store-mb", type=int, default=100, help="size of Ray's object store")
    parser.add_argument("--data-ratio", type=int, default=10, help="least size of the data, in object stores")
    parser.add_argument(
        "--head-mb",
        type=int,
        default=HEAD_BYTES >> 20,
        help="how much the rank reads itself at the start (head_bytes)",
    )
    parser.add_argument("--images", type=int, default=None, help="patches (default: what --data-ratio needs)")
    parser.add_argument("--data", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=list(SIDES), default=None, help=argparse.SUPPRESS)


def make(args: Any) -> int:
    """Writes the same patches as files and as shards; returns their size in bytes."""
    pool = _jpegs(512 if args.quick else POOL)
    mean = sum(map(len, pool)) / len(pool)
    if args.images is None:
        args.images = 4096 if args.quick else int(1.02 * args.data_ratio * (args.store_mb << 20) / mean)
    row_group = (1 << 20) if args.quick else ROW_GROUP_BYTES
    files = args.data / "files"
    files.mkdir()
    card = Card.model_validate({"name": "epoch", "reader": "folder", "splits": {"train": {"role": "train"}}})
    with ShardWriter(args.data / "shards", card=card, row_group_bytes=row_group) as shards:
        for number in range(args.images):
            data = pool[number % len(pool)]
            (files / f"{number:06d}.jpg").write_bytes(data)
            shards.add(
                Patch(
                    patch_id=f"epoch/{number:06d}",
                    image=data,
                    dataset="epoch",
                    split="train",
                    width=SIDE,
                    height=SIDE,
                    tissue=TISSUES[number % len(TISSUES)],
                    biomarker=MIHIC_BIOMARKERS[number % len(MIHIC_BIOMARKERS)],
                )
            )
    return sum(len(pool[number % len(pool)]) for number in range(args.images))


def _jpegs(count: int) -> list[bytes]:
    """Random crops of scikit-image's real IHC image, flipped and turned, as JPEG of quality 90."""
    image, rng = np.asarray(immunohistochemistry()), np.random.default_rng(0)
    crops = []
    for _ in range(count):
        y, x = rng.integers(0, 512 - SIDE, 2)
        crop = np.rot90(image[y : y + SIDE, x : x + SIDE], rng.integers(4))
        crops.append(encode_jpeg(crop[:, ::-1] if rng.integers(2) else crop))
    return crops


def _turn(args: Any, side: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--data", str(args.data)]
    command += ["--store-mb", str(args.store_mb), "--head-mb", str(args.head_mb)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _kept(turns: list[dict[str, float]], turn: dict[str, float]) -> float:
    turns.append(turn)
    return turn["seconds"]


class Files(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """JPEG files decoded by simplejpeg; the DataLoader's collation stacks them into shared memory."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(str(path) for path in folder.iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with open(self.paths[index], "rb") as file:
            return torch.from_numpy(simplejpeg.decode_jpeg(file.read(), colorspace="RGB")), index


def loader_side(args: Any) -> dict[str, float]:
    """One epoch of a DataLoader with one worker per core."""
    files = Files(args.data / "files")
    start = time.perf_counter()
    loader = torch.utils.data.DataLoader(
        files, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=usable_cpus(), prefetch_factor=4
    )
    first = 0.0
    for batch in loader:
        first = first or time.perf_counter() - start
        assert batch[0].shape == (BATCH, SIDE, SIDE, 3)
    return {"seconds": time.perf_counter() - start, "first_s": first}


def stream_side(args: Any) -> dict[str, float]:
    """One epoch of the stream, with a Ray that has just started."""
    start, *times = _stream_times(args, epochs=1)
    return {"seconds": times[-1] - start, "first_s": times[0] - start, "ray_share": _ray_share(args)}


def epochs_side(args: Any) -> dict[str, float]:
    """Waits between the batches of three epochs: within four batches of an epoch's end, and elsewhere."""
    _, *times = _stream_times(args, epochs=3)
    waits = np.diff(times)
    ends = np.arange(1, 3) * (len(times) // 3)
    near = np.min(np.abs(np.arange(len(waits))[:, None] + 1 - ends), axis=1) <= 4
    warm = (
        np.arange(len(waits)) >= len(times) // 6
    )  # the first half epoch belongs to the start, not to the steady state
    return {
        "median_wait_s": float(np.median(waits)),
        "longest_wait_at_epochs_s": float(waits[near].max()),
        "longest_wait_elsewhere_s": float(waits[~near & warm].max()),
    }


def _ray_share(args: Any) -> float:
    """The share of an epoch's row groups that Ray reads."""
    from his2lip.data.stream.ray_reader import head_reads

    with _stream(args) as stream:
        groups = stream.reads(0, stream.steps_per_epoch)
    return 1 - head_reads(groups, args.head_mb << 20) / len(groups)


def _stream(args: Any) -> TrainStream:
    bank = CaptionBank.templates()
    uri = str(args.data / "shards")
    options = StreamOptions(
        seed=0,
        batch_size=BATCH,
        image_size=SIDE,
        lanes=8,
        window=2,
        augment=False,
        head_bytes=args.head_mb << 20,
    )
    return TrainStream(uri, "train", bank, options)


def _stream_times(args: Any, *, epochs: int) -> list[float]:
    """Times of the start and of each batch, in seconds."""
    start_ray(object_store_memory=args.store_mb << 20)
    times = [time.perf_counter()]
    with _stream(args) as stream:
        for batch in stream.batches(0, epochs * stream.steps_per_epoch):
            times.append(time.perf_counter())
            assert batch.images.shape == (BATCH, 3, SIDE, SIDE)
    return times


def decode_side(args: Any) -> dict[str, float]:
    """Only decoding: from bytes in memory into one buffer, one thread per core."""
    paths = sorted((args.data / "files").iterdir())[:4096]
    encoded = [path.read_bytes() for path in paths]
    out = np.empty((BATCH, SIDE, SIDE, 3), dtype=np.uint8)

    def decode(numbers: range) -> None:
        for number in numbers:
            simplejpeg.decode_jpeg(encoded[number], colorspace="RGB", buffer=out[number % BATCH])

    with ThreadPoolExecutor(usable_cpus()) as pool:
        list(pool.map(decode, _ranges(len(encoded))))
        start = time.perf_counter()
        list(pool.map(decode, _ranges(len(encoded))))
    return {"images_per_s": len(encoded) / (time.perf_counter() - start)}


def _ranges(count: int, length: int = 32) -> Iterator[range]:
    return (range(start, min(count, start + length)) for start in range(0, count, length))


SIDES = {"loader": loader_side, "stream": stream_side, "epochs": epochs_side, "decode": decode_side}

if __name__ == "__main__":
    main()
