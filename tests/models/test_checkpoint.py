"""Checkpoints: exact round trips, loading by open_clip without his2lip, and refusal of damaged ones."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from meanwhile import meanwhile
from model_factory import CAPTIONS, hf_cache, hf_config, native_config, wordpiece_folder
from safetensors.torch import load_file, save_file
from small_disk import needs_mount, small_disk
from torch.utils._python_dispatch import TorchDispatchMode

from his2lip.config import sealed
from his2lip.errors import CheckpointError, ModelError
from his2lip.models.architecture import build_clip
from his2lip.models.checkpoint import (
    OPEN_CLIP,
    copy_checkpoint,
    load_checkpoint,
    replacing,
    save_checkpoint,
)
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model
from his2lip.models.preprocess import Preprocess
from his2lip.models.provenance import (
    META,
    current_folder,
    is_checkpoint,
    previous_folder,
    read_meta,
    read_steady,
)
from his2lip.models.registered import training_record
from his2lip.models.resume import ResumeState, load_resume, optimizer_state, restore_optimizer
from his2lip.models.tokenizer import build_tokenizer
from his2lip.models.trained_on import TrainingRecord
from his2lip.resources import code_version


def dual(config: dict, *, size: int = 32, tokenizer: Path | None = None, seed: int = 1) -> DualEncoder:
    return DualEncoder(
        build_clip(config, seed=seed),
        name="small",
        config=config,
        preprocess=Preprocess(size=(size, size), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
        tokenizer=build_tokenizer(config, tokenizer),
        similarity="dot",
    ).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(
        tmp_path / "run" / "best", dual(native_config()), meta={"step": 7, "metrics": {"f1": 0.5}}
    )


def features(model: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    size = model.preprocess.size
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(images, model.tokenize(CAPTIONS[:2]))


def test_a_checkpoint_that_its_run_replaces_meanwhile_is_read_and_copied_whole(tmp_path: Path) -> None:
    """As a benchmark or `models promote` of a run that is at work."""
    made = [
        save_checkpoint(tmp_path / f"made-{step}", dual(native_config(), seed=step), meta={"step": step})
        for step in (1, 2)
    ]
    best = Path(shutil.copytree(made[0], tmp_path / "best"))
    wanted = {step: dual(native_config(), seed=step).tensor_digest() for step in (1, 2)}
    steps = itertools.cycle(made)

    def replace() -> None:
        with replacing(best) as new:
            shutil.copytree(next(steps), new, dirs_exist_ok=True)
        time.sleep(0.05)

    with meanwhile(replace):
        for number in range(15):
            assert load_checkpoint(best).tensor_digest() in wanted.values()
            copy_checkpoint(best, copy := tmp_path / f"copy-{number}")
            assert load_checkpoint(copy).tensor_digest() == wanted[read_meta(copy)["step"]]
        assert all(is_checkpoint(best) for _ in range(20_000))


def test_a_checkpoint_that_is_replaced_by_another_one_and_by_its_equal_is_read_again(tmp_path: Path) -> None:
    best = tmp_path / "best"
    made = [
        save_checkpoint(tmp_path / f"made-{step}", dual(native_config(), seed=step), meta={"step": step})
        for step in (1, 2)
    ]

    def put(checkpoint: Path) -> None:
        with replacing(best) as new:
            shutil.copytree(checkpoint, new, dirs_exist_ok=True)

    def read() -> tuple[int, bytes]:
        step = read_meta(best)["step"]
        if len(tries) == 0:
            put(made[1])
        tries.append((best / "model.safetensors").read_bytes())
        if len(tries) == 1:
            put(made[0])
        return step, tries[-1]

    tries: list[bytes] = []
    put(made[0])
    assert read_steady(best, read) == (1, (made[0] / "model.safetensors").read_bytes())
    assert len(tries) == 2


def test_the_records_of_a_checkpoint_that_its_run_replaces_meanwhile_are_read(tmp_path: Path) -> None:
    best, former, new = (tmp_path / name for name in ("best", ".best.former", "new"))
    record = TrainingRecord(("made",), ("digest",), images=np.arange(3, dtype=np.uint64))
    save_checkpoint(best, dual(native_config()), meta={}, trained_on=record)
    meta, steps = read_meta(shutil.copytree(best, new)), itertools.count()

    def replace() -> None:
        """As `replacing`, without the waits for the disk."""
        (new / "next").write_text(json.dumps(sealed({**meta, "step": next(steps)})))
        (new / "next").replace(new / META)
        best.rename(former)
        new.rename(best)
        former.rename(new)

    with meanwhile(replace):
        for _ in range(2000):
            found = training_record(str(best))
            assert found is not None
            assert found.digests == record.digests
            assert read_meta(best)["name"] == meta["name"]


def test_a_loaded_checkpoint_is_exactly_the_saved_model(saved: Path) -> None:
    model, again = dual(native_config()), load_model(saved)
    assert again.tensor_digest() == model.tensor_digest()
    assert again.config_digest() == model.config_digest()
    assert again.preprocess == model.preprocess
    assert again.similarity == "dot"
    assert all(torch.equal(a, b) for a, b in zip(features(model), features(again), strict=True))
    meta = read_meta(saved)
    assert meta["step"] == 7
    assert meta["code_version"] == code_version()
    assert meta["tensor_digest"] == model.tensor_digest()


class Draws(TorchDispatchMode):
    """Lists the operations that fill a tensor with random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("uniform_", "normal_", "erfinv_"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("tower", ["clip", "hugging face", "timm"])
def test_loading_draws_no_weights_and_leaves_torchs_random_state(tower: str, tmp_path: Path) -> None:
    if tower == "clip":
        model = dual(native_config())
    elif tower == "timm":
        model = load_model("tiny", seed=3)
    else:
        wordpieces = wordpiece_folder(tmp_path / "original")
        model = dual(hf_config(wordpieces), tokenizer=wordpieces)
    saved = save_checkpoint(tmp_path / "best", model, meta={})
    torch.manual_seed(11)
    before = torch.get_rng_state()
    with Draws() as draws:
        again = load_model(saved)
    assert draws.names == []
    assert torch.equal(torch.get_rng_state(), before)
    assert again.tensor_digest() == again.read_digest == model.tensor_digest()
    with Draws() as draws:
        load_model("tiny", seed=3)  # random weights are drawn
    assert draws.names


def test_a_hugging_face_text_tower_loads_offline_without_its_original_folder(tmp_path: Path) -> None:
    source = wordpiece_folder(tmp_path / "hub")
    model = dual(hf_config(source), size=160, tokenizer=source)
    folder = save_checkpoint(tmp_path / "checkpoint", model, meta={})
    expected = features(model)
    source.rename(tmp_path / "gone")
    again = load_model(folder)
    assert all(torch.equal(a, b) for a, b in zip(expected, features(again), strict=True))


def test_open_clip_without_his2lip_gives_the_same_pixels_and_features(tmp_path: Path) -> None:
    model = load_model("tiny", seed=5)
    folder = save_checkpoint(tmp_path / "ck", model, meta={}, resume=ResumeState(step=1, optimizer={}))
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", image)
    program = f"""
import sys, numpy, torch, open_clip
from PIL import Image
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")
tokenize = open_clip.get_tokenizer("local-dir:{folder}")
pixels = preprocess(Image.fromarray(numpy.load("{tmp_path}/image.npy")))[None]
with torch.no_grad():
    model.eval()
    torch.save([model.encode_image(pixels), model.encode_text(tokenize({CAPTIONS!r}))], "{tmp_path}/out.pt")
assert not any(name.startswith("his2lip") for name in sys.modules)
"""
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}
    )
    image_features, text_features = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.no_grad():
        ours = model.encode_image(model.preprocess(image)[None], normalize=False)
        torch.testing.assert_close(ours, image_features)
        torch.testing.assert_close(model.encode_text(CAPTIONS, normalize=False), text_features)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda t: t.pop("visual.proj"), "visual.proj"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra"),
        (lambda t: t.update({"visual.proj": torch.zeros(3, 2)}), "visual.proj"),
        (lambda t: t.update({"visual.proj": t["visual.proj"] + 1}), "tensor_digest"),
    ],
    ids=["missing", "extra", "misshapen", "other"],
)
def test_tensors_of_another_model_are_refused_by_name(saved: Path, change: object, key: str) -> None:
    tensors = load_file(saved / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        load_model(saved)
    assert (refused.value.key, refused.value.where) == (key, saved / "model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_weights_are_refused(saved: Path, share: float) -> None:
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError) as refused:
        load_model(saved)
    assert refused.value.where == weights


@pytest.mark.parametrize("name", ["model.safetensors", "open_clip_config.json", "his2lip.json"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError) as refused:
        load_model(saved)
    assert refused.value.key == name


def test_a_checkpoint_that_was_uploaded_to_the_hub_compares_features_as_before(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_cache(tmp_path / "cache", "org/mine", saved, monkeypatch)
    there, here = load_model("hf-hub:org/mine"), load_model(saved)
    assert there.similarity == here.similarity == "dot"
    assert there.tensor_digest() == here.tensor_digest()
    assert there.preprocess == here.preprocess


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}'])
def test_damaged_provenance_is_refused(saved: Path, text: str) -> None:
    (saved / "his2lip.json").write_text(text)
    with pytest.raises(CheckpointError):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model_cfg": None}, "open_clip_config.json"),
        ({"preprocess_cfg": {"colour": 1}}, "open_clip_config.json"),
        ({"preprocess_cfg": []}, "open_clip_config.json"),
        ({"model_cfg": {"embed_dim": 32}}, "text_cfg"),
        ({"model_cfg": {"embed_dim": 32, "text_cfg": {}, "vision_cfg": {"patch": 1}}}, "model_cfg"),
    ],
)
def test_a_damaged_configuration_is_refused(saved: Path, change: dict, key: str) -> None:
    path = saved / "open_clip_config.json"
    tree = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))
    with pytest.raises(ModelError) as refused:
        load_model(saved)
    assert (refused.value.key, refused.value.where) == (key, saved)


