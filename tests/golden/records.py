"""What the golden records hold, one function for each; `make.py` writes them, `test_golden.py` repeats them.

All imports of his2lip by the golden tests are in this file. Records name no module and no class.

Three things do not have the same last bit on every machine: torch's arithmetic, torch's random weights, and
the pixels of generated patches (float32 matrix products). `machine()` names what decides them. Where it is
the recorded one, they are compared exactly; elsewhere losses to a relative 1e-5 (1e-3 where the generated
pixels differ), and twins by their rows without the images. All else is compared exactly on every machine.
Encoder keys hold the versions of simplejpeg and Pillow: the records fit those of requirements.lock only.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from fork_server import other_ranks
from safetensors.torch import save_file
from threadpoolctl import threadpool_info

from his2lip.config import digest, validate
from his2lip.data.captions.bank import CaptionBank, RowCaptions, Subject
from his2lip.data.cards.card import Card, load_card
from his2lip.data.images.codec import encode_png
from his2lip.data.prepare.dataset import prepare
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.data.stream.augment import PRESETS, with_class_captions
from his2lip.data.stream.order import Plan
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.evaluation.grid import GridResult, run_grid
from his2lip.evaluation.protocols import view_of
from his2lip.loss import WISELoss
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model
from his2lip.models.provenance import read_meta
from his2lip.models.resume import ResumeState, load_resume
from his2lip.serving.calibration import calibrate, calibrated
from his2lip.serving.questions import Question, ask
from his2lip.synthetic.layouts import layout_names, write_layout
from his2lip.synthetic.twins import twin_names, write_twin
from his2lip.training.build import build_model, checkpoint_writer, prepare_process
from his2lip.training.config import TrainConfig
from his2lip.training.loop import fit
from his2lip.training.progress import StepReport
from his2lip.training.run_directory import RunDir
from his2lip.training.run_inputs import identity, open_data
from his2lip.training.source import StreamSource
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.objective import training_objective
from his2lip.tuning.study import open_study

HERE = Path(__file__).parent
RECORDS = HERE / "records"  # what is compared
FILES = HERE / "files"  # what an earlier version wrote and today's has to read

TWIN_SCALE = 0.01  # the smallest: one of each kind
STEPS = 30
_OF_THE_CLOCK = ("train/images_per_second", "train/data_wait")
BASELINES = ("chance", "majority", "mean-colour")
GRID_DATASETS = ("mist", "bcdata")

Tree = dict[str, Any]


# --- the machine -------------------------------------------------------------------------------------------


def machine() -> Tree:
    """What decides the last bits of arithmetic here."""
    blas = sorted({str(pool.get("architecture")) for pool in threadpool_info() if pool["user_api"] == "blas"})
    return {
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "vendor": vendor(),
        "blas": blas,
        "threads": 1,  # of torch, in everything recorded
    }


def vendor() -> str:
    """Who made the processor, for whose products libraries differ even where the instructions are equal."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip()
    return platform.processor()


@contextmanager
def one_thread() -> Iterator[None]:
    """Deterministic torch on one thread inside, as it was outside afterwards."""
    threads = torch.get_num_threads()
    prepare_process(
        validate(TrainConfig, {"data": {"shards": "-"}, "workers": {"threads": 1}}), torch.device("cpu")
    )
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


