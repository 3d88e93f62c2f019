"""Checkpoints: a directory of weights, configuration, tokenizer and provenance that open_clip can load."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from his2lip.config import sealed
from his2lip.errors import CheckpointError, ModelError
from his2lip.files import file_digest, to_disk, writing
from his2lip.models.architecture import HF_TEXT_FOLDER, build_clip
from his2lip.models.encoder import DualEncoder, Precision, architecture, plain_state, tensor_digest
from his2lip.models.preprocess import Preprocess
from his2lip.models.provenance import (
    COPY,
    FORMAT,
    META,
    current_folder,
    previous_folder,
    read_json,
    read_meta,
    read_steady,
    similarity_of,
)
from his2lip.models.remote_code import refuse_programs
from his2lip.models.resume import FOLDER as RESUME_FOLDER
from his2lip.models.resume import ResumeState, save_resume
from his2lip.models.tokenizer import build_tokenizer, clip_vocabulary
from his2lip.models.trained_on import RECORD, RECORDED, TrainingRecord
from his2lip.models.weights import Tensors, load_weights
from his2lip.resources import code_version

WEIGHTS, OPEN_CLIP = "model.safetensors", "open_clip_config.json"
OURS = "his2lip"  # key of OPEN_CLIP in a checkpoint, which open_clip does not read


def save_checkpoint(
    folder: str | Path,
    model: DualEncoder,
    *,
    meta: Mapping[str, Any],
    trained_on: TrainingRecord | None = None,
    resume: ResumeState | None = None,
) -> Path:
    """Writes `model` into `folder`, completely or not at all; an existing checkpoint is replaced.

    `meta` is what the run knows (resolved config, label vocabularies, data digest, step, metrics), JSON-able.
    Tensor digest, tokenizer and code version are added to it. `trained_on` is None for a model whose training
    data are not recorded. Returns the folder. Raises ModelError for a model that only its authors' package
    can build, and StorageError where the disk is full.
    """
    if "package" in model.config:
        what = f"'{model.name}' runs in its authors' package, so it cannot be stored as a checkpoint"
        raise ModelError(what, key=model.name, fix="use it frozen, by its name")
    state = _own_storage(plain_state(model.clip))
    with writing("a checkpoint", folder), replacing(Path(folder)) as new:
        save_file(state, new / WEIGHTS, metadata={"format": "pt"})
        _write_json(new / OPEN_CLIP, _open_clip_config(model))
        _save_text_side(new, model)
        known = {key: value for key, value in meta.items() if key != RECORDED}
        if trained_on is not None:
            known[RECORDED] = trained_on.summary()
            (new / RECORD).write_bytes(trained_on.data)
        known["files"] = _digests(new)
        _write_json(new / META, sealed(_provenance(model, state) | known))
        if resume is not None:
            save_resume(new / RESUME_FOLDER, resume)
    return Path(folder)


def load_checkpoint(folder: str | Path, *, precision: Precision = "fp32") -> DualEncoder:
    """The model in `folder`, on the CPU, in evaluation mode. Raises CheckpointError where it is damaged.

    A run may replace the checkpoint meanwhile.
    """
    return read_steady(Path(folder), lambda: _load(current_folder(Path(folder)), precision))


def _load(folder: Path, precision: Precision) -> DualEncoder:
    meta = read_meta(folder)
    refuse_programs(folder)
    _check_files(folder, meta.get("files", {}))
    config, preprocess = _settings(folder / OPEN_CLIP)
    clip = build_clip(config, folder=folder, weights=folder / WEIGHTS)
    state = _read_tensors(folder / WEIGHTS)
    load_weights(clip, state, where=folder / WEIGHTS)
    found = tensor_digest(state)
    if found != meta.get("tensor_digest"):
        what = f"the weights are not the ones that {META} describes"
        raise CheckpointError(what, where=folder / WEIGHTS, key="tensor_digest", fix=COPY)
    _check_vocabulary(folder, meta)
    model = DualEncoder(
        clip,
        name=meta.get("name", str(folder)),
        config=config,
        preprocess=preprocess,
        tokenizer=build_tokenizer(config, folder),
        precision=precision,
        similarity=similarity_of(meta, where=folder / META),
    )
    model.read_digest = found
    _check_recorded(model, meta, folder / OPEN_CLIP)
    return model.eval()


def copy_checkpoint(folder: str | Path, to: Path) -> None:
    """Copies a checkpoint without the state to resume from. A run may replace it meanwhile."""

    def copy() -> None:
        with replacing(to) as new:
            ignored = shutil.ignore_patterns(RESUME_FOLDER)
            shutil.copytree(current_folder(Path(folder)), new, ignore=ignored, dirs_exist_ok=True)

    read_steady(Path(folder), copy)


def _digests(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of the files in `folder` that have no digest of their own: the text side's."""
    others = (WEIGHTS, OPEN_CLIP, RECORD)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in others)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def _check_files(folder: Path, expected: Mapping[str, str]) -> None:
    """Raises CheckpointError for a missing or changed file of the tokenizer or of the text tower."""
    for name, known in expected.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"this checkpoint has no {name}", where=folder, key=name, fix=COPY)
        if file_digest(path) != known:
            what = f"{name} is not the one that {META} describes"
            raise CheckpointError(what, where=folder, key=name, fix=COPY)