def test_provenance_without_a_tensor_digest_is_refused(saved: Path) -> None:
    (saved / "his2lip.json").write_text('{"format": 1}')
    with pytest.raises(CheckpointError) as refused:
        load_model(saved)
    assert refused.value.key == "tensor_digest"


def test_an_empty_directory_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        load_model(tmp_path)
    assert refused.value.where == tmp_path


def test_saving_replaces_an_existing_checkpoint_and_leaves_no_other_file(saved: Path) -> None:
    save_checkpoint(saved, dual(native_config(), seed=2), meta={"step": 8})
    assert read_meta(saved)["step"] == 8
    assert [p.name for p in saved.parent.iterdir()] == ["best"]


def test_a_failed_save_leaves_the_previous_checkpoint(saved: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(saved, dual(native_config(), seed=2), meta={"step": object()})
    assert read_meta(saved)["step"] == 7
    assert [p.name for p in saved.parent.iterdir()] == ["best"]


def test_a_save_killed_between_its_two_renames_loses_nothing(saved: Path) -> None:
    saved.rename(previous_folder(saved))
    assert read_meta(saved)["step"] == 7
    assert load_model(saved).similarity == "dot"
    assert read_meta(current_folder(saved))["step"] == 7  # from where a run resumes


@pytest.mark.parametrize("state", ["whole", "empty", "absent"])
def test_what_a_symbolic_link_leads_to_is_replaced_and_the_link_stays(
    state: str, saved: Path, tmp_path: Path
) -> None:
    target, link = tmp_path / "disk" / "best", tmp_path / "link"
    if state == "whole":
        target.parent.mkdir()
        saved.rename(target)
    elif state == "empty":
        target.mkdir(parents=True)
    link.symlink_to(target)
    save_checkpoint(link, dual(native_config(), seed=2), meta={"step": 8})
    assert link.is_symlink()
    assert [read_meta(place)["step"] for place in (link, target)] == [8, 8]
    assert [path.name for path in target.parent.iterdir()] == ["best"]
    target.rename(previous_folder(link))  # as a process leaves it that is killed between its two renames
    assert read_meta(link)["step"] == 8


def test_who_can_read_the_provenance_can_read_the_weights(saved: Path) -> None:
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1


@needs_mount
def test_a_former_checkpoint_that_cannot_be_removed_does_not_stop_later_saves(saved: Path) -> None:
    """A mounted disk in its folder, as busy as a file that another process has open on NFS."""
    saved.rename(previous_folder(saved))
    with small_disk(previous_folder(saved) / "busy"):
        for step in (8, 9):
            save_checkpoint(saved, dual(native_config(), seed=step), meta={"step": step})
            assert read_meta(saved)["step"] == step
        (left,) = saved.parent.glob(".best.*.old.tmp")
        left.rename(previous_folder(saved))  # to where it is unmounted


def test_a_new_checkpoint_is_on_the_disk_before_the_former_one_is_removed(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noted(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(target: Any, *more: Any, **options: Any) -> None:
            where = os.readlink(f"/proc/self/fd/{target}") if name == "fsync" else str(target)
            order.append(f"{name} {Path(where).name}")
            real(target, *more, **options)

        return call

    monkeypatch.setattr(os, "fsync", noted("fsync", os.fsync))
    monkeypatch.setattr(os, "rename", noted("rename", os.rename))
    monkeypatch.setattr(shutil, "rmtree", noted("remove", shutil.rmtree))
    save_checkpoint(saved, dual(native_config(), seed=2), meta={"step": 8})
    first = order.index(f"rename {saved.name}")
    assert {f"fsync {name}" for name in ("model.safetensors", META, OPEN_CLIP)} <= set(order[:first])
    removed = len(order) - 1 - order[::-1].index(f"remove {previous_folder(saved).name}")
    assert order.index(f"fsync {saved.parent.name}") < removed


def test_a_state_to_resume_from_is_not_a_map_of_its_file(tmp_path: Path) -> None:
    state = ResumeState(
        step=1, optimizer={"w": {"m": torch.ones(4096)}}, model={"b": torch.ones(3)}, extra={}
    )
    folder = save_checkpoint(tmp_path / "last", dual(native_config()), meta={}, resume=state)
    again = load_resume(folder)
    assert again is not None
    assert torch.equal(again.optimizer["w"]["m"], torch.ones(4096))
    assert "optimizer.safetensors" not in Path("/proc/self/maps").read_text()


def test_a_restored_optimizer_continues_exactly_whatever_the_order_of_its_parameters(tmp_path: Path) -> None:
    model = dual(native_config())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    one_step(model, optimizer)
    state = ResumeState(step=1, optimizer=optimizer_state(optimizer, model), extra={"best": 0.5})
    save_checkpoint(tmp_path / "last", model, meta={}, resume=state)
    one_step(model, optimizer)

    again, resume = load_model(tmp_path / "last"), load_resume(tmp_path / "last")
    assert resume is not None
    other = torch.optim.AdamW(reversed(list(again.parameters())), lr=1e-3, betas=(0.9, 0.98))
    restore_optimizer(other, again, resume.optimizer)
    one_step(again, other)
    assert again.tensor_digest() == model.tensor_digest()
    assert (resume.step, resume.model, resume.extra) == (1, {}, {"best": 0.5})


def test_an_optimizer_state_of_another_model_is_refused_with_the_parameters_name() -> None:
    model = dual(native_config())
    optimizer = torch.optim.AdamW(model.parameters())
    one_step(model, optimizer)
    saved = optimizer_state(optimizer, model)
    with pytest.raises(CheckpointError) as refused:
        restore_optimizer(optimizer, model, saved | {"elsewhere": saved["clip.visual.proj"]})
    assert refused.value.key == "elsewhere"
    with pytest.raises(CheckpointError) as refused:
        restore_optimizer(optimizer, model, saved | {"clip.visual.proj": saved["clip.visual.conv1.weight"]})
    assert refused.value.key == "clip.visual.proj"


def test_a_checkpoint_without_a_state_to_resume_from_gives_none(saved: Path) -> None:
    assert load_resume(saved) is None


def test_a_damaged_resume_state_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save_checkpoint(folder, dual(native_config()), meta={}, resume=ResumeState(step=1, optimizer={}))
    (folder / "resume" / "state.json").write_text(json.dumps({"step": 1}))
    with pytest.raises(CheckpointError) as refused:
        load_resume(folder)
    assert refused.value.where == folder / "resume"


@pytest.mark.parametrize("name", ["optimizer.safetensors", "state.json"])
def test_a_changed_byte_of_the_state_to_resume_from_is_refused(tmp_path: Path, name: str) -> None:
    model = dual(native_config())
    optimizer = torch.optim.AdamW(model.parameters())
    one_step(model, optimizer)
    state = ResumeState(step=1, optimizer=optimizer_state(optimizer, model))
    path = save_checkpoint(tmp_path / "last", model, meta={}, resume=state) / "resume" / name
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"step": 1', b'"step": 2') if name == "state.json" else whole[:-1] + b"!")
    with pytest.raises(CheckpointError) as refused:
        load_resume(tmp_path / "last")
    assert refused.value.where == path.parent


def test_a_changed_tokenizer_is_refused_by_its_file(tmp_path: Path) -> None:
    words = wordpiece_folder(tmp_path / "bert")
    folder = save_checkpoint(tmp_path / "best", dual(hf_config(words), tokenizer=words), meta={})
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(CheckpointError) as refused:
        load_model(folder)
    assert (refused.value.where, refused.value.key) == (folder, "tokenizer.json")


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    model = dual(native_config())
    optimizer = torch.optim.AdamW(model.parameters())
    one_step(model, optimizer)
    folder = save_checkpoint(
        tmp_path / "last",
        model,
        meta={},
        resume=ResumeState(step=1, optimizer=optimizer_state(optimizer, model)),
    )
    kinds = {p.suffix for p in folder.rglob("*") if p.is_file()}
    assert kinds == {".safetensors", ".json"}


def one_step(model: DualEncoder, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    image, text = model(torch.ones(2, 3, 32, 32), model.tokenize(CAPTIONS[:2]))
    (image.sum() + text.pow(2).sum()).backward()
    optimizer.step()


def test_a_name_that_can_be_no_path_is_no_checkpoint() -> None:
    assert not is_checkpoint("sqlite:///\0")