def hashed(value: Any) -> str:
    """sha256 of a JSON-able value; not the project's own digest, which is itself under test."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- 1: training -------------------------------------------------------------------------------------------


def train_config(shards: Path, *, released: bool = False) -> TrainConfig:
    tree = {
        "data": {
            "shards": str(shards),
            "batch_size": 16,
            "lanes": 4,
            "loader": "local",
            "select": "val",
            "augment": "ihc",
            "decode_threads": 1,
        },
        "loss": {"variant": "released"} if released else {},
        # Small, so that a difference in the last bit does not grow; the released form, whose logits are not
        # normalised, starts far from its minimum and needs the paper's own.
        "optim": {"lr": 2e-5 if released else 1e-4, "steps": STEPS},
        "log_every": 1,
    }
    return validate(TrainConfig, tree)


def train_curve(config: TrainConfig, *, rank: int = 0, world: int = 1) -> Tree:
    """Losses of each step and of the select split at each end of an epoch, and the weights at the end."""
    config, _, bank = open_data(config)
    model = build_model(config, torch.device("cpu"))
    first = model.tensor_digest()
    told: list[StepReport] = []
    source = StreamSource(config, bank, preprocess=model.preprocess, rank=rank, world=world)
    fit(config, model, WISELoss.from_config(config.loss), source, report=told.append, rank=rank, world=world)
    source.close()
    steps = [p.metrics["train/loss"] for p in told]
    select = [p.metrics["select/loss"] for p in told if p.kind == "epoch"]
    return {
        "loss": steps,
        "loss_hex": [value.hex() for value in steps],
        "select_loss": select,
        "select_loss_hex": [value.hex() for value in select],
        "metrics_at_the_end": {k: v for k, v in told[-1].metrics.items() if k not in _OF_THE_CLOCK},
        "first_weights": first,
        "last_weights": model.tensor_digest(),
    }


def training(shards: Path, *, released: bool = False) -> Tree:
    """One process on a generated MIHIC twin."""
    with one_thread():
        return train_curve(train_config(shards, released=released))


def training_on_two_ranks(shards: Path, folder: Path) -> Tree:
    """The same global batches on two gloo processes: what rank 0 (this one) measured, rank 1's weights."""
    with other_ranks(_rank, str(shards), str(folder)):
        _rank(0, str(shards), str(folder))
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    return first | {"other_rank": second["last_weights"]}


def _rank(rank: int, shards: str, folder: str) -> None:
    with one_thread():
        torch.distributed.init_process_group(
            "gloo", f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=120)
        )
        try:
            curve = train_curve(train_config(Path(shards)), rank=rank, world=2)
            Path(folder, f"rank-{rank}.json").write_text(json.dumps(curve))
        finally:
            torch.distributed.destroy_process_group()


# --- 2: datasets -------------------------------------------------------------------------------------------


def write_twins(folder: Path) -> None:
    for name in twin_names():
        write_twin(name, folder / name, seed=0, scale=TWIN_SCALE)


def twins(folder: Path) -> Tree:
    """Of each twin in `folder`: the content digest, and that of its rows without the images."""
    return {name: _dataset(open_shards(folder / name)) for name in twin_names()}


def _dataset(shards: ShardSet) -> Tree:
    info = shards.info
    rows = {split: shards.table(split).drop_columns("sha256").to_pylist() for split in shards.splits}
    return {
        "digest": shards.digest,
        "rows": info.rows,
        "counts": info.counts,
        "roles": info.roles,
        "view": info.view,
        "metadata": hashed(rows),
    }


class Draw:
    """Another square of a real image (scikit-image's FHL2 in colon) at each call, by whole-number steps."""

    def __init__(self) -> None:
        from skimage.data import immunohistochemistry

        self._pixels = np.tile(np.asarray(immunohistochemistry()), (3, 3, 1))
        self._calls = 0

    def __call__(self, side: int, tissue: str | None = None, biomarker: str | None = None) -> np.ndarray:
        self._calls += 1
        room = self._pixels.shape[0] - side + 1
        y, x = self._calls * 7919 % room, self._calls * 104_729 % room
        return self._pixels[y : y + side, x : x + side]


