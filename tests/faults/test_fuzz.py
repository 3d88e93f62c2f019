"""Mutated configurations, odd addresses and damaged files end in one sentence, not in a traceback or a hang.

Each test has a few seeded cases in `make test` and many in `make faults`.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from attempts import SLOWEST_S, Attempt, attempt, bounded_memory, check
from model_factory import CAPTIONS, dual, hf_dual
from mutations import ADDRESSES, damaged, mutated
from PIL import Image
from reliability_page import Record
from training_data import write_small_shards

from his2lip import resources
from his2lip.config import load
from his2lip.data.images.codec import decode, encode_jpeg, encode_png
from his2lip.data.shards.reader import open_shards
from his2lip.data.shards.schema import SCHEMA
from his2lip.errors import His2lipError, ImageError
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.grid_plans import plan_cells
from his2lip.evaluation.grid_task import Work, score_models
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import load_model
from his2lip.models.provenance import read_meta
from his2lip.training.config import TrainConfig
from his2lip.training.local import run_in_process
from his2lip.tuning.config import SweepConfig

TRAIN = """
name: fuzzed
seed: 0
model: {backbone: tiny, precision: fp32}
data:
  shards: shards
  split: train
  select: select
  captions: templates
  batch_size: 16
  lanes: 4
  balance: 0.5
  augment: {turns: true}
loss:
  weights: {image_text: 1.0, image_image: 0.5, text_text: 0.5}
  tau: 1.0
optim: {lr: 1.0e-3, weight_decay: 0.01, warmup: 0.1, epochs: 1, grad_clip: 1.0}
checkpoint: {select_by: loss}
workers: {num: 1, threads: 1}
storage: runs
"""
TUNE = """
name: fuzzed
seed: 0
train:
  model: {backbone: tiny}
  data: {shards: shards, batch_size: 16, lanes: 4}
  optim: {lr: 4.0e-3, epochs: 1}
space:
  loss.weights.image_image: {kind: uniform, low: 0.0, high: 2.0}
  loss.tau: {kind: log, low: 0.1, high: 2.0}
  data.window: {kind: int, low: 1, high: 4}
  loss.normalize: {kind: choice, values: [true, false]}
points:
  - {loss.weights.image_image: 0.5, loss.tau: 1.0}
trials: 8
max_concurrent: 2
sampler: {kind: tpe, startup: 4}
scheduler: {kind: asha, grace: 1, reduction: 2}
split: val
storage: runs
"""
BENCHMARK = """
name: fuzzed
models: [tiny, {name: again, path: tiny, trained_on: [mihic]}]
datasets: {mihic: shards}
protocols: [default]
baselines: [chance, majority]
prompts: {mihic: tissue}
precision: fp32
batch_size: 16
cpus: 1
threads: 1
seed: 0
cache: cache
storage: runs
"""
CARD = """
name: mine
title: Two classes
reader: folder
options: {case_pattern: "(.)"}
source: {record: none, access: local}
licence: {name: mine, attribution: true, commercial_use: false}
organ: [breast]
magnification: 20
mpp: 0.5
mpp_basis: published
stain: DAB
published: {unit: patch, images: 4, counts: {train: {all: 2}}}
classes: {positive: [pos], negative: []}
splits:
  train: {role: train, groups: file}
  select: {role: select, origin: ours}
  test: {role: report}
carve:
  - {source: train, into: select, fraction: 0.5, by: file, seed: 0}
protocols:
  default:
    split: test
    label: label
    classes: {negative: [negative], positive: [positive]}
    prompts: staining
    basis: ours
"""


FEW = 3  # configurations in `make test`


def cases(few: int, many: int) -> pytest.MarkDecorator:
    """`few` cases in `make test`, `many` in `make faults`."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=_FAULTS)])


_DAMAGED = "with flipped, lost, foreign or exchanged bytes"
_FAULTS = [pytest.mark.faults, pytest.mark.timeout(1200)]


