"""Each published format, saved as its authors save it, gives the original features; others are refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_factory import (
    CAPTIONS,
    SMALL_CLIP,
    hf_model,
    native_config,
    published_open_clip,
    published_plip,
    wordpiece_folder,
)
from safetensors.torch import load_file, save_file
from torch import nn

from his2lip.errors import CheckpointError, ModelError
from his2lip.models.architecture import build_clip
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.exchange import CLIP_B32, check_features, convert, from_released
from his2lip.models.hf_clip import open_clip_config
from his2lip.models.load import load_model
from his2lip.models.preprocess import RELEASED_PREPROCESS
from his2lip.models.transformers_folder import from_transformers
from his2lip.models.weights import load_weights, read_tensors


def transformers_features(model: nn.Module, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple:
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels).pooler_output
        return image, model.get_text_features(input_ids=tokens).pooler_output


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SMALL_CLIP, id="small"),
        pytest.param(
            SMALL_CLIP | {"text_config": SMALL_CLIP["text_config"] | {"eos_token_id": 49407}},
            id="small-new-eos",
        ),
        pytest.param({"text_config": {"eos_token_id": 2}}, id="B/32", marks=pytest.mark.slow),
    ],
)
def test_plips_format_gives_transformers_embeddings(
    config: dict, tmp_path: Path, real_ihc: np.ndarray
) -> None:
    original = hf_model(**config)
    model = from_transformers(published_plip(tmp_path, original), name="plip")
    pixels = model.preprocess(real_ihc)[None]
    tokens = model.tokenizer.tokenizer(CAPTIONS, context_length=77)
    image, text = transformers_features(original, pixels, tokens)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(pixels, normalize=False), image, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.encode_text(CAPTIONS, normalize=False), text, atol=1e-5, rtol=0)


def test_plips_preprocessing_is_its_own_processors(tmp_path: Path, real_ihc: np.ndarray) -> None:
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    folder = published_plip(tmp_path, hf_model(**SMALL_CLIP))
    ours = from_transformers(folder, name="plip").preprocess(real_ihc[:300])
    theirs = CLIPImageProcessorPil.from_pretrained(folder)(
        Image.fromarray(real_ihc[:300]), return_tensors="pt"
    )
    torch.testing.assert_close(ours, theirs["pixel_values"][0], atol=1e-5, rtol=0)


def test_plips_captions_have_transformers_ids() -> None:
    """transformers' tokenizer, from the vocabulary and merges that PLIP publishes (they are OpenAI's)."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    simple = SimpleTokenizer()
    vocabulary = {k: i for k, i in simple.encoder.items() if "_of_text" not in k}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    theirs = CLIPTokenizer(vocab=vocabulary, merges=list(simple.bpe_ranks))
    odd = ["HER2 3+,  0.5 µm/px; naïve", "3,3'-diaminobenzidine (DAB), ×40: isn't\tdense!"]
    for caption in [*CAPTIONS, *odd]:
        ids = theirs(caption)["input_ids"]
        assert simple([caption])[0, : len(ids)].tolist() == ids


def test_a_published_pickle_of_tensors_is_read_too_with_its_index_buffers(tmp_path: Path) -> None:
    original = hf_model(**SMALL_CLIP)
    folder = published_plip(tmp_path, original)
    (folder / "model.safetensors").unlink()
    state = original.state_dict() | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save(state, folder / "pytorch_model.bin")
    assert from_transformers(folder, name="plip").dim == 32


def released_file(path: Path, *, size: dict, change: Callable[[dict], object] | None = None) -> tuple:
    """A state dict as the released code saves it, and the modules whose state it is."""
    sides = {"text_encoder": hf_model(1, **size), "vision_encoder": hf_model(2, **size)}
    dim = sides["text_encoder"].config.projection_dim
    heads = {side: nn.Linear(dim, dim, bias=False) for side in sides}
    state = {"logit_scale": torch.tensor(2.6592)}
    for side, model in sides.items():
        state |= {f"{side}.model.{k}": v for k, v in model.state_dict().items()}
        state[f"{side}.projection_head.weight"] = heads[side].weight.detach()
    if change is not None:
        change(state)
    torch.save(state, path)
    return sides, heads


