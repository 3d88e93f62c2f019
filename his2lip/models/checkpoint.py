"""Checkpoints: a directory that open_clip reads as it is, with its provenance and the state to go on from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import his2lip
from his2lip.errors import CheckpointError, ModelError
from his2lip.models.build import HF_TEXT_FOLDER, build_clip, build_tokenizer, clip_vocabulary, load_weights
from his2lip.models.encoder import DualEncoder, Precision, architecture, plain_state, tensor_digest
from his2lip.models.preprocess import Preprocess
from his2lip.models.provenance import FORMAT, META, former, is_checkpoint, read_json, read_meta, settled
from his2lip.models.resume import ResumeState, load_resume, save_resume

__all__ = [
    "ResumeState",
    "is_checkpoint",
    "load_checkpoint",
    "load_resume",
    "read_meta",
    "save_checkpoint",
    "settled",
]

WEIGHTS, OPEN_CLIP = "model.safetensors", "open_clip_config.json"


def save_checkpoint(
    folder: str | Path,
    model: DualEncoder,
    *,
    meta: Mapping[str, Any],
    resume: ResumeState | None = None,
) -> Path:
    """Writes `model` into `folder`, all of it or nothing; a checkpoint that stands there is replaced.

    `meta` is what the run knows (resolved config, label vocabularies, data digest, step, metrics), JSON-able;
    tensor digest, tokenizer and code version are added here. Returns the folder. Raises ModelError for a
    model that only its authors' package can build.
    """
    if "package" in model.config:
        what = f"'{model.name}' runs in its authors' package, so that no checkpoint can hold it"
        raise ModelError(what, mend="use it frozen, by its name")
    state = _own_storage(plain_state(model.clip))
    with _replacing(Path(folder)) as new:
        save_file(state, new / WEIGHTS, metadata={"format": "pt"})
        _write_json(new / OPEN_CLIP, _open_clip_config(model))
        _save_text_side(new, model)
        _write_json(new / META, _provenance(model, state) | dict(meta))
        if resume is not None:
            save_resume(new / "resume", resume)
    return Path(folder)


def load_checkpoint(folder: str | Path, *, precision: Precision = "fp32") -> DualEncoder:
    """The model in `folder`, on the CPU, for evaluation. Raises CheckpointError where it is not whole."""
    folder = settled(Path(folder))
    meta = read_meta(folder)
    config, preprocess = _settings(folder / OPEN_CLIP)
    clip = build_clip(config, folder=folder)
    state = _read_tensors(folder / WEIGHTS)
    load_weights(clip, state, where=folder / WEIGHTS)
    if tensor_digest(state) != meta.get("tensor_digest"):
        raise CheckpointError(
            f"the weights are not the ones that {META} was written for",
            where=folder / WEIGHTS,
            mend="copy the whole checkpoint directory again",
        )
    _check_vocabulary(folder, meta)
    model = DualEncoder(
        clip,
        name=meta.get("name", str(folder)),
        config=config,
        preprocess=preprocess,
        tokenizer=build_tokenizer(config, folder),
        precision=precision,
        similarity=meta.get("similarity", "cosine"),
    )
    return model.eval()


def _settings(path: Path) -> tuple[dict[str, Any], Preprocess]:
    """Architecture and preprocessing out of `open_clip_config.json`."""
    tree = read_json(path)
    try:
        return tree["model_cfg"], Preprocess.from_open_clip(tree["preprocess_cfg"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path.name} cannot be used: {error!r}", where=path.parent) from None


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
        "code_version": his2lip.__version__,
    }


def _open_clip_config(model: DualEncoder) -> dict[str, Any]:
    return {"model_cfg": architecture(model.config), "preprocess_cfg": model.preprocess.to_open_clip()}


def _save_text_side(folder: Path, model: DualEncoder) -> None:
    """The tokenizer's files, and the configuration that a Hugging Face tower would ask the hub for."""
    if not isinstance(model.tokenizer.tokenizer, SimpleTokenizer):
        model.tokenizer.tokenizer.save_pretrained(str(folder))
    tower = getattr(model.clip, "text", None)
    if isinstance(tower, HFTextEncoder):
        tower.config.save_pretrained(str(folder / HF_TEXT_FOLDER))


def _check_vocabulary(folder: Path, meta: Mapping[str, Any]) -> None:
    """CLIP's tokenizer comes from open_clip: the same tokens only while its vocabulary is the same."""
    wanted = meta.get("tokenizer", {}).get("sha256")
    if wanted is not None and wanted != _vocabulary_digest():
        raise CheckpointError(
            "this open_clip carries another CLIP vocabulary than the checkpoint's", where=folder
        )


def _vocabulary_digest() -> str:
    return hashlib.sha256(clip_vocabulary().read_bytes()).hexdigest()


def _own_storage(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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
def _replacing(folder: Path) -> Iterator[Path]:
    """A temporary directory beside `folder` that takes its place when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    new.mkdir()
    try:
        yield new
        old = former(folder)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, old)
        os.rename(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError("this checkpoint has no weights", where=path) from None
    except (SafetensorError, OSError) as error:
        mend = "copy the checkpoint again"
        raise CheckpointError(f"the weights cannot be read: {error}", where=path, mend=mend) from None


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