def seeds(kind: str, count: int) -> Iterator[random.Random]:
    return (random.Random(f"{kind} {i}") for i in range(count))


def summary(attempts: list[Attempt]) -> str:
    """The outcomes and the longest time, for the page."""
    counts = Counter(attempt.ended for attempt in attempts)
    longest = max(attempt.seconds for attempt in attempts)
    return ", ".join(f"{n} {ended}" for ended, n in sorted(counts.items())) + f"; longest {longest:.1f} s"


def in_bounds(work: Callable[[], Any]) -> str | None:
    """What went wrong in `work`, or None: it may raise His2lipError."""
    try:
        with bounded_memory():
            work()
    except His2lipError as error:
        return None if "\n" not in str(error) else f"several lines: {error}"
    except BaseException as error:
        import traceback

        return "".join(traceback.format_exception(error))
    return None


@pytest.fixture
def small(here: Path) -> Path:
    """The current folder with small shards in `shards`."""
    write_small_shards(here / "shards", train=32, select=16)
    return here


def _train(file: Path) -> None:
    run_in_process(load(TrainConfig, file), report=lambda report: True)


def _sample(file: Path) -> None:
    """Draws a point of the space, as the sweep would."""
    import optuna

    config = load(SweepConfig, file)
    space = {key: dimension.distribution() for key, dimension in config.space.items()}
    optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask(space)


def _score(file: Path) -> None:
    config = load(BenchmarkConfig, file)
    plans, _ = plan_cells(config)
    list(score_models(config.models, Work(plans, config)))


@pytest.mark.parametrize(
    ("command", "text", "work"),
    [("train", TRAIN, _train), ("tune", TUNE, _sample), ("benchmark", BENCHMARK, _score)],
    ids=["train", "tune", "benchmark"],
)
@cases(FEW, 100)
def test_a_mutated_configuration_runs_or_is_refused(
    small: Path, command: str, text: str, work: Callable[[Path], None], count: int, record: Record
) -> None:
    (small / "whole.yaml").write_text(text)
    assert attempt(command, "whole.yaml").ended == "accepted"
    ends, faults = [], []
    for i, rng in enumerate(seeds(command, count)):
        file = small / f"{i}.yaml"
        file.write_bytes(mutated(text, rng))
        ends.append(attempt(command, str(file)))
        faults.append((f"{command} {file}", ends[-1].fault))
        if ends[-1].ended == "accepted" and count > FEW:  # takes seconds
            faults.append((f"work of {file}", in_bounds(lambda file=file: work(file))))
    check(faults)
    how = f"`{command}` of a YAML file with up to three changed values, keys, lines, characters or bytes"
    record(f"mutated config of `{command}`", how, count, summary(ends))


@cases(3, 100)
def test_a_mutated_card_prepares_or_is_refused(here: Path, count: int, record: Record) -> None:
    for name in ("train/pos/a.png", "train/negative/b.png", "test/positive/c.png", "test/negative/d.png"):
        path = here / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.full((16, 16, 3), 7, np.uint8)))
    (here / "whole.yaml").write_text(CARD)
    whole = attempt("data", "prepare", "whole.yaml", "--root", "root", "--out", "out/whole")
    assert whole.ended == "done", whole.said
    ends = []
    for i, rng in enumerate(seeds("card", count)):
        file = here / f"{i}.yaml"
        file.write_bytes(mutated(CARD, rng))
        ends.append(attempt("data", "prepare", str(file), "--root", "root", "--out", f"out/{i}"))
        ends.append(attempt("data", "check", str(file)))
    check((f"{i // 2}.yaml", end.fault) for i, end in enumerate(ends))
    record("mutated dataset card", "`data prepare` and `data check` of the card", count, summary(ends))


