"""The same files, model and prompts through his2lip, LAION's CLIP_benchmark and PathVLM-LiteBench.

python benchmarks/peers/side_by_side.py [--images 128] [--rounds 5] [--work runs/peers] [--out FILE]

The files are the test split of a generated twin, resized once to the model's input so that no program
resamples them: as shards for his2lip, as WebDataset for CLIP_benchmark, as an image folder for LiteBench.
The model is one ViT-B/32 with random weights, in open_clip's and in transformers' format. Its image
projection is fitted to the twin's train split, so that it predicts all classes. Both peers come from PyPI
into an environment of their own below --work, which sees the libraries of this one, with the older
transformers that LiteBench asks for; their code is not part of this project. Programs run in turn, each in
a process of its own with one thread of torch. Times count from files to predictions, without imports and
the loading of the model, which is stated apart. Predictions are compared patch by patch.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from his2lip.models import DualEncoder
    from his2lip.models.encoder import Precision

ROOT = Path(__file__).resolve().parents[2]
PEERS = (
    "clip-benchmark==1.6.2",
    "pathvlm-litebench==0.14.1",
    "webdataset==1.0.2",
    "braceexpand==0.1.7",
    "transformers==4.57.6",
    "huggingface-hub==0.36.2",
    "tokenizers==0.22.2",
)
TWIN, SIDE, BATCH = "mihic", 224, 32
ARCHITECTURE = "ViT-B-32-quickgelu"
FITTED, RIDGE = 256, 1e-2  # images and ridge of the model's projection

Result = dict[str, Any]
Turn = Callable[[str], Result]  # name of the prompts, "one" or "pool" -> predictions by file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128, help="images of the twin's test split")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"), help="folder of data, models, peers")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/peers/results.json")
    parser.add_argument("--side", choices=SIDES, help="internal: run one program and print its result")
    args = parser.parse_args()
    if args.side:
        serve(args.side, args.work)
        return
    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    python = environment(work)
    prepare(work, args.images)
    programs = [Process(side, sys.executable if side in OURS else python, work) for side in SIDES]
    taken: dict[str, list[Result]] = {side: [] for side in SIDES}
    for _ in range(args.rounds):
        for program in programs:
            taken[program.side].append(program.turn("one"))
    pooled = {program.side: program.turn("pool") for program in programs if program.side in POOLED}
    result = summary(work, taken, pooled, {program.side: program.load_s for program in programs})
    for program in programs:
        program.end()
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def environment(work: Path) -> str:
    """The python of an environment with the peers, without their dependencies, and this one's libraries."""
    place = work / "venv"
    python = place / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
        own = place / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        (own / "his2lip-libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(python)]  # uv may be installed elsewhere
        command = [*pip, "install", "--quiet", "--no-deps", *PEERS]
        subprocess.run(command, check=True)
    return str(python)


def prepare(work: Path, images: int) -> None:
    """Writes the model in two formats, and the same PNG files in three layouts."""
    if (work / "labels.json").is_file() and len(json.loads((work / "labels.json").read_text())) == images:
        return
    for name in ("shards", "images", "wds"):
        shutil.rmtree(work / name, ignore_errors=True)
    (work / "labels.json").unlink(missing_ok=True)
    from PIL import Image

    from his2lip.data.cards import load_card
    from his2lip.data.shards import ShardWriter
    from his2lip.evaluation import PromptSet
    from his2lip.models import load_model, save_checkpoint
    from his2lip.models.transformers_folder import to_transformers_folder
    from his2lip.synthetic.twins import twin_patches

    card = load_card(TWIN)
    prompts = PromptSet.load(card.protocols["default"].prompts).narrow(card.protocols["default"].classes)
    (work / "prompts.json").write_text(json.dumps({c: list(lines) for c, lines in prompts.sentences}))
    if not (work / "model-transformers").is_dir():
        model = load_model(ARCHITECTURE, seed=0)
        fit_projection(model, {name: lines[0] for name, lines in prompts.sentences})
        save_checkpoint(work / "model", model, meta={})
        to_transformers_folder(model, work / "model-transformers")
        _write_vocabulary(work / "model-transformers")
    classes = list(prompts.classes)
    labels: dict[str, str] = {}
    with (
        ShardWriter(work / "shards", card=card, generated=True) as shards,
        tarfile.open(_folder(work / "wds/test") / "0.tar", "w") as tar,
    ):
        for patch in twin_patches(TWIN, scale=20, mapper=_drawer("test")):
            if len(labels) == images:
                break
            if patch.split != "test" or patch.tissue not in classes:
                continue
            key = f"{len(labels):06d}"
            picture = (
                Image.open(io.BytesIO(patch.image))
                .convert("RGB")
                .resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            )
            data = io.BytesIO()
            picture.save(data, "PNG")
            content = data.getvalue()
            shards.add(
                replace(
                    patch,
                    patch_id=f"{TWIN}/{key}.png",
                    image=content,
                    width=SIDE,
                    height=SIDE,
                    sha256=hashlib.sha256(content).hexdigest(),
                )
            )
            for name, part in (
                (f"{key}.png", content),
                (f"{key}.cls", str(classes.index(patch.tissue)).encode()),
            ):
                entry = tarfile.TarInfo(name)
                entry.size = len(part)
                tar.addfile(entry, io.BytesIO(part))
            (_folder(work / "images" / patch.tissue) / f"{key}.png").write_bytes(content)
            labels[key] = patch.tissue
    if len(labels) < images:
        raise SystemExit(f"the twin has only {len(labels)} images in its test split")
    (work / "wds/test/nshards.txt").write_text("1")
    (work / "wds/classnames.txt").write_text("\n".join(classes))
    (work / "labels.json").write_text(json.dumps(labels))


def fit_projection(model: DualEncoder, sentences: dict[str, str]) -> None:
    """Fits the image tower's last matrix, by ridge regression of the class's sentence on FITTED train images.

    A model of random weights alone predicts one class for nearly all images, which would compare little.
    """
    import numpy as np
    import torch

    from his2lip.data.images import decode
    from his2lip.synthetic.twins import twin_patches

    pictures: list[torch.Tensor] = []
    labels: list[str] = []
    for patch in twin_patches(TWIN, scale=20, mapper=_drawer("train")):
        if len(pictures) == FITTED:
            break
        if patch.split == "train" and patch.tissue in sentences:
            pictures.append(model.preprocess(decode(patch.image)))
            labels.append(patch.tissue)
    visual: Any = model.clip.visual
    projection, visual.proj = visual.proj, None
    with torch.no_grad():
        features = torch.cat(
            [model.encode_image(part, normalize=False) for part in torch.stack(pictures).split(BATCH)]
        )
        texts = model.encode_text(list(sentences.values()), normalize=True)
        names = list(sentences)
        wanted = (texts - texts.mean(dim=0))[torch.tensor([names.index(label) for label in labels])]
        x, y = features.double().numpy(), wanted.double().numpy()
        x, scale = x / np.abs(x).max(), np.abs(x).max()
        fitted = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y) / scale
        projection.copy_(torch.from_numpy(fitted).float() / np.abs(fitted).max())
    visual.proj = projection


