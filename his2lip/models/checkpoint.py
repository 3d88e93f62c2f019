"""Checkpoints: a directory that open_clip reads as it is, with its provenance and the state to go on from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import his2lip
from his2lip.errors import CheckpointError, ModelError
from his2lip.models.architecture import (
    HF_TEXT_FOLDER,
    build_clip,
    build_tokenizer,
    clip_vocabulary,
    load_weights,
)
from his2lip.models.encoder import DualEncoder, Precision, architecture, plain_state, tensor_digest
from his2lip.models.preprocess import Preprocess
from his2lip.models.provenance import FORMAT, META, former, is_checkpoint, read_json, read_meta, settled

_OPTIMIZER, _MODEL, _STATE = "optimizer.safetensors", "model.safetensors", "state.json"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """The state of a run after `step` steps.

    optimizer  for each parameter by its name, what the optimizer keeps of it (`optimizer_state`)
    model      what the checkpoint holds folded into other tensors (`adapters.unmerged_state`)
    extra      whatever else the loop keeps, JSON-able

    The learning rate and every random number are functions of the step, so schedule and generators have no
    state to keep.
    """

    step: int
    optimizer: dict[str, Tensors]
    model: Tensors = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def save_resume(folder: Path, state: ResumeState) -> None:
    """Writes `optimizer.safetensors`, `model.safetensors` and `state.json` into a new `folder`."""
    folder.mkdir(parents=True)
    moments = {f"{name}/{slot}": t for name, slots in state.optimizer.items() for slot, t in slots.items()}
    for file, tensors in ((_OPTIMIZER, moments), (_MODEL, state.model)):
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, folder / file)
    tree = {"step": state.step, "extra": state.extra}
    (folder / _STATE).write_text(json.dumps(tree, indent=1), encoding="utf-8")


def load_resume(folder: str | Path) -> ResumeState | None:
    """The state in `folder`/resume, or None where it carries none. Raises CheckpointError if broken."""
    folder = Path(folder) / "resume"
    if not folder.is_dir():
        return None
    try:
        optimizer: dict[str, Tensors] = {}
        for key, tensor in load_file(folder / _OPTIMIZER).items():
            name, _, slot = key.rpartition("/")
            optimizer.setdefault(name, {})[slot] = tensor
        tree = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        return ResumeState(
            step=tree["step"], extra=tree["extra"], optimizer=optimizer, model=load_file(folder / _MODEL)
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise broken_state(str(error), folder) from None


def optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensors]:
    """What `optimizer` keeps of each parameter of `module`, by the parameter's name there."""
    return {name: dict(optimizer.state[p]) for name, p in module.named_parameters() if p in optimizer.state}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, saved: Mapping[str, Tensors]
) -> None:
    """The inverse of `optimizer_state`; a parameter that has had no gradient has no state.

    Raises CheckpointError for a name that is not trained here, or tensors of another shape.
    """
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    known = {name: p for name, p in module.named_parameters() if p in trained}
    for name, slots in saved.items():
        if name not in known:
            raise broken_state(f"it is of another model, which has '{name}'")
        if any(t.ndim and t.shape != known[name].shape for t in slots.values()):
            raise broken_state(f"its tensors for '{name}' have another shape")
    names = {p: name for name, p in known.items()}
    order = [names[p] for group in optimizer.param_groups for p in group["params"]]
    state = {number: saved[name] for number, name in enumerate(order) if name in saved}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def broken_state(why: str, where: Path | None = None) -> CheckpointError:
    """The one sentence for a state that a run cannot go on from."""
    fix = "take an earlier checkpoint, or start anew with --fresh"
    return CheckpointError(f"the state to go on from cannot be read: {why}", where=where, fix=fix)


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
        raise ModelError(what, fix="use it frozen, by its name")
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
            fix="copy the whole checkpoint directory again",
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
        fix = "copy the checkpoint again"
        raise CheckpointError(f"the weights cannot be read: {error}", where=path, fix=fix) from None


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
