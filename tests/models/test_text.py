"""Text at its own length equals text at full length, where the tower allows it; elsewhere it is not cut."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from model_factory import CAPTIONS, hf_config, native_config, wordpiece_folder
from torch import nn

from his2lip.cli.data import prepare_dataset
from his2lip.data.captions.bank import CaptionBank
from his2lip.models.architecture import build_clip
from his2lip.models.encoder import DualEncoder
from his2lip.models.preprocess import Preprocess
from his2lip.models.tokenizer import build_tokenizer, clip_tokenizer, own_length, runs_at_own_length


def dual(config: dict, tokenizer_source: Path | None = None) -> DualEncoder:
    torch.manual_seed(0)
    preprocess = Preprocess(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    tokenizer = build_tokenizer(config, tokenizer_source)
    return DualEncoder(
        build_clip(config, seed=1), name="t", config=config, preprocess=preprocess, tokenizer=tokenizer
    ).eval()


def at_full_length(model: DualEncoder) -> torch.Tensor:
    """open_clip's own tokens and its own text forward."""
    tokens = model.tokenizer.tokenizer(CAPTIONS, context_length=model.tokenizer.context_length)
    with torch.no_grad():
        return model.clip.encode_text(tokens, normalize=True)  # type: ignore[operator]


@pytest.mark.parametrize(
    "text",
    [
        {},
        {"pool_type": "eos", "eos_id": 49407},
        {"proj_bias": True},
        {"proj_type": "none", "width": 32},
    ],
    ids=["clip", "eos", "linear-projection", "no-projection"],
)
@pytest.mark.parametrize("custom_text", [False, True])
def test_causal_towers_give_the_same_at_the_longest_captions_length(text: dict, custom_text: bool) -> None:
    model = dual(native_config(custom_text=custom_text, **text))
    assert model.tokenize(CAPTIONS).shape[1] < model.tokenizer.context_length
    with torch.no_grad():
        short = model.encode_text(CAPTIONS)
    torch.testing.assert_close(short, at_full_length(model), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pooler", ["cls_pooler", "mean_pooler", "cls_last_hidden_state_pooler"])
def test_padding_masked_towers_give_the_same_at_the_longest_length(pooler: str, tmp_path: Path) -> None:
    source = wordpiece_folder(tmp_path)
    model = dual(hf_config(source, pooler=pooler), source)
    assert model.tokenize(CAPTIONS).shape[1] < model.tokenizer.context_length
    with torch.no_grad():
        short = model.encode_text(CAPTIONS)
    torch.testing.assert_close(short, at_full_length(model), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "text",
    [{"no_causal_mask": True, "pool_type": "last"}, {"no_causal_mask": True}],
    ids=["siglip", "clipa"],
)
def test_towers_that_attend_to_padding_run_at_full_length(text: dict) -> None:
    model = dual(native_config(custom_text=True, **text))
    assert model.tokenize(CAPTIONS).shape[1] == model.tokenizer.context_length
    with torch.no_grad():
        features = model.encode_text(CAPTIONS)
    torch.testing.assert_close(features, at_full_length(model), atol=1e-6, rtol=0)


def test_39_of_open_clips_architectures_attend_to_padding_and_coca_keeps_its_length() -> None:
    """Counted over open_clip 3.3.0's configurations; look again when a release changes the count."""
    texts = {name: open_clip.get_model_config(name)["text_cfg"] for name in open_clip.list_models()}
    padded = [name for name, text in texts.items() if text.get("no_causal_mask")]
    assert len(padded) == 39
    assert not any(runs_at_own_length(texts[name]) for name in padded)
    assert not runs_at_own_length(texts["coca_ViT-B-32"])
    for name in ("ViT-B-32-quickgelu", "ViT-L-14", "RN50", "roberta-ViT-B-32", "MobileCLIP-S1"):
        assert runs_at_own_length(texts[name]) is (name not in padded), name


def test_repeated_captions_go_through_the_tower_once_and_gradients_agree() -> None:
    model = dual(native_config()).double()
    rows: list[int] = []
    model.clip.transformer.register_forward_hook(lambda _, args, out: rows.append(args[0].shape[0]))  # type: ignore
    repeated = [CAPTIONS[0], CAPTIONS[1], CAPTIONS[0], CAPTIONS[0]]
    weight = torch.randn(4, 32)

    (model.encode_text(repeated, normalize=False) * weight).sum().backward()
    ours = model.clip.token_embedding.weight.grad.clone()  # type: ignore[union-attr]
    model.zero_grad()
    tokens = model.tokenizer.tokenizer(repeated, context_length=model.tokenizer.context_length)
    (model.clip.encode_text(tokens) * weight).sum().backward()  # type: ignore[operator]

    assert rows == [2, 4]
    theirs = model.clip.token_embedding.weight.grad  # type: ignore[union-attr]
    assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max()


def test_tokens_and_sentences_give_the_same_features() -> None:
    model = dual(native_config())
    with torch.no_grad():
        by_tokens = model.encode_text(model.tokenize(CAPTIONS))
        assert torch.equal(model.encode_text(CAPTIONS), by_tokens)


def test_a_caption_longer_than_the_context_is_cut_as_open_clip_cuts_it() -> None:
    model = dual(native_config())
    long = "tumour " * 200
    theirs = model.tokenizer.tokenizer([long], context_length=model.tokenizer.context_length)
    assert torch.equal(model.tokenize([long]), theirs)


@pytest.mark.parametrize("kind", ["clip", "bert", "padded with its own end"])
def test_exactly_the_captions_that_lose_a_token_are_reported(kind: str, tmp_path: Path) -> None:
    if kind == "clip":
        tokenizer = clip_tokenizer()
    else:
        source = wordpiece_folder(tmp_path)
        tokenizer = build_tokenizer(hf_config(source), source)
        if kind != "bert":
            theirs = tokenizer.tokenizer.tokenizer
            theirs.pad_token = theirs.sep_token
            tokenizer.pad_id = int(theirs.pad_token_id)
    fits = tokenizer.context_length - 2  # words between the two markers
    captions = [" ".join(["cell"] * (fits + more)) for more in (-1, 0, 1, 9)]
    assert tokenizer.too_long([*captions, *captions]) == captions[2:]
    assert str(tokenizer.cut_note([*captions, *captions])).startswith("2 of 4 captions are longer than ")
    assert tokenizer.cut_note(captions[:2]) is None
    assert tokenizer.cut_note([]) is None


def test_prepare_captions_reports_what_clip_would_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "in/Tumor/Ki67.txt"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(["short one", "another short", "cell " * 76]))
    prepare_dataset("captions", root=tmp_path / "in", out=str(tmp_path / "bank.json"))
    said = capsys.readouterr().out
    drawn = len(CaptionBank.load(tmp_path / "bank.json").distinct())
    assert (
        f"for CLIP, 1 of {drawn} captions are longer than 77 tokens and are cut, such as 'cell cell" in said
    )


def test_the_own_length_ends_at_the_last_token_even_where_a_token_has_the_padding_id() -> None:
    """CLIP's vocabulary gives `!` before another sign the id 0, which is also its padding."""
    model = dual(native_config())
    tokens = model.tokenize(["!?? positive"])
    assert 0 in tokens[0]
    assert int(tokens[0, -1]) == 49407
    assert own_length(torch.tensor([[5, 0, 7, 0, 0], [5, 7, 0, 0, 0]]), 0) == 3


def test_features_are_float32_and_raw_where_asked() -> None:
    model = dual(native_config())
    model.precision = "bf16"
    with torch.no_grad():
        raw = model.encode_text(CAPTIONS, normalize=False)
        image = model.encode_image(torch.randn(2, 3, 32, 32))
    assert raw.dtype == image.dtype == torch.float32
    torch.testing.assert_close(image.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(nn.functional.normalize(raw, dim=-1), model.encode_text(CAPTIONS).detach())