def his2lip(work: Path, precision: Precision = "fp32") -> Turn:
    """The grid's own path: shards -> embedding cache (empty) -> scores; the pool's from the cache."""
    import torch

    from his2lip.data.shards import open_shards
    from his2lip.evaluation import BenchmarkConfig, EmbeddingCache, PromptSet
    from his2lip.evaluation.grid_cell import CellPlan
    from his2lip.evaluation.grid_plans import plan_cells
    from his2lip.evaluation.scorers import ModelScorer
    from his2lip.models import load_model

    torch.set_num_threads(1)
    model = load_model(str(work / "model"), precision=precision).lowered()
    uri = open_shards(str(work / "shards")).uri
    config = BenchmarkConfig.model_validate({"models": ["tiny"], "datasets": {TWIN: uri}})
    cache = work / f"cache-{precision}"

    def turn(prompts: str) -> Result:
        if prompts == "one":
            shutil.rmtree(cache, ignore_errors=True)
        scorer = ModelScorer("m", model, EmbeddingCache(str(cache)), batch_size=BATCH, threads=1)
        ((plan,), _) = plan_cells(config)
        assert isinstance(plan, CellPlan)
        pool = PromptSet.build(prompts, lines_of(work, prompts))
        scores = scorer.score(replace(plan, prompts=pool)).scores
        keys = [unit.rpartition("/")[2].removesuffix(".png") for unit in plan.selection.unit_ids]
        predicted = [plan.selection.classes[c] for c in scores.predicted.tolist()]
        margins = dict(zip(keys, scores.margins().tolist(), strict=True))
        return {"predicted": dict(zip(keys, predicted, strict=True)), "margins": margins}

    return turn