def readers(folder: Path) -> Tree:
    """Content digests of what `prepare` makes of a small tree in each published layout and our own two."""
    found: Tree = {}
    for name in layout_names():
        write_layout(name, folder / name, Draw(), each=1)
        found[name] = _prepared(load_card(name), folder, name)
    splits = {"train": {"role": "train"}, "test": {"role": "report"}}
    draw = Draw()
    names = [
        f"{split}/{label}/case-{case}-1.png"
        for split in splits
        for label in ("lymphoid", "epithelium")
        for case in "ab"
    ]
    for path in [*(f"folder/{n}" for n in names), *(f"manifest/{n}" for n in ("a.png", "b/c.png", "d.png"))]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encode_png(draw(64)))
    own = {"name": "own", "splits": splits}
    options: Tree = {"biomarker": "Ki-67", "case_pattern": "case-(.)"}
    card = Card.model_validate(own | {"reader": "folder", "options": options})
    found["folder"] = _prepared(card, folder, "folder")
    tiled = _prepared(card, folder, "folder", view="tiles(size=32, tissue=0)", into="tiles")
    found["folder, tiled"] = tiled
    (folder / "manifest/manifest.csv").write_text(
        "path,split,tissue,biomarker,label,mpp,case_id\n"
        "a.png,train,tumour,CD3,x,0.5,1\nb/c.png,test,,,y,,2\ngone.png,train,,,,,3\nd.png,nowhere,,,,,4\n"
    )
    found["manifest"] = _prepared(Card.model_validate(own | {"reader": "manifest"}), folder, "manifest")
    return found


def _prepared(card: Card, folder: Path, name: str, *, view: str | None = None, into: str = "") -> Tree:
    out = folder / f"shards-{into or name}"
    report = prepare(card, folder / name, out, view=view)
    counts = {"found": report.found, "read": report.read, "passed_over": dict(report.passed_over)}
    faults = {"quarantined": sorted(key for key, _ in report.quarantined), "left_out": len(report.left_out)}
    return _dataset(open_shards(out)) | counts | faults


# --- 3: the order of data, captions, augmentation ----------------------------------------------------------

_SIZES = [37, 64, 5, 50, 41, 23, 64, 12]  # rows of the row groups
_PLANS: dict[str, Tree] = {
    "as they are": {"batch_size": 16, "lanes": 4, "window": 2},
    "balanced": {"batch_size": 16, "lanes": 4, "window": 2, "balance": 1.0},
    "half balanced, some left out": {"batch_size": 16, "lanes": 4, "window": 2, "balance": 0.5, "keep": True},
    "one lane": {"batch_size": 16, "lanes": 1, "window": 2},
    "eight lanes, another seed": {"batch_size": 16, "lanes": 8, "window": 2, "seed": 7},
    "no window": {"batch_size": 16, "lanes": 4, "window": 0},
    "a wide window": {"batch_size": 16, "lanes": 4, "window": 6},
}


def order() -> Tree:
    """The row numbers of 20 batches of each plan, over the end of an epoch, and what is read for them."""
    rows = sum(_SIZES)
    pairs = np.arange(rows) ** 2 % 11 // 3
    found: Tree = {}
    for name, given in _PLANS.items():
        options = {"seed": 0, **given}
        options["keep"] = np.arange(rows) % 9 != 4 if options.pop("keep", False) else None
        plan = Plan(_SIZES, pairs=pairs, **options)
        assert plan.steps_per_epoch < 20, "the batches span two epochs"
        shares = [plan.share(step, range(plan.lanes)) for step in range(20)]
        reads = plan.reads(3, 20, range(plan.lanes))
        found[name] = {
            "steps_per_epoch": plan.steps_per_epoch,
            "batches": [" ".join(map(str, plan.batch(step).tolist())) for step in range(20)],
            "copies": hashed([share.copies.tolist() for share in shares]),
            "reads": hashed([column.tolist() for column in reads]),
        }
    return found


_PATCHES = [
    ("mihic/train/Tumor/0001-CD3-1-1.png", "Tumor", "CD3"),
    ("mihic/train/Immune cells/0002-D2-40-1-7.png", "Immune cells", "D2-40"),
    ("bci/IHC/train/00002_train_1+.png", None, "HER2"),
    ("own/stroma.png", "Stroma", None),
    ("own/nothing.png", None, None),
]