@pytest.mark.parametrize("backbone", ["clip", "plip"])
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(SMALL_CLIP, id="small"),
        pytest.param({"text_config": {"eos_token_id": 2}}, id="B/32", marks=pytest.mark.slow),
    ],
)
def test_the_released_format_gives_the_original_logits(size: dict, backbone: str, tmp_path: Path) -> None:
    sides, heads = released_file(tmp_path / "best.pt", size=size)
    config = open_clip_config(sides["text_encoder"].config.to_dict())
    model = from_released(tmp_path / "best.pt", backbone=backbone, config=config)  # type: ignore[arg-type]
    edge = config["vision_cfg"]["image_size"]
    # In float64, so that what differs is the arithmetic and not the rounding of two float32 programs.
    for module in (model, *sides.values(), *heads.values()):
        module.double()
    pixels = torch.randn(3, 3, edge, edge, dtype=torch.float64)
    tokens = model.tokenizer.tokenizer(CAPTIONS, context_length=77)
    with torch.no_grad():
        image = heads["vision_encoder"](transformers_features(sides["vision_encoder"], pixels, tokens)[0])
        text = heads["text_encoder"](transformers_features(sides["text_encoder"], pixels, tokens)[1])
        theirs = image @ text.t() * torch.tensor(2.6592).exp()
        ours_image, ours_text = model(pixels, model.tokenize(CAPTIONS))
        ours = ours_image @ ours_text.t() * model.logit_scale.exp()
    torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=0)
    assert model.similarity == "dot"
    assert model.name == f"his2{backbone}"
    assert model.preprocess == RELEASED_PREPROCESS


def test_the_released_architecture_is_transformers_own_b32() -> None:
    from transformers import CLIPConfig

    theirs = open_clip_config(CLIPConfig(text_config={"eos_token_id": 2}).to_dict())
    for tower in ("vision_cfg", "text_cfg"):
        assert {k: theirs[tower][k] for k in CLIP_B32[tower]} == CLIP_B32[tower]
        assert theirs[tower]["mlp_ratio"] == 4.0
    assert theirs["vision_cfg"]["head_width"] == 64
    assert (theirs["embed_dim"], theirs["quick_gelu"]) == (512, True)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (
            lambda s: s.pop("text_encoder.projection_head.weight"),
            "text_encoder.projection_head.weight",
        ),
        (lambda s: s.update(bias=torch.zeros(2)), "bias"),
        (
            lambda s: s.update({"vision_encoder.model.visual_projection.weight": torch.zeros(64, 32)}),
            "vision_encoder.model.visual_projection.weight",
        ),
        (
            lambda s: s.pop("vision_encoder.model.text_model.final_layer_norm.bias"),
            "vision_encoder.model.text_model.final_layer_norm.bias",
        ),
    ],
    ids=["missing", "extra", "misshapen", "missing-in-the-unused-half"],
)
def test_a_released_file_with_wrong_tensors_is_refused_by_name(
    change: object, key: str, tmp_path: Path
) -> None:
    released_file(tmp_path / "best.pt", size=SMALL_CLIP, change=change)  # type: ignore[arg-type]
    config = open_clip_config(hf_model(**SMALL_CLIP).config.to_dict())
    with pytest.raises(CheckpointError) as refused:
        from_released(tmp_path / "best.pt", backbone="clip", config=config)
    assert refused.value.key == key


