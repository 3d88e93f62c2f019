"""MUSK and CONCH through small packages with the interface that their authors document."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from model_factory import CAPTIONS, hf_cache
from PIL import Image
from safetensors.torch import load_file, save_file

from his2lip.errors import CheckpointError, ModelError
from his2lip.models.catalogue import BACKBONES
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model

MUSK = """
    import torch
    from timm.models import register_model
    from torch import nn
    from torch.nn.functional import normalize

    class Musk(nn.Module):
        def __init__(self):
            super().__init__()
            self.text_embed, self.patches = nn.Embedding(80, 16), nn.Conv2d(3, 16, 96, 96)
            self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.vision_head, self.language_head = (nn.Linear(16, 8, bias=False) for _ in range(2))
            self.logit_scale = nn.Parameter(torch.tensor(2.6))

        def forward(self, image=None, text_description=None, padding_mask=None, return_global=True,
                    with_head=True, out_norm=True, ms_aug=False, scales=None, max_split_size=None):
            assert return_global and not ms_aug
            vision = language = None
            if image is not None:
                vision = self.block(self.patches(image).flatten(2).transpose(1, 2))[:, 0]
                vision = self.vision_head(vision) if with_head else vision
                vision = normalize(vision, dim=-1) if out_norm else vision
            if text_description is not None:
                tokens = self.text_embed(text_description)
                language = self.block(tokens, src_key_padding_mask=padding_mask.bool())[:, 0]
                language = self.language_head(language) if with_head else language
                language = normalize(language, dim=-1) if out_norm else language
            return vision, language

    @register_model
    def musk_large_patch16_384(pretrained=False, **kwargs):
        return Musk()
"""

CONCH = """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from torch import nn
    from torch.nn.functional import normalize
    from transformers import PreTrainedTokenizerFast

    WORDS = ["<pad>", "<start_of_text>", "<end_of_text>", "<unk>", "stroma", "staining", "no", "of"]

    class CoCa(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual, self.text = nn.Conv2d(3, 8, 448), nn.Embedding(len(WORDS), 8)
            self.text_decoder = nn.Linear(8, 8)
            self.logit_scale = nn.Parameter(torch.tensor(2.6))

        def encode_image(self, images, normalize=True, proj_contrast=True):
            assert proj_contrast
            return self._finish(self.visual(images).flatten(1), normalize)

        def encode_text(self, text, normalize=True, embed_cls=True):
            assert text.shape[1] == 128
            return self._finish(self.text(text[:, :-1]).tanh().sum(1), normalize)

        def _finish(self, x, wanted):
            return normalize(x, dim=-1) if wanted else x

    def create_model_from_pretrained(model_cfg, checkpoint_path=None, device="cpu", return_transform=True):
        assert model_cfg == "conch_ViT-B-16"
        model = CoCa()
        model.load_state_dict(torch.load(checkpoint_path, weights_only=True), strict=False)
        return model

    def get_tokenizer():
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<start_of_text> $A <end_of_text>",
            special_tokens=[("<start_of_text>", 1), ("<end_of_text>", 2)],
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=WORDS[1], eos_token=WORDS[2], pad_token=WORDS[0],
        )
"""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """No test finds another's packages imported."""
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] in ("musk", "conch")]:
        del sys.modules[name]


def installed(folder: Path, module: str, source: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`source` as the module of a package that can be imported; the package's folder."""
    file = folder / "site" / Path(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    for above in file.relative_to(folder / "site").parents[:-1]:
        (folder / "site" / above / "__init__.py").touch()
    file.write_text(dedent(source))
    monkeypatch.syspath_prepend(str(folder / "site"))
    return file.parent


def sentencepiece_file(file: Path) -> None:
    """A small tokenizer of the kind that MUSK's package holds, trained on our captions."""
    import sentencepiece

    file.parent.mkdir()
    with file.open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CAPTIONS * 3), model_writer=out, vocab_size=44, minloglevel=2
        )


@pytest.fixture
def musk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MUSK's package and its weights in the Hugging Face cache; the package's folder."""
    package = installed(tmp_path, "musk.modeling", MUSK, monkeypatch)
    sentencepiece_file(package / "models" / "tokenizer.spm")
    from timm.models import create_model

    __import__("musk.modeling")
    torch.manual_seed(0)
    state = create_model("musk_large_patch16_384").state_dict() | {"mim_head.weight": torch.zeros(2)}
    (tmp_path / "hub").mkdir()
    save_file(state, tmp_path / "hub" / "model.safetensors")
    hf_cache(tmp_path / "cache", "xiangjx/musk", tmp_path / "hub", monkeypatch)
    return package


@pytest.fixture
def conch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CONCH's package and its weights in the Hugging Face cache; the weight file there."""
    installed(tmp_path, "conch.open_clip_custom", CONCH, monkeypatch)
    package = __import__("conch.open_clip_custom").open_clip_custom
    state = {k: v for k, v in package.CoCa().state_dict().items() if "decoder" not in k}
    (tmp_path / "hub").mkdir()
    torch.save(state, tmp_path / "hub" / "pytorch_model.bin")
    hf_cache(tmp_path / "cache", "MahmoodLab/conch", tmp_path / "hub", monkeypatch)
    return next((tmp_path / "cache").rglob("pytorch_model.bin"))