def clip_benchmark(work: Path) -> Turn:
    """Its own functions: WebDataset -> classifier -> logits, in the order of the files."""
    import torch
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier
    from clip_benchmark.models.open_clip import load_open_clip

    torch.set_num_threads(1)
    model, transform, tokenizer = load_open_clip(f"local-dir:{work / 'model'}", None, None, "cpu")
    model.eval()
    keys = sorted(json.loads((work / "labels.json").read_text()))

    def turn(prompts: str) -> Result:
        templates = work / "templates.json"
        templates.write_text(json.dumps({TWIN: lines_of(work, prompts)}))
        data = build_dataset(
            f"wds/{TWIN}",
            root=str(work / "wds"),
            transform=transform,
            split="test",
            task="zeroshot_classification",
            custom_template_file=str(templates),
        )
        loader = torch.utils.data.DataLoader(data.batched(BATCH), batch_size=None, num_workers=0)
        classifier = zero_shot_classifier(model, tokenizer, data.classes, data.templates, "cpu", amp=False)
        logits, _ = run_classification(model, classifier, loader, "cpu", amp=False)
        predicted = [data.classes[c] for c in logits.argmax(1).tolist()]
        return {"predicted": dict(zip(keys, predicted, strict=True))}

    return turn


def pathvlm_litebench(work: Path) -> Turn:
    """Its own wrapper and scorer, which take one sentence per class."""
    import torch
    from pathvlm_litebench.evaluation import zero_shot_predict
    from pathvlm_litebench.models import CLIPWrapper
    from PIL import Image

    torch.set_num_threads(1)
    model = CLIPWrapper(str(work / "model-transformers"), device="cpu")

    def turn(prompts: str) -> Result:
        lines = lines_of(work, prompts)
        files = sorted((work / "images").glob("*/*.png"))
        texts = model.encode_text([own[0] for own in lines.values()])
        pictures = [Image.open(file).convert("RGB") for file in files]
        images = model.encode_images(pictures, batch_size=BATCH, show_progress=False)
        rows = zero_shot_predict(images, texts, list(lines))
        return {"predicted": {f.stem: row["predicted_label"] for f, row in zip(files, rows, strict=True)}}

    return turn


SIDES: dict[str, Callable[[Path], Turn]] = {
    "his2lip": his2lip,
    "his2lip_bf16": partial(his2lip, precision="bf16"),
    "clip_benchmark": clip_benchmark,
    "pathvlm_litebench": pathvlm_litebench,
}
OURS = ("his2lip", "his2lip_bf16")
POOLED = ("his2lip", "his2lip_bf16", "clip_benchmark")  # that take several sentences per class