def test_the_bert_tokenizer_of_a_clip_tower_is_stored_with_the_checkpoint(tmp_path: Path) -> None:
    sides, heads = released_file(tmp_path / "best.pt", size=SMALL_CLIP)
    config = open_clip_config(sides["text_encoder"].config.to_dict())
    source = wordpiece_folder(tmp_path / "bert")
    model = from_released(
        tmp_path / "best.pt", backbone="clip", tokenizer="bert", tokenizer_source=source, config=config
    )
    tokens = model.tokenizer.tokenizer(CAPTIONS, context_length=77)
    assert tokens[0, 0] == 2  # [CLS] of that vocabulary
    with torch.no_grad():
        raw = transformers_features(sides["text_encoder"], torch.zeros(1, 3, 64, 64), tokens)[1]
        expected = heads["text_encoder"](raw)
        ours = model.encode_text(CAPTIONS, normalize=False)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
        folder = save_checkpoint(tmp_path / "checkpoint", model, meta={})
        source.rename(tmp_path / "gone")
        again = load_model(folder)
        assert torch.equal(again.encode_text(CAPTIONS, normalize=False), ours)
    assert again.similarity == "dot"


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_malicious_pickle_is_refused_and_does_not_run(how: str, tmp_path: Path) -> None:
    trace, file = tmp_path / "ran", tmp_path / "best.pt"
    payload = {"logit_scale": torch.zeros(()), "x": Malicious(str(trace))}
    if how == "torch.save":
        torch.save(payload, file)
    else:
        file.write_bytes(pickle.dumps(payload["x"]))
    with pytest.raises(CheckpointError) as refused:
        from_released(file, backbone="clip")
    assert (refused.value.key, refused.value.where) == ("pickle", file)
    assert not trace.exists()


def test_files_that_are_not_weight_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("not weights at all")
    (tmp_path / "text.safetensors").write_text("not weights at all")
    (tmp_path / "junk.pt").write_bytes(b"junk" * 100)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({3: torch.ones(2)}, tmp_path / "numbers.pt")
    torch.save({"a": torch.ones(2), 3: torch.ones(2)}, tmp_path / "a number.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "numbers.pt").read_bytes()[:500])
    absent = tmp_path / "absent.pt"
    for name in (*(path.name for path in tmp_path.iterdir()), absent.name):
        with pytest.raises(CheckpointError) as refused:
            read_tensors(tmp_path / name)
        assert refused.value.where == tmp_path / name
        assert "\n" not in str(refused.value), name


def test_wrapped_and_prefixed_state_dicts_are_unwrapped(tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.a": torch.ones(2)}, "epoch": 3}, tmp_path / "a.pt")
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        assert list(read_tensors(tmp_path / name)) == ["a"]


def test_a_transformers_model_of_another_type_is_refused(tmp_path: Path) -> None:
    wordpiece_folder(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as refused:
        from_transformers(tmp_path, name="x")
    assert refused.value.key == "model_type"


@pytest.mark.parametrize(
    ("tower", "setting", "value"),
    [
        ("text_config", "hidden_act", "gelu_new"),
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "hidden_act", "gelu"),  # the text tower has quick_gelu
        ("text_config", "layer_norm_eps", 1e-6),
        ("vision_config", "layer_norm_eps", 1e-12),
        ("text_config", "attention_dropout", 0.1),
        ("vision_config", "num_channels", 4),
        ("text_config", "vocab_size", 49000),
        ("text_config", "eos_token_id", 3),
        ("vision_config", "num_attention_heads", -1),
        ("text_config", "hidden_size", 0),
        ("vision_config", "patch_size", 0),
    ],
)
def test_a_setting_that_open_clip_cannot_represent_is_refused_by_name(
    tower: str, setting: str, value: object, tmp_path: Path
) -> None:
    folder = published_plip(tmp_path, hf_model(**SMALL_CLIP))
    tree = json.loads((folder / "config.json").read_text())
    tree[tower][setting] = value
    (folder / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError) as refused:
        from_transformers(folder, name="x")
    assert (refused.value.key, refused.value.where) == (f"{tower}.{setting}", folder / "config.json")


def test_a_setting_of_another_type_is_refused_by_its_file(tmp_path: Path) -> None:
    folder = published_plip(tmp_path, hf_model(**SMALL_CLIP))
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"projection_dim": "many"}))
    with pytest.raises(CheckpointError) as refused:
        from_transformers(folder, name="x")
    assert (refused.value.key, refused.value.where) == ("config.json", folder)