def draws() -> Tree:
    """Captions and augmentation by (seed, epoch, patch_id)."""
    bank = CaptionBank.templates()
    dropped = with_class_captions(bank.draw, 0.5)
    table = pa.table(
        dict(zip(("patch_id", "tissue", "biomarker"), map(list, zip(*_PATCHES, strict=True)), strict=True))
    )
    by_row = RowCaptions(bank, table)
    captions, changes = {}, {}
    for seed, epoch in ((0, 0), (0, 1), (7, 3)):
        for patch, tissue, biomarker in _PATCHES:
            key = f"{seed}/{epoch}/{patch}"
            pair = (tissue, biomarker)
            captions[key] = [
                draw(seed, epoch, patch, Subject(*pair)) for draw in (bank.draw, dropped, by_row.draw)
            ]
            ihc, turns = (PRESETS[kind].draw(seed, epoch, patch) for kind in ("ihc", True))
            assert ihc.jitter is not None
            changes[key] = {
                "turn": turns.turn,
                "turn_ihc": ihc.turn,
                "box": ihc.box and list(ihc.box),
                "jitter": [float(f"{v:.5e}") for v in (*ihc.jitter.matrix.flat, *ihc.jitter.offset.flat)],
            }
    return {"bank": bank.digest, "captions": captions, "changes": changes}


# --- 4: the grid and the identities ------------------------------------------------------------------------


def golden_model() -> DualEncoder:
    """`tiny` with weights from a bit generator's stream, which are the same on every machine."""
    model = load_model("tiny", seed=0)
    state = model.clip.state_dict()
    stream = np.random.PCG64(np.random.SeedSequence(20261126))
    for name in sorted(state):
        tensor = state[name]
        if name == "logit_scale":
            value = np.float32(2.5)
        elif tensor.ndim < 2:
            value = np.full(tensor.shape, 0.0 if name.endswith("bias") else 1.0, dtype=np.float32)
        else:
            even = (stream.random_raw(tensor.numel()) >> np.uint64(40)).astype(np.float32) * 2**-23 - 1
            fan_in = 2 ** round(np.log2(tensor.numel() / tensor.shape[0]) / 2)  # its square root, by powers
            value = (even / np.float32(fan_in)).reshape(tensor.shape)
        state[name] = torch.from_numpy(np.array(value, dtype=np.float32)).reshape(tensor.shape)
    model.clip.load_state_dict(state)
    return model