@cases(3, 100)
def test_a_mutated_prompt_file_answers_or_is_refused(here: Path, count: int, record: Record) -> None:
    text = (resources.root() / "benchmarks/prompts/staining.yaml").read_text(encoding="utf-8")
    (here / "a.png").write_bytes(encode_png(np.full((16, 16, 3), 7, np.uint8)))
    whole = attempt("classify", "a.png", "--model", "tiny", "--prompts", "staining")
    assert whole.ended == "done", whole.said
    ends = []
    for i, rng in enumerate(seeds("prompts", count)):
        file = here / f"{i}.yaml"
        file.write_bytes(mutated(text, rng))
        ends.append(attempt("classify", "a.png", "--model", "tiny", "--prompts", str(file)))
    check((f"{i}.yaml", end.fault) for i, end in enumerate(ends))
    record("mutated prompt file", "`classify --prompts FILE`", count, summary(ends))


@pytest.mark.parametrize("place", ["storage", "model", "tracking", "shards"])
@cases(3, 25)
def test_an_odd_address_is_refused_within_seconds(
    small: Path, monkeypatch: pytest.MonkeyPatch, place: str, count: int, record: Record
) -> None:
    Path("train.yaml").write_text(TRAIN)
    Path("benchmark.yaml").write_text(BENCHMARK)
    addresses = [a for a in ADDRESSES if place != "tracking" or "\0" not in a]  # no environment can have it
    ends, faults = [], []
    for address in random.Random(place).sample(addresses, count):
        quoted = yaml.safe_dump(address, width=10**6).removesuffix("...\n").strip()
        arguments = {
            "storage": ["benchmark", "benchmark.yaml", f"storage={quoted}"],
            "model": ["models", "show", "--", address],
            "tracking": ["train", "train.yaml"],
            "shards": ["train", "train.yaml", f"data.shards={quoted}"],
        }
        with monkeypatch.context() as patch:
            if place == "tracking":
                patch.setenv("MLFLOW_TRACKING_URI", address)
            ends.append(attempt(*arguments[place]))
        faults.append((f"{place} {address!r:.200}", ends[-1].fault))
    check(faults)
    record(f"odd address or path ({place})", "empty, foreign, broken or unreachable", count, summary(ends))


@cases(5, 100)
def test_a_damaged_shard_is_refused_or_reads_as_it_was(small: Path, count: int, record: Record) -> None:
    whole = rows_of(small / "shards")
    files = sorted(p.relative_to(small / "shards") for p in (small / "shards").rglob("*") if p.is_file())
    refused, faults, ends = 0, [], []
    for i, rng in enumerate(seeds("shards", count)):
        folder, file = small / f"damaged{i}", rng.choice(files)
        shutil.copytree(small / "shards", folder)
        (folder / file).write_bytes(damaged((folder / file).read_bytes(), rng))

        def read(folder: Path = folder) -> None:
            assert rows_of(folder) == whole, "other rows than were written, without an error"

        faults.append((f"{i} {file}", in_bounds(read)))
        ends.append(attempt("data", "check", str(folder)))
        faults.append((f"data check {folder}", ends[-1].fault))
        refused += ends[-1].ended in ("refused", "problems")
        shutil.rmtree(folder)
    check(faults)
    how = f"a file of a prepared dataset {_DAMAGED}; `data check`, and all rows read"
    record("damaged shard", how, count, summary(ends) + "; no other row than was written")


def rows_of(folder: Path) -> list[Any]:
    shards = open_shards(folder)
    return [
        shards.info,
        {split: shards.table(split, SCHEMA.names).to_pylist() for split in shards.splits},
    ]