def test_a_tokenizer_other_than_clips_is_refused(tmp_path: Path) -> None:
    folder = published_plip(tmp_path, hf_model(**SMALL_CLIP))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(ModelError) as refused:
        from_transformers(folder, name="x")
    assert refused.value.key == "tokenizer_class"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("visual_projection.weight", float("nan")),
        ("text_projection.weight", float("inf")),
        ("logit_scale", 100.0),  # the scale itself, where its logarithm belongs
    ],
)
@pytest.mark.parametrize("format", ["transformers", "released"])
def test_weights_that_are_not_numbers_or_no_logarithm_are_refused_by_name(
    name: str, value: float, format: str, tmp_path: Path
) -> None:
    if format == "transformers":
        folder = published_plip(tmp_path, hf_model(**SMALL_CLIP))
        state = load_file(folder / "model.safetensors")
        state[name].view(-1)[0] = value
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError) as refused:
            from_transformers(folder, name="x")
        assert refused.value.key == name
        return
    whole = name if name == "logit_scale" else f"vision_encoder.model.{name}"
    spoil = lambda s: s.update({whole: torch.full_like(s[whole], value)})  # noqa: E731
    sides, _ = released_file(tmp_path / "best.pt", size=SMALL_CLIP, change=spoil)
    config = open_clip_config(sides["text_encoder"].config.to_dict())
    with pytest.raises(CheckpointError) as refused:
        from_released(tmp_path / "best.pt", backbone="clip", config=config)
    assert refused.value.key == whole


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("format", ["open_clip", "state dict", "transformers", "released"])
def test_tensors_that_torch_would_cast_to_weights_are_refused_by_name(
    kind: torch.dtype, format: str, tmp_path: Path
) -> None:
    state: dict[str, torch.Tensor] = build_clip(native_config(), seed=1).state_dict()
    name, file = "visual.proj", tmp_path / "pytorch_model.bin"
    read: Callable[[], object]
    if format == "open_clip":
        file = published_open_clip(tmp_path, native_config()) / "open_clip_pytorch_model.bin"
        read = partial(load_model, f"local-dir:{tmp_path}")
    elif format == "state dict":
        read = lambda: load_weights(build_clip(native_config()), read_tensors(file), where=file)  # noqa: E731
    elif format == "transformers":
        original = hf_model(**SMALL_CLIP)
        (published_plip(tmp_path, original) / "model.safetensors").unlink()
        state, name = original.state_dict(), "visual_projection.weight"
        read = partial(from_transformers, tmp_path, name="x")
    else:
        sides, _ = released_file(tmp_path / "best.pt", size=SMALL_CLIP)
        config = open_clip_config(sides["text_encoder"].config.to_dict())
        state, name = read_tensors(tmp_path / "best.pt"), "vision_encoder.model.visual_projection.weight"
        read = partial(from_released, file, backbone="clip", config=config)
    torch.save(state | {name: state[name].to(kind)}, file)
    with pytest.raises(CheckpointError) as refused:
        read()
    assert (refused.value.where, refused.value.key) == (file, name)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_a_conversion_checks_its_features_against_transformers(act: str, tmp_path: Path) -> None:
    towers = {tower: SMALL_CLIP[tower] | {"hidden_act": act} for tower in ("text_config", "vision_config")}
    folder = published_plip(tmp_path, hf_model(**(SMALL_CLIP | towers)))
    model, meta = convert(folder, source="transformers")
    assert model.config["quick_gelu"] is (act == "quick_gelu")
    assert meta["converted"]["from"] == "transformers"
    for tower, name in (("image", "visual.ln_post.weight"), ("text", "ln_final.weight")):
        wrong = copy.deepcopy(model)
        with torch.no_grad():
            wrong.clip.get_parameter(name).mul_(1.01)
        with pytest.raises(CheckpointError) as refused:
            check_features(wrong, folder)
        assert refused.value.key == tower


