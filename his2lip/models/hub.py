"""The files that a model's name loads from the Hugging Face hub, or from the address of an open_clip tag."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg

from his2lip.errors import His2lipError, ModelError, did_you_mean
from his2lip.models.architecture import hf_text_source
from his2lip.models.catalogue import Backbone
from his2lip.models.checkpoint import OPEN_CLIP, OURS, WEIGHTS
from his2lip.models.packages import WEIGHT_FILES
from his2lip.models.provenance import read_json
from his2lip.models.tokenizer import tokenizer_absent

_REPOSITORIES = ("hf-hub", "transformers", "package")  # kinds of sources, KIND:ORG/NAME
_TRANSFORMERS_FILES = ["*.json", "*.txt", "model.safetensors", "pytorch_model.bin"]
# Of a Hugging Face text tower: its configuration, and what the tokenizers of transformers are stored in.
_TEXT_FILES = ["config.json", "*token*.json", "vocab.*", "merges.txt", "*.model"]


def loaded_files(source: str, named: Backbone | None = None) -> dict[str, Path]:
    """REPOSITORY/FILE -> path, of the files that decide the model of `source`; fetched where missing.

    source  as of `Backbone`, or the name of an open_clip architecture with random weights
    named   the backbone whose source it is
    The tokenizer and the configuration of a Hugging Face text tower are among them. Raises ModelError for
    files that are not on this machine and cannot be fetched, and for an unknown tag. A source of none of
    these kinds has no files.
    """
    kind, _, identifier = source.partition(":")
    if kind not in _REPOSITORIES:
        if kind not in open_clip.list_models():
            return {}
        if identifier:
            check_tag(kind, identifier)
    try:
        return dict(_loaded_files(source, named))
    except His2lipError:
        raise
    except Exception as error:  # open_clip, the hub client and the file system each raise their own
        raise absent(source, named) from error


def _loaded_files(source: str, named: Backbone | None) -> Iterator[tuple[str, Path]]:
    kind, _, identifier = source.partition(":")
    match kind:
        case "hf-hub":
            for file in fetch_open_clip(identifier):
                yield f"{identifier}/{file.name}", file
                if file.name == OPEN_CLIP:
                    yield from _text_files(json.loads(file.read_text(encoding="utf-8"))["model_cfg"])
        case "transformers":
            yield from _matching(identifier, fetch_transformers(identifier), _TRANSFORMERS_FILES)
        case "package":
            assert named is not None
            file = fetch_package(named.name, identifier)
            yield f"{identifier}/{file.name}", file
        case _:
            if identifier:
                file = Path(download_pretrained(get_pretrained_cfg(kind, identifier)))
                yield f"{kind}/{file.name}", file
            yield from _text_files(open_clip.get_model_config(kind) or {})


def fetch_open_clip(repository: str) -> tuple[Path, Path]:
    """Configuration and weights of a hub repository in open_clip's layout, such as an uploaded checkpoint."""
    from huggingface_hub import hf_hub_download

    config = Path(hf_hub_download(repository, OPEN_CLIP))
    tree = read_json(config)
    return config, Path(download_pretrained_from_hf(repository, filename=WEIGHTS if OURS in tree else None))


def fetch_transformers(repository: str) -> Path:
    """The folder of a hub repository with a transformers CLIPModel."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, allow_patterns=_TRANSFORMERS_FILES))


def fetch_package(name: str, repository: str) -> Path:
    """The weight file of the model `name`, which runs in its authors' package."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, WEIGHT_FILES[name]))


def _text_files(model_cfg: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Configuration and tokenizer of a Hugging Face text tower, from folders or from the hub."""
    from huggingface_hub import snapshot_download

    text = model_cfg.get("text_cfg", {})
    tower, tokenizer = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    sources = [hf_text_source(tower, None) if tower else None, tokenizer]
    for name in dict.fromkeys(filter(None, sources)):
        folder = Path(name)
        if not folder.is_dir():
            try:
                folder = Path(snapshot_download(name, allow_patterns=_TEXT_FILES))
            except (OSError, ValueError) as error:
                raise tokenizer_absent(name) from error
        yield from _matching(name, folder, _TEXT_FILES)


def _matching(name: str, folder: Path, patterns: list[str]) -> Iterator[tuple[str, Path]]:
    from huggingface_hub.utils import filter_repo_objects

    for file in filter_repo_objects(sorted(folder.iterdir()), allow_patterns=patterns, key=lambda f: f.name):
        if file.is_file():
            yield f"{name}/{file.name}", file


def check_tag(architecture: str, tag: str) -> None:
    """Raises ModelError for a pretrained tag that the architecture does not have."""
    known = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in known:
        fix = did_you_mean(tag, known) if known else "it has none; leave the tag out for random weights"
        raise ModelError(f"'{architecture}' has no pretrained weights '{tag}'", key=tag, fix=fix)


def absent(source: str, named: Backbone | None) -> ModelError:
    """The error for weights that are not here: their source, their licence, and how to get them."""
    if named is not None:
        origin = f"{named.weights}, licence {named.licence}"
        what = f"the weights of '{named.name}' ({origin}) are not on this machine"
        return ModelError(what, key=named.name, fix=named.fix)
    fix = "load it once with a connection (`hf auth login` first if gated), or type local-dir:PATH"
    what = f"the weights of '{source}' are not on this machine and could not be fetched"
    return ModelError(what, key=source, fix=fix)