def lines_of(work: Path, prompts: str) -> dict[str, list[str]]:
    """The sentences of each class: its whole `pool`, or `one`."""
    pool = json.loads((work / "prompts.json").read_text())
    return {name: lines[: 1 if prompts == "one" else None] for name, lines in pool.items()}


def serve(side: str, work: Path) -> None:
    """Loads one program, then does a turn for each line of the input: the name of the prompts."""
    output, sys.stdout = sys.stdout, sys.stderr  # what the program itself prints is not a result
    start = time.perf_counter()
    turn = SIDES[side](work)
    print(json.dumps({"seconds": time.perf_counter() - start}), file=output, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        found = turn(line.strip())
        print(json.dumps({"seconds": time.perf_counter() - start, **found}), file=output, flush=True)


class Process:
    """A program in a process of its own, which has loaded its model."""

    def __init__(self, side: str, python: str, work: Path) -> None:
        command = [python, str(Path(__file__).resolve()), "--side", side, "--work", str(work)]
        variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if side in OURS:
            variables["PYTHONPATH"] = str(ROOT)
        self.side = side
        self._log = work / f"{side}.log"
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
            env={**os.environ, **variables},
        )
        self.load_s = self._answer()["seconds"]

    def turn(self, prompts: str) -> Result:
        print(f"{self.side}: {prompts}", file=sys.stderr, flush=True)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{prompts}\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Result:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.side} failed:\n{self._log.read_text()[-3000:]}")
        found: Result = json.loads(line)
        return found


def summary(work: Path, taken: dict[str, list[Result]], pooled: dict[str, Result], load_s: Result) -> Result:
    """Accuracy of each program, patches that are predicted otherwise than by his2lip, and times."""
    labels = json.loads((work / "labels.json").read_text())
    programs: Result = {}
    for side, turns in taken.items():
        seconds = [turn["seconds"] for turn in turns]
        programs[side] = {
            "one_sentence": _compared(turns[0], taken["his2lip"][0], labels),
            "median_s": statistics.median(seconds),
            "seconds": seconds,
            "load_s": load_s[side],
        }
        if side in pooled:
            found = _compared(pooled[side], pooled["his2lip"], labels)
            programs[side]["whole_pool"] = {**found, "seconds": pooled[side]["seconds"]}
    return {
        "command": "python benchmarks/peers/side_by_side.py " + " ".join(sys.argv[1:]),
        "peers": list(PEERS),
        "libraries": {name: version(name) for name in ("torch", "open_clip_torch", "transformers")},
        "images": len(labels),
        "files_sha256": hashlib.sha256((work / "wds/test/0.tar").read_bytes()).hexdigest(),
        "model": f"{ARCHITECTURE}, random weights, seed 0, projection fitted to {FITTED} train images",
        "threads": 1,
        "batch": BATCH,
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "programs": programs,
    }


def _compared(found: Result, ours: Result, labels: dict[str, str]) -> Result:
    predicted = found["predicted"]
    other = [key for key in labels if predicted[key] != ours["predicted"][key]]
    return {
        "accuracy": sum(predicted[key] == label for key, label in labels.items()) / len(labels),
        "predicted_otherwise": len(other),
        "largest_margin_of_these": max((ours["margins"][key] for key in other), default=None),
        "classes_predicted": len({*predicted.values()}),
    }


def _write_vocabulary(folder: Path) -> None:
    """Writes CLIP's tokenizer as transformers reads it, from open_clip's copy of it; nothing is fetched."""
    from open_clip.tokenizer import SimpleTokenizer

    own = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in own.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = ["#version: 0.2", *(" ".join(pair) for pair in own.bpe_ranks)]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _drawer(split: str) -> Callable[[Callable[[Any], bytes], Sequence[Any]], Iterator[bytes]]:
    """Draws the images of one split, one at a time; the others are not drawn."""
    return lambda draw, rows: (draw(row) if row.split == split else b"" for row in rows)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    main()