def _check_recorded(model: DualEncoder, meta: Mapping[str, Any], where: Path) -> None:
    """Raises CheckpointError where architecture or preprocessing were edited after the save."""
    found = {"config_digest": model.config_digest(), "preprocess_digest": model.preprocess.digest}
    for key, value in found.items():
        if meta.get(key, value) != value:
            what = f"{where.name} is not the one that {META} describes"
            raise CheckpointError(what, where=where, key=key, fix=COPY)


def _settings(path: Path) -> tuple[dict[str, Any], Preprocess]:
    """Architecture and preprocessing from `open_clip_config.json`."""
    tree = read_json(path)
    try:
        return tree["model_cfg"], Preprocess.from_open_clip(tree["preprocess_cfg"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{path.name} cannot be used: {error!r}"
        raise CheckpointError(what, where=path.parent, key=path.name) from None


def _provenance(model: DualEncoder, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    simple = isinstance(model.tokenizer.tokenizer, SimpleTokenizer)
    return {
        "format": FORMAT,
        "name": model.name,
        "similarity": model.similarity,
        "tensor_digest": tensor_digest(state),
        "config_digest": model.config_digest(),
        "preprocess_digest": model.preprocess.digest,
        "tokenizer": {"kind": "clip", "sha256": _vocabulary_digest()} if simple else {"kind": "huggingface"},
        "code_version": code_version(),
    }


def _open_clip_config(model: DualEncoder) -> dict[str, Any]:
    return {
        "model_cfg": architecture(model.config),
        "preprocess_cfg": model.preprocess.to_open_clip(),
        OURS: {"similarity": model.similarity},  # for `hf-hub:`, which does not read his2lip.json
    }


def _save_text_side(folder: Path, model: DualEncoder) -> None:
    """The tokenizer's files, and the configuration that a Hugging Face tower would request from the hub."""
    if not isinstance(model.tokenizer.tokenizer, SimpleTokenizer):
        model.tokenizer.tokenizer.save_pretrained(str(folder))
    tower = getattr(model.clip, "text", None)
    if isinstance(tower, HFTextEncoder):
        tower.config.save_pretrained(str(folder / HF_TEXT_FOLDER))


def _check_vocabulary(folder: Path, meta: Mapping[str, Any]) -> None:
    """CLIP's tokenizer is part of open_clip: the tokens are the same only while its vocabulary is."""
    expected = meta.get("tokenizer", {}).get("sha256")
    if expected is not None and expected != _vocabulary_digest():
        what = "the CLIP vocabulary of this open_clip is not the checkpoint's"
        raise CheckpointError(what, where=folder, key="tokenizer", fix="install the open_clip that wrote it")


def _vocabulary_digest() -> str:
    return hashlib.sha256(clip_vocabulary().read_bytes()).hexdigest()


def _own_storage(state: Mapping[str, torch.Tensor]) -> Tensors:
    """CPU tensors without shared storage (tied embeddings share it, and safetensors refuses them)."""
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return out


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary directory beside `folder` that takes its place when the block ends without an error.

    The new files are on the disk before the old ones are removed: a loss of power leaves one of them whole.
    Where `folder` is a symbolic link, what it leads to is replaced, and the link stays.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:8]
    new = folder.parent / f".{folder.name}.{unique}.tmp"
    new.mkdir()
    try:
        yield new
        for weights in new.rglob("*.safetensors"):  # safetensors lets only their owner read them
            with suppress(OSError):  # of a file system without permissions
                weights.chmod(new.stat().st_mode & 0o666)
        to_disk(*new.rglob("*"), new)
        old = previous_folder(folder)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            if old.exists():  # NFS keeps a file that another process has open
                os.rename(old, folder.parent / f".{folder.name}.{unique}.old.tmp")
            os.rename(folder, old)
        os.rename(new, folder)
        to_disk(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _read_tensors(path: Path) -> Tensors:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError("this checkpoint has no weights", where=path, key=path.name) from None
    except (SafetensorError, OSError) as error:
        what = f"the weights cannot be read: {error}"
        raise CheckpointError(what, where=path, key=path.name, fix="copy the checkpoint again") from None


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