def write_checkpoint(folder: Path) -> Path:
    """The committed checkpoint's files, with its weights, which are not committed, beside them."""
    shutil.copytree(FILES / "checkpoint", folder)
    state = {name: tensor.clone() for name, tensor in golden_model().clip.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def grid_config(
    folder: Path,
    checkpoint: Path,
    *,
    datasets: tuple[str, ...] = GRID_DATASETS,
    baselines: tuple[str, ...] = BASELINES,
    protocols: tuple[str, ...] = ("default", "paper"),
) -> BenchmarkConfig:
    """The committed checkpoint and baselines on the committed shards, under two protocols."""
    tree = {
        "name": "golden",
        "models": [{"name": "golden", "path": str(checkpoint)}],
        "datasets": {name: str(FILES / "shards" / name) for name in datasets},
        "protocols": list(protocols),
        "baselines": list(baselines),
        "gpus": 0,
        "cache": str(folder / "cache"),
        "storage": str(folder / "storage"),
    }
    return validate(BenchmarkConfig, tree)


def run_golden_grid(config: BenchmarkConfig) -> GridResult:
    result = run_grid(config)
    assert result.failed == []
    return result


def grid(result: GridResult, config: BenchmarkConfig) -> Tree:
    """Cells' identities, encoders' keys, folders of the cache, and what was computed."""
    rows = [(c.model, c.dataset, c.protocol) for c in result.cells]
    files = sorted(Path(config.folder, "cells").iterdir())
    return {
        "cells": {" ".join(row): c.cell for row, c in zip(rows, result.cells, strict=True)},
        "encoders": {" ".join(row): c.encoder for row, c in zip(rows, result.cells, strict=True)},
        "cell_folders": [path.name for path in files],
        "cell_files": sorted({file.name for path in files for file in path.iterdir()}),
        "cache_folders": cache_folders(Path(config.cache)),
        "computed": {"images": result.counts.images, "sentences": result.counts.sentences},
    }


def cache_folders(cache: Path) -> list[str]:
    """All but what is known of models, whose names have the version of the code, and measured speeds."""
    kinds = [kind for kind in cache.iterdir() if kind.name not in ("models", "rates")]
    return sorted(p.relative_to(cache).as_posix() for kind in kinds for p in kind.iterdir())


def leaderboard(result: GridResult) -> list[dict[str, str]]:
    return read_csv(Path(result.leaderboard))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as source:
        return list(csv.DictReader(source))


def identities(checkpoint: Path) -> Tree:
    """Ids of training runs, of encoders, and of a sweep. No path enters: digests count."""
    bcdata = str(FILES / "shards/bcdata")
    base: Tree = {"data": {"shards": bcdata, "batch_size": 8, "lanes": 2}}
    bank = str(FILES / "captions.json")
    trees: dict[str, Tree] = {
        "defaults": base,
        "a bank": base | {"data": base["data"] | {"captions": bank}},
        "released": base | {"loss": {"variant": "released"}, "model": {"preprocessing": "released"}},
        "fine-tuned": base
        | {"model": {"backbone": str(checkpoint)}, "finetune": {"lora": {"rank": 4}}, "seed": 3},
    }
    runs = {name: _run_identity(tree) for name, tree in trees.items()}
    model = load_model(checkpoint)
    return {
        "runs": runs,
        "encoder": ModelEncoder(model).key,
        "encoder_released": ModelEncoder(model, preprocessing="released").key,
        "sentences": SentenceEncoder(model).key,
        "config": model.config_digest(),
        "preprocess": model.preprocess.digest,
        "sweep": {"study": digest(sweep_identity()), "config": digest(sweep_config().identity())},
    }


def _run_identity(tree: Tree) -> Tree:
    made = identity(*open_data(validate(TrainConfig, tree)))
    return {
        "id": made["id"],
        "config": digest(made["made_of"]["config"]),
        "data": made["made_of"]["data"],
        "captions": made["made_of"]["captions"],
    }


def sweep_config() -> SweepConfig:
    points = [{"loss.weights.image_image": 0.5, "optim.lr": 1e-3}, {"loss.weights.image_image": 0.0}]
    tree = {
        "name": "golden",
        "train": {"data": {"shards": str(FILES / "shards/bcdata"), "batch_size": 4, "lanes": 2}},
        "space": {
            "loss.weights.image_image": {"kind": "uniform", "low": 0.0, "high": 2.0},
            "optim.lr": {"kind": "log", "low": 1e-4, "high": 1e-2},
        },
        "points": points,
        "split": "validation",
    }
    return validate(SweepConfig, tree)


def sweep_identity() -> Tree:
    """What the sweep's study in its database is known by."""
    config = sweep_config()
    return config.identity() | training_objective(config).inputs


# --- 5: files of an earlier version ------------------------------------------------------------------------

RESUME_STEPS = 6  # of the run whose state after 3 is committed
_SMALL = 40  # numbers in a parameter whose moments are committed; the others begin anew


def resume_config() -> TrainConfig:
    tree = {
        "name": "golden",
        "data": {
            "shards": str(FILES / "shards/mist"),
            "select": "select",
            "batch_size": 4,
            "lanes": 2,
            "loader": "local",
            "decode_threads": 1,
        },
        "optim": {"lr": 1e-4, "steps": RESUME_STEPS},
        "checkpoint": {"every_steps": 1},
        "log_every": 1,
    }
    return validate(TrainConfig, tree)


def resume_curve(checkpoint: Path) -> Tree:
    """Losses of the steps after the committed state, from the committed checkpoint's weights."""
    with one_thread():
        config, _, bank = open_data(resume_config())
        model, resume = load_model(checkpoint), load_resume(checkpoint)
        assert resume is not None
        told: list[StepReport] = []
        source = StreamSource(config, bank, preprocess=model.preprocess)
        fit(config, model, WISELoss.from_config(config.loss), source, report=told.append, resume=resume)
        source.close()
    told = [progress for progress in told if progress.step > resume.step]  # not the epoch that it ends
    return {
        "after": resume.step,
        "optimizer": sorted(resume.optimizer),
        "steps": [p.step for p in told],
        "loss": [p.metrics["train/loss"] for p in told],
        "weights": read_meta(checkpoint)["tensor_digest"],
        "loaded": load_model(checkpoint).tensor_digest(),
    }


def captions_file(path: Path) -> Tree:
    """What a saved caption bank holds and draws."""
    bank = CaptionBank.load(path)
    held_out = {f"{t}/{b}": list(lines) for (t, b), lines in bank.held_out.items()}
    draws = [bank.draw(0, epoch, f"own/{epoch}.png", Subject("Tumor", "CD3")) for epoch in range(4)]
    return {"digest": bank.digest, "missing": bank.missing, "held_out": held_out, "draws": draws}


def shards_file(name: str) -> Tree:
    """What committed shards hold, read to the last image."""
    shards = open_shards(FILES / "shards" / name)
    images = [
        row["sha256"] == hashlib.sha256(row["image"]).hexdigest()
        for split in shards.splits
        for batch in shards.iter_rows(split, ["sha256", "image"])
        for row in batch.to_pylist()
    ]
    return _dataset(shards) | {"images_are_whole": all(images)}


def embed_committed(cache: Path, checkpoint: Path) -> tuple[Tree, EmbeddingCache]:
    """Features of MIST's val split, and the cache that served them."""
    store, shards = EmbeddingCache(str(cache)), open_shards(FILES / "shards/mist")
    view = view_of(load_card("mist").protocols["default"])
    encoder = ModelEncoder(load_model(checkpoint), view=view)
    with one_thread():
        found = store.embed(encoder, shards, "val")
    mean = np.abs(found.features).mean(axis=1)
    return {"folder": f"images/{encoder.key}", "mean": [float(f"{v:.6g}") for v in mean]}, store


def question() -> Question:
    """The one that the committed calibration answers: Ki67-positive or negative."""
    return ask(biomarker="Ki67")[-1]


def fit_calibration(checkpoint: Path, cache: Path) -> Any:
    return calibrate(
        load_model(checkpoint), str(FILES / "shards/bcdata"), question(), label="label", cache=str(cache)
    )


def temperature(checkpoint: Path, file: Path) -> float | None:
    """The temperature that the committed calibration gives to its question."""
    return calibrated([question()], load_model(checkpoint), [file])[0].temperature


def flat(side: int, tissue: str | None, biomarker: str | None) -> np.ndarray:
    """Pixels that take few bytes, one pattern for each class."""
    name = f"{tissue}/{biomarker}".encode()
    tone = np.frombuffer(hashlib.sha256(name).digest()[:6], np.uint8).reshape(2, 1, 3)
    return np.ascontiguousarray(np.broadcast_to(np.repeat(tone, side // 2, axis=0), (side, side, 3)))


class Interrupted(Exception):
    """Stops a prepare as a user would."""


def prepare_flat(
    folder: Path, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Prepares a small tree in MIHIC's layout, which is written first, into `out`."""
    write_layout("mihic", folder, flat, each=1)
    for path in folder.rglob("*.png"):
        os.utime(path, (1_700_000_000, 1_700_000_000))  # resumed for the same files only
    report = prepare(load_card("mihic"), folder, out, progress=progress)
    return {"digest": report.info.digest, "read": report.read, "found": report.found}


def study_url(folder: Path, known: Tree) -> str:
    """A study's database as an earlier version left it: its identity is `known`."""
    import optuna

    url = f"sqlite:///{folder}/study.db"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=sweep_config().name, storage=url, direction="maximize")
    study.set_user_attr("identity", known)
    return url


def reopen_study(url: str) -> str:
    """Opens that study for today's configuration; refused where the identity is another."""
    config = sweep_config()
    study = open_study(config, url, inputs=training_objective(config).inputs)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        assert database.execute("select count(*) from studies").fetchone() == (1,)
    return study.study_name


# --- writing those files -----------------------------------------------------------------------------------


def write_files(scratch: Path) -> None:
    """Writes all of `FILES` but the grid's cell and cache, by what his2lip is now."""
    for name in GRID_DATASETS:  # by a seed whose four patches of BCData's validation split fit a temperature
        write_twin(name, FILES / "shards" / name, seed=1, scale=TWIN_SCALE)
    corpus = scratch / "corpus/Tumor"
    corpus.mkdir(parents=True)
    places = ("nests", "sheets", "cords", "glands")
    lines = [
        f"Tumour {p} with {n} CD3-positive lymphocytes." for p in places for n in ("no", "a few", "many")
    ]
    (corpus / "CD3.txt").write_text("\n".join(lines) + "\n")
    CaptionBank.from_folder(scratch / "corpus", missing="template")[0].save(FILES / "captions.json")
    _write_checkpoint(scratch)
    _write_unfinished(scratch)


def _write_checkpoint(scratch: Path) -> None:
    """The JSON files of a run's `last`, and the state after 3 steps of the smaller parameters."""
    config, shards, bank = open_data(resume_config())
    saved: list[tuple[ResumeState, dict[str, float]]] = []
    with one_thread():
        model = golden_model()
        source = StreamSource(config, bank, preprocess=model.preprocess)
        fit(
            config, model, WISELoss.from_config(config.loss), source, report=lambda progress: None,
            save=lambda _, state, metrics, best: saved.append((state, dict(metrics))),
        )  # fmt: skip
        source.close()
    state, metrics = saved[2]
    assert state.step == 3
    small = {n: s for n, s in state.optimizer.items() if all(t.numel() <= _SMALL for t in s.values())}
    state = ResumeState(step=3, optimizer=small, model=state.model, extra=state.extra)
    run = RunDir(scratch / "run")
    # Where the shards were is a part of the provenance: write a place that is nobody's.
    config = config.model_copy(update={"data": config.data.model_copy(update={"shards": "shards/bcdata"})})
    checkpoint_writer(run, config, shards, bank)(golden_model(), state, metrics, False)
    shutil.copytree(run.last, FILES / "checkpoint", ignore=shutil.ignore_patterns("model.safetensors"))
    shutil.copy(run.last / "resume/model.safetensors", FILES / "checkpoint/resume")


def _write_unfinished(scratch: Path) -> None:
    """A prepare that was stopped after the first of its three parts."""

    def stop(done: int, total: int) -> None:
        if done > total // 3:
            raise Interrupted

    try:
        prepare_flat(scratch / "published", FILES / "unfinished", progress=stop)
    except Interrupted:
        (FILES / "unfinished/.lock").unlink(missing_ok=True)
        return
    raise AssertionError("the prepare was to be interrupted")


def write_grid_files(folder: Path, checkpoint: Path) -> None:
    """One finished cell (golden, mist, default), and the cache of a grid of the model on MIST."""
    config = grid_config(folder, checkpoint, datasets=("mist",), baselines=())
    result = run_golden_grid(config)
    cell = next(c for c in result.cells if (c.model, c.dataset, c.protocol) == ("golden", "mist", "default"))
    place = FILES / "cells" / cell.cell
    shutil.copytree(Path(config.folder, "cells", cell.cell), place)
    shutil.copytree(config.cache, FILES / "cache", ignore=shutil.ignore_patterns("rates"))
    for folder in cache_folders(FILES / "cache"):
        for number, part in enumerate(sorted((FILES / "cache" / folder).iterdir())):
            part.rename(part.with_name(f"part-{number}.parquet"))
