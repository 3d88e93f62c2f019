"""An epoch from shards through Ray Data against torch's DataLoader over files, same decoder and cores.

python benchmarks/speed/epoch.py [--quick] [--rates] [--store-mb 100] [--data-ratio 10] [--out FILE]
python benchmarks/speed/epoch.py --kind png --images 50000
python benchmarks/speed/epoch.py --kind derived --images 768

Each turn runs in its own process. The start counts: for the DataLoader its worker processes, for the
stream the shards, the plan and the start of Ray Data. Imports and ray.init do not count: a worker of Ray
Train has them behind it. Both programs give batches of uint8 pixels of 224 px and ids; the stream also
measures what is stained, and draws captions. Files and shards are in the page cache. The stream also runs
without Ray (`loader: local`), which tells what Ray costs or brings, and with captions that do not follow
staining, as MIHIC's released ones: then it measures nothing, as in every epoch but the first where
patches are not cropped.

`--kind jpeg` has JPEG patches of 224 px, at least `--data-ratio` times the object store. `--kind png` has
PNG patches of 128 px, the format of MIHIC, which both programs resize. `--kind derived` has sources of 1,024
px as PNG, prepared twice: as they are, and by `prepare --view "squash(size=224, codec=jpeg)"`. Its programs
are the stream from the one and from the other.

`ray_share` is the share of the epoch's row groups that came through Ray: the rank reads the first ones itself
while Ray's processes start. `without_head` are turns in which Ray reads these too. The waits between batches
are measured over three epochs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import simplejpeg
import torch
from _pairs import RESULTS, Program, arguments, cpu_seconds, in_turn, write
from PIL import Image
from skimage.data import immunohistochemistry

from his2lip.data.captions.bank import CaptionBank, Follow
from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_jpeg, encode_png
from his2lip.data.prepare import prepare
from his2lip.data.shards import open_shards
from his2lip.data.shards.writer import ROW_GROUP_BYTES
from his2lip.data.stream.decode import decode_into
from his2lip.data.stream.train_stream import HEAD_BYTES, StreamOptions, TrainStream
from his2lip.runtime import start_ray, usable_cpus
from his2lip.taxonomy import MIHIC_BIOMARKERS

SIDE, BATCH = 224, 256  # px of the model's input; patches of a batch
# Limits: least rates against the DataLoader and of derived shards, most seconds to the first batch.
RATE, DERIVED, FIRST_S = 0.9, 10.0, 2.0
VIEW = f"squash(size={SIDE}, codec=jpeg)"
EPOCHS, NEAR = 3, 4  # of the turn that measures waits; batches around the end of an epoch that belong to it


@dataclass(frozen=True)
class Kind:
    """Patches of `side` px in a format; `pool` of them differ, and they are repeated under new names."""

    side: int
    suffix: str
    encode: Callable[[np.ndarray], bytes]
    pool: int


KINDS = {
    "jpeg": Kind(SIDE, ".jpg", encode_jpeg, 2048),
    "png": Kind(128, ".png", encode_png, 2048),
    "derived": Kind(1024, ".png", encode_png, 64),
}
LOADER, STREAM, LOCAL = "torch DataLoader", "TrainStream", "TrainStream without Ray"
UNMEASURED = "TrainStream, staining not measured"
CARD = {
    "name": "epoch",
    "reader": "folder",
    "options": {"means": "biomarker", "tissue": "Tumor"},
    "splits": {"train": {"role": "train"}},
    "stain": "DAB",
}


def main() -> None:
    """Writes the data, runs the programs in turn, and writes the result."""
    args = arguments("epoch", "an epoch through Ray Data against torch DataLoader", _options)
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
        return
    if args.out.parent == RESULTS and (args.rates or args.kind != "jpeg"):
        name = "rates" if args.kind == "jpeg" else args.kind
        args.out = args.out.with_name(args.out.name.replace("epoch", f"epoch_{name}"))
    with tempfile.TemporaryDirectory(prefix="his2lip-epoch-") as folder:
        args.data = Path(folder)
        if args.quick:  # else the rank reads everything itself
            args.head_mb = min(args.head_mb, 32)
        setting = {"kind": args.kind, "data_mb": make(args) >> 20, "images": args.images}
        setting |= {"store_mb": args.store_mb, "repeats": args.repeats}
        result, limits = of_derived(args) if args.kind == "derived" else of_epoch(args)
    write(args, setting | result, limits=limits)


def of_epoch(args: Any) -> tuple[dict[str, Any], dict[str, bool]]:
    """The stream, also without Ray and without staining, against the DataLoader, then waits and decoding."""
    turns: dict[str, list[dict[str, Any]]] = {"loader": [], "ray": [], "local": [], "unmeasured": []}
    sides = in_turn(
        [
            Program(LOADER, partial(_kept, turns["loader"], args, "loader")),
            Program(STREAM, partial(_kept, turns["ray"], args, "stream")),
            Program(LOCAL, partial(_kept, turns["local"], args, "stream", loader="local")),
            Program(UNMEASURED, partial(_kept, turns["unmeasured"], args, "stream", staining="ignore")),
        ],
        repeats=args.repeats,
        warmup=0,  # each turn has a process of its own, and the files were just written
    )
    found: dict[str, Any] = {}
    if _measures_waits(args):
        found |= _turn(args, "epochs")
        rate = _turn(args, "decode")
        args.head_mb, before = 0, args.head_mb
        headless = [_turn(args, "stream") for _ in range(min(args.repeats, 3))]
        args.head_mb = before
        found["decode_alone_images_per_s"] = rate["images_per_s"]
        found["without_head"] = {
            key: statistics.median(turn[key] for turn in headless)
            for key in ("seconds", "first_s", "ray_share")
        }
    images = args.images // BATCH * BATCH
    result = {
        "images_per_s": {name: images / side["median_s"] for name, side in sides.items()},
        "rate_against_loader": ratio(sides, LOADER, STREAM),
        "rate_without_ray_against_loader": ratio(sides, LOADER, LOCAL),
        "rate_without_measuring_against_loader": ratio(sides, LOADER, UNMEASURED),
        "first_batch_s": statistics.median(turn["first_s"] for turn in turns["ray"]),
        "ray_share": turns["ray"][0]["ray_share"],
        # Processor time depends less on other work on the machine than the rates do.
        "cpu_s": {
            name: statistics.median(sum(turn["cpu_s"].values()) for turn in own)
            for name, own in turns.items()
        },
        "cpu_s_of_last_turn": {name: own[-1]["cpu_s"] for name, own in turns.items()},
        **found,
        "programs": sides,
    }
    limits = {
        "rate_against_loader": result["rate_against_loader"]["median"] >= RATE,
        "first_batch_s": result["first_batch_s"] <= FIRST_S,
    }
    if args.kind == "jpeg":
        limits["data_over_store"] = args.data_bytes >= args.data_ratio * (args.store_mb << 20)
    if "longest_wait_at_epochs_s" in found:
        limits["no_gap_between_epochs"] = (
            found["longest_wait_at_epochs_s"] <= found["longest_wait_elsewhere_s"]
        )
    return result, limits


def of_derived(args: Any) -> tuple[dict[str, Any], dict[str, bool]]:
    """The stream from derived shards against the same stream from the original ones."""
    turns: dict[str, list[dict[str, Any]]] = {"shards": [], "derived": []}
    names = {"shards": "originals", "derived": "derived shards"}
    sides = in_turn(
        [
            Program(name, partial(_kept, turns[place], args, "stream", shards=place))
            for place, name in names.items()
        ],
        repeats=args.repeats,
        warmup=0,  # each turn has a process of its own, and the files were just written
    )
    result = {
        "view": VIEW,
        "derived_mb": args.derived_bytes >> 20,
        "images_per_s": {
            name: args.images // BATCH * BATCH / side["median_s"] for name, side in sides.items()
        },
        "first_batch_s": {
            name: statistics.median(turn["first_s"] for turn in turns[place]) for place, name in names.items()
        },
        "rate_against_originals": ratio(sides, "originals", "derived shards"),
        "programs": sides,
    }
    return result, {"derived_rate": result["rate_against_originals"]["median"] >= DERIVED}


def ratio(sides: dict[str, Any], base: str, other: str) -> dict[str, Any]:
    """How many times the rate of `base` another program has: by medians, and the least and most of a turn."""
    each = [a / b for a, b in zip(sides[base]["seconds"], sides[other]["seconds"], strict=True)]
    median = sides[base]["median_s"] / sides[other]["median_s"]
    return {"median": median, "spread": [min(each), max(each)]}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=list(KINDS), default="jpeg", help="what the patches are")
    parser.add_argument("--store-mb", type=int, default=100, help="size of Ray's object store")
    parser.add_argument("--data-ratio", type=int, default=10, help="least size of the data, in object stores")
    parser.add_argument(
        "--head-mb",
        type=int,
        default=HEAD_BYTES >> 20,
        help="how much the rank reads itself at the start (head_bytes)",
    )
    parser.add_argument(
        "--rates", action="store_true", help="only the rates: no waits, no turns without head"
    )
    parser.add_argument("--images", type=int, default=None, help="patches (default: what --data-ratio needs)")
    parser.add_argument("--data", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=list(SIDES), default=None, help=argparse.SUPPRESS)
    parser.add_argument("--loader", choices=("ray", "local"), default="ray", help=argparse.SUPPRESS)
    parser.add_argument("--shards", default="shards", help=argparse.SUPPRESS)
    parser.add_argument("--staining", choices=get_args(Follow), default="follow", help=argparse.SUPPRESS)


def make(args: Any) -> int:
    """Writes the patches as files, and prepares them; returns the size of the files in bytes."""
    kind = KINDS[args.kind]
    pool = _pool(kind, 64 if args.quick else kind.pool)
    mean = sum(map(len, pool)) / len(pool)
    if args.images is None:
        args.images = 4096 if args.quick else int(1.02 * args.data_ratio * (args.store_mb << 20) / mean)
    if args.images < (least := BATCH * (NEAR + 2 if _measures_waits(args) else 1)):
        sys.exit(f"{args.images} patches are too few for these measurements: give --images {least} or more")
    for number in range(args.images):
        folder = args.data / "files" / MIHIC_BIOMARKERS[number % len(MIHIC_BIOMARKERS)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}{kind.suffix}").write_bytes(pool[number % len(pool)])
    views = {"shards": None, "derived": VIEW} if args.kind == "derived" else {"shards": None}
    for name, view in views.items():
        prepare(
            Card.model_validate(CARD),
            args.data / "files",
            args.data / name,
            view=view,
            row_group_bytes=(1 << 20) if args.quick else ROW_GROUP_BYTES,
        )
    args.derived_bytes = sum(path.stat().st_size for path in (args.data / "derived").rglob("*.parquet"))
    args.data_bytes = sum(len(pool[number % len(pool)]) for number in range(args.images))
    return int(args.data_bytes)


def _measures_waits(args: Any) -> bool:
    return args.kind == "jpeg" and not args.rates


def _pool(kind: Kind, count: int) -> list[bytes]:
    """Random crops of scikit-image's real IHC image of 512 px, turned and flipped, larger ones enlarged."""
    image, rng = np.asarray(immunohistochemistry()), np.random.default_rng(0)
    side = min(kind.side, 448)
    crops = []
    for _ in range(count):
        y, x = rng.integers(0, 512 - side, 2)
        crop = np.rot90(image[y : y + side, x : x + side], int(rng.integers(4)))
        crop = np.ascontiguousarray(crop[:, ::-1] if rng.integers(2) else crop)
        if side < kind.side:
            crop = np.asarray(Image.fromarray(crop).resize((kind.side, kind.side), Image.Resampling.BICUBIC))
        crops.append(kind.encode(crop))
    return crops