def saved_processor(folder: Path, *, whole: bool, **settings: object) -> Path:
    """A CLIPModel's folder with its image processor, or with the CLIPProcessor that contains it."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    hf_model(**SMALL_CLIP).save_pretrained(folder)
    processor = CLIPImageProcessor(**({"size": {"shortest_edge": 64}, "crop_size": 64} | settings))
    if whole:
        CLIPProcessor(image_processor=processor, tokenizer=_clip_tokenizer()).save_pretrained(folder)
    else:
        processor.save_pretrained(folder)
    return folder


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    ends = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    return CLIPTokenizer(vocab=ends | {"a</w>": 2}, merges=[])


OTHER_STAIN = {"image_mean": [0.7, 0.6, 0.5], "image_std": [0.1, 0.2, 0.3], "resample": 2}


@pytest.mark.parametrize("whole", [True, False], ids=["CLIPProcessor", "CLIPImageProcessor"])
@pytest.mark.parametrize(
    "settings",
    [
        OTHER_STAIN,
        OTHER_STAIN | {"size": {"height": 64, "width": 64}, "do_center_crop": False},
        OTHER_STAIN | {"size": {"height": 64, "width": 64}},
        {"image_mean": 0.5, "image_std": 0.25},
    ],
    ids=["crop", "squash", "squash, then a crop of all", "one number"],
)
def test_a_saved_processors_pixels_are_transformers_own(
    whole: bool, settings: dict, tmp_path: Path, real_ihc: np.ndarray
) -> None:
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    folder = saved_processor(tmp_path, whole=whole, **settings)
    assert (folder / "processor_config.json").is_file() == whole
    assert (folder / "preprocessor_config.json").is_file() != whole
    ours = from_transformers(folder, name="x").preprocess(real_ihc[:300])
    theirs = CLIPImageProcessorPil.from_pretrained(folder)(
        Image.fromarray(real_ihc[:300]), return_tensors="pt"
    )
    torch.testing.assert_close(ours, theirs["pixel_values"][0], atol=1e-5, rtol=0)


def test_the_processor_as_a_whole_comes_before_the_image_processor_as_in_transformers(tmp_path: Path) -> None:
    saved_processor(tmp_path, whole=True, image_mean=[0.7, 0.6, 0.5])
    saved_processor(tmp_path, whole=False, image_mean=[0.1, 0.2, 0.3])
    assert from_transformers(tmp_path, name="x").preprocess.mean == (0.7, 0.6, 0.5)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert from_transformers(tmp_path, name="x").preprocess.mean == (0.1, 0.2, 0.3)


def test_a_size_that_is_one_number_is_the_shortest_edge_as_openai_published_it(tmp_path: Path) -> None:
    folder = saved_processor(tmp_path, whole=False)
    expected = from_transformers(folder, name="x").preprocess
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": 64, "crop_size": 64}))
    assert from_transformers(folder, name="x").preprocess == expected
    file.write_text(json.dumps({"size": 64, "do_center_crop": False}))
    with pytest.raises(ModelError) as refused:
        from_transformers(folder, name="x")
    assert refused.value.key == "do_center_crop", "without a crop the images are not square"
    file.unlink()
    assert from_transformers(folder, name="x").preprocess == expected, "no file: the same defaults"


@pytest.mark.parametrize("whole", [True, False], ids=["CLIPProcessor", "CLIPImageProcessor"])
@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"resample": 1}, "resample"),
        ({"do_normalize": False}, "do_normalize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"do_resize": False}, "do_resize"),
        ({"size": {"shortest_edge": 72}}, "size"),
        ({"size": {"height": 64, "width": 96}}, "size"),
        ({"size": 64, "do_center_crop": False}, "do_center_crop"),
        ({"crop_size": 32}, "crop_size"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
    ],
)
def test_preprocessing_that_cannot_be_represented_is_refused_by_name(
    whole: bool, settings: dict, key: str, tmp_path: Path
) -> None:
    folder = saved_processor(tmp_path, whole=whole, **settings)
    file = folder / ("processor_config.json" if whole else "preprocessor_config.json")
    with pytest.raises(ModelError) as refused:
        from_transformers(folder, name="x")
    assert (refused.value.key, refused.value.where) == (key, file)


@pytest.mark.parametrize("damage", [{"size": "large"}, {"size": None, "crop_size": [64]}, {"image_std": "x"}])
def test_a_damaged_setting_of_an_image_processor_is_refused_without_a_traceback(
    damage: dict, tmp_path: Path
) -> None:
    folder = saved_processor(tmp_path, whole=False)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    with pytest.raises(ModelError) as refused:
        from_transformers(folder, name="x")
    assert refused.value.key in damage
    (folder / "processor_config.json").write_text('{"image_processor": 3}')
    with pytest.raises(CheckpointError) as refused:
        from_transformers(folder, name="x")
    assert refused.value.key == "image_processor"