@cases(5, 100)
def test_a_damaged_checkpoint_is_refused_or_loads_as_it_was(here: Path, count: int, record: Record) -> None:
    made = {"native": dual(), "hugging face": hf_dual(here / "hf")}
    wanted = {}
    for name, model in made.items():
        save_checkpoint(here / name, model, meta={"metrics": {"select/macro_f1": 0.5}, "step": 7})
        wanted[name] = identity(here / name)
    ends, faults = [], []
    for i, rng in enumerate(seeds("checkpoints", count)):
        name = rng.choice(["native", "native", "hugging face"])
        folder = here / f"damaged{i}"
        shutil.copytree(here / name, folder)
        file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        if rng.random() < 0.1:
            file.unlink()
        else:
            file.write_bytes(damaged(file.read_bytes(), rng))

        def read(folder: Path = folder, name: str = name) -> None:
            found = identity(folder)
            changed = [key for key, value in wanted[name].items() if found[key] != value]
            assert not changed, f"{changed} changed without an error"

        ends.append(attempt("models", "show", str(folder)))
        faults.append((f"{i} models show {file}", ends[-1].fault))
        faults.append((f"{i} {name} {file.relative_to(folder)}", in_bounds(read)))
        shutil.rmtree(folder)
    check(faults)
    how = f"a file of a checkpoint lost, or {_DAMAGED}; `models show`, and loaded"
    record("damaged checkpoint", how, count, summary(ends) + "; no other model than was saved")


def identity(folder: Path) -> dict[str, Any]:
    """All that a checkpoint's files decide."""
    model = load_model(str(folder))
    pixels = torch.rand(1, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = model.encode_image(pixels).tolist(), model.encode_text(CAPTIONS).tolist()
    return {"meta": read_meta(folder), "features": features, "preprocess": model.preprocess}


def pictures(folder: Path, pixels: np.ndarray) -> list[bytes]:
    """The same pixels in each format."""
    folder.mkdir()
    image = Image.fromarray(pixels)
    for name, options in {
        "a.tif": {},
        "b.tif": {"compression": "tiff_lzw"},
        "c.webp": {},
        "d.bmp": {},
        "e.png": {"exif": Image.Exif()},
        "f.jpg": {"progressive": True},
    }.items():
        image.save(folder / name, **options)
    found = [path.read_bytes() for path in sorted(folder.iterdir())]
    return [*found, encode_png(pixels), encode_jpeg(pixels)]


@cases(12, 200)
def test_a_damaged_image_is_read_or_quarantined(
    here: Path, real_ihc: np.ndarray, count: int, record: Record
) -> None:
    whole = pictures(here / "whole", real_ihc[:64, :64])
    card = CARD.split("carve:")[0].replace("options:", "#")
    (here / "card.yaml").write_text(card.replace("  select: {role: select, origin: ours}\n", ""))
    suffixes = (".png", ".jpg", ".tif", ".webp", ".bmp")
    faults, read, slowest = [], 0, 0.0
    for i, rng in enumerate(seeds("images", count)):
        data = damaged(rng.choice(whole), rng)
        file = here / "root/train/positive" / f"{i:03d}{rng.choice(suffixes)}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        try:
            with bounded_memory():
                shape = decode(data).shape
        except ImageError:
            continue
        except BaseException as error:
            faults.append((file.name, repr(error)))
            continue
        read += 1
        faults.append((file.name, None if shape[2] == 3 else f"shape {shape}"))
    check(faults)
    prepared = attempt("data", "prepare", "card.yaml", "--root", "root", "--out", "out")
    assert prepared.ended == "done", prepared.said
    info = open_shards(here / "out").info
    assert info.rows == read, "as many as decode"
    assert len(info.quarantined) == count - read
    answered = attempt("classify", "root", "--model", "tiny", "--csv", "rows.csv")
    assert answered.ended == "done", answered.said
    assert len(Path("rows.csv").read_text().splitlines()) == read + 1
    slowest = max(prepared.seconds, answered.seconds)
    assert slowest < SLOWEST_S + 0.2 * count
    record(
        "damaged image",
        f"PNG, JPEG, TIFF, WebP and BMP {_DAMAGED}; decoded, `data prepare`, `classify`",
        count,
        f"{read} read, {count - read} quarantined; both commands done",
    )