def documented(image: np.ndarray, side: int, mean: tuple, std: tuple) -> torch.Tensor:
    """The transform that both READMEs give: shortest side by bicubic, centre crop, mean and deviation."""
    from torchvision import transforms

    steps = [
        transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True),
        transforms.CenterCrop((side, side)),
        transforms.ToTensor(),
        transforms.Normalize(mean=mean, std=std),
    ]
    return transforms.Compose(steps)(Image.fromarray(image))


def test_musk_gives_the_features_of_its_package_called_as_in_its_demo(
    musk: Path, real_ihc: np.ndarray
) -> None:
    import sentencepiece
    from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD

    model = load_model("musk")
    theirs = model.clip.model.eval()
    image = documented(real_ihc[:300], 384, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)[None]
    torch.testing.assert_close(model.preprocess(real_ihc[:300])[None], image, atol=1e-6, rtol=0)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(musk / "models" / "tokenizer.spm"))
    texts = [*CAPTIONS, "naïve " * 80]
    rows, paddings = [], []
    for text in texts:  # musk.utils.xlm_tokenizer over transformers' XLMRobertaTokenizer
        ids = [3 if i == 0 else i + 1 for i in pieces.encode(text)][:98]
        rows.append([0, *ids, 2] + [1] * (98 - len(ids)))
        paddings.append([0] * (len(ids) + 2) + [1] * (98 - len(ids)))
    tokens, padding = torch.tensor(rows), torch.tensor(paddings)
    assert torch.equal(model.tokenize(texts), tokens)
    with torch.no_grad():
        expected = theirs(image=image, with_head=True, out_norm=True)[0]
        torch.testing.assert_close(model.encode_image(image), expected)
        expected = theirs(text_description=tokens, padding_mask=padding, with_head=True, out_norm=True)[1]
        torch.testing.assert_close(model.encode_text(texts), expected)
    assert (model.dim, model.similarity, model.logit_scale.item()) == (8, "cosine", pytest.approx(2.6))


def test_conch_gives_the_features_of_its_package(conch: Path, real_ihc: np.ndarray) -> None:
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    model = load_model("conch")
    theirs = model.clip.model.eval()
    image = documented(real_ihc[:300], 448, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)[None]
    torch.testing.assert_close(model.preprocess(real_ihc[:300])[None], image, atol=1e-6, rtol=0)
    tokens = model.tokenize(["no staining of stroma", "stroma"])
    assert tokens.shape == (2, 128)
    assert tokens[0, :7].tolist() == [1, 6, 5, 7, 4, 2, 0]
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(image), theirs.encode_image(image))
        expected = theirs.encode_text(tokens)
        torch.testing.assert_close(model.encode_text(["no staining of stroma", "stroma"]), expected)
    assert load_model("conch").tensor_digest() == model.tensor_digest(), "its random decoder is left out"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("musk", "git clone https://github.com/lilab-stanford/MUSK"),
        ("conch", "pip install git+https://github.com/mahmoodlab/CONCH"),
    ],
)
def test_an_absent_package_is_named_with_the_command_that_installs_it(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelError) as refused:
        load_model(name)
    assert refused.value.key == name
    assert command in str(refused.value.fix)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["musk", "conch"])
def test_absent_weights_are_named_with_source_licence_and_the_way_to_ask_for_access(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.getfixturevalue(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ModelError) as refused:
        load_model(name)
    assert refused.value.key == name
    for fact in (BACKBONES[name].weights, BACKBONES[name].licence, "`hf auth login`"):
        assert fact in str(refused.value)
    assert "\n" not in str(refused.value)


def test_musks_weights_that_lack_a_tensor_are_refused_with_its_name(musk: Path, tmp_path: Path) -> None:
    file = next((tmp_path / "cache").rglob("model.safetensors"))
    save_file({k: v for k, v in load_file(file).items() if k != "vision_head.weight"}, file)
    with pytest.raises(CheckpointError) as refused:
        load_model("musk")
    assert refused.value.key == "vision_head.weight"


def test_conchs_weights_that_lack_a_tensor_are_refused_although_its_loader_ignores_that(conch: Path) -> None:
    state = torch.load(conch, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "text.weight"}, conch)
    with pytest.raises(CheckpointError) as refused:
        load_model("conch")
    assert refused.value.key == "text.weight"


def test_conchs_file_is_not_opened_where_it_contains_a_program(conch: Path, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"logit_scale": Malicious()}, conch)
    with pytest.raises(CheckpointError) as refused:
        load_model("conch")
    assert refused.value.key == "pickle"
    assert not (tmp_path / "ran").exists()


def test_a_model_of_a_package_cannot_be_saved_as_a_checkpoint(musk: Path, tmp_path: Path) -> None:
    model: DualEncoder = load_model("musk")
    with pytest.raises(ModelError) as refused:
        save_checkpoint(tmp_path / "c", model, meta={})
    assert refused.value.key == "musk"
    assert not (tmp_path / "c").exists()