def _turn(
    args: Any, side: str, *, shards: str = "shards", loader: str = "ray", staining: str = "follow"
) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--data", str(args.data), "--kind", args.kind]
    command += ["--store-mb", str(args.store_mb), "--head-mb", str(args.head_mb)]
    command += ["--shards", shards, "--loader", loader, "--staining", staining]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _kept(turns: list[dict[str, Any]], args: Any, side: str, **options: str) -> float:
    """Runs a turn and adds it to `turns`; its seconds."""
    turns.append(_turn(args, side, **options))
    return float(turns[-1]["seconds"])


class Files(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Files decoded as the stream decodes them; the DataLoader's collation stacks them into shared memory."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(str(path) for path in folder.rglob("*.*"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with open(self.paths[index], "rb") as file:
            data = file.read()
        if self.paths[index].endswith(".jpg"):
            return torch.from_numpy(simplejpeg.decode_jpeg(data, colorspace="RGB")), index
        pixels = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
        decode_into(memoryview(data), pixels)
        return torch.from_numpy(pixels), index


def loader_side(args: Any) -> dict[str, Any]:
    """One epoch of a DataLoader with one worker per core."""
    files = Files(args.data / "files")
    before = {who: _used(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)}
    start = time.perf_counter()
    loader = torch.utils.data.DataLoader(
        files, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=usable_cpus(), prefetch_factor=4
    )
    first = 0.0
    for batch in loader:
        first = first or time.perf_counter() - start
        assert batch[0].shape == (BATCH, SIDE, SIDE, 3)
    seconds = time.perf_counter() - start
    own, workers = (_used(who) - used for who, used in before.items())
    return {"seconds": seconds, "first_s": first, "cpu_s": {"this process": own, "workers": workers}}


def _used(who: int) -> float:
    """Seconds of processor time of this process, or of its children that have ended."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def stream_side(args: Any) -> dict[str, Any]:
    """One epoch of the stream; with a Ray that has just started, where it uses Ray."""
    before: dict[int, tuple[str, float]] = {}
    start, *times = _stream_times(args, epochs=1, before=before)
    used: dict[str, float] = {}
    for process, (name, seconds) in cpu_seconds().items():
        used[name] = used.get(name, 0.0) + seconds - before.get(process, ("", 0.0))[1]
    share = _ray_share(args) if args.loader == "ray" else 0.0
    return {"seconds": times[-1] - start, "first_s": times[0] - start, "ray_share": share, "cpu_s": used}


def epochs_side(args: Any) -> dict[str, float]:
    """Waits between the batches of EPOCHS epochs: within NEAR batches of an epoch's end, and elsewhere."""
    _, *times = _stream_times(args, epochs=EPOCHS)
    waits, steps = np.diff(times), len(times) // EPOCHS
    ends = np.arange(1, EPOCHS) * steps
    near = np.min(np.abs(np.arange(len(waits))[:, None] + 1 - ends), axis=1) <= NEAR
    warm = np.arange(len(waits)) >= steps // 2  # before, the stream starts
    return {
        "median_wait_s": float(np.median(waits)),
        "longest_wait_at_epochs_s": float(waits[near].max()),
        "longest_wait_elsewhere_s": float(waits[~near & warm].max()),
    }


def _ray_share(args: Any) -> float:
    """The share of an epoch's row groups that Ray reads."""
    from his2lip.data.stream.ray_reader import head_reads

    groups = open_shards(str(args.data / args.shards)).row_groups("train")
    with _stream(args) as stream:
        plan = stream.plan
    read = [groups[number] for number in plan.reads(0, plan.steps_per_epoch, range(plan.lanes)).group]
    return 1 - head_reads(read, args.head_mb << 20) / len(read)


def _stream(args: Any) -> TrainStream:
    bank = CaptionBank.templates(args.staining)
    uri = str(args.data / args.shards)
    options = StreamOptions(
        seed=0,
        batch_size=BATCH,
        image_size=SIDE,
        lanes=8,
        window=2,
        augment=False,
        loader=args.loader,
        head_bytes=args.head_mb << 20,
    )
    return TrainStream(uri, "train", bank, options)


def _stream_times(args: Any, *, epochs: int, before: dict[int, Any] | None = None) -> list[float]:
    """Times of the start and of each batch, in seconds. `before` gets the processor time used until then."""
    if args.loader == "ray":
        import ray.data  # noqa: F401  # as ray.train has done in a worker before its stream starts

        start_ray(object_store_memory=args.store_mb << 20)
    if before is not None:
        before |= cpu_seconds()
    times = [time.perf_counter()]
    with _stream(args) as stream:
        for batch in stream.batches(0, epochs * stream.steps_per_epoch):
            times.append(time.perf_counter())
            assert batch.images.shape == (BATCH, 3, SIDE, SIDE)
    return times


def decode_side(args: Any) -> dict[str, float]:
    """Only decoding: from bytes in memory into one buffer, one thread per core."""
    paths = sorted((args.data / "files").rglob("*.*"))[:4096]
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
