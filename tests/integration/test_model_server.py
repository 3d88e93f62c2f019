"""A promoted checkpoint behind `mlflow models serve`: answers over HTTP, and refused requests."""

from __future__ import annotations

import base64
import json
import os
import struct
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from loopback import on_loopback

from his2lip.cli.models import promote_model
from his2lip.data.images.codec import encode_png
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import load_model
from his2lip.serving.basis import Scale
from his2lip.serving.classifier import Classifier
from his2lip.serving.gates import NOT_ANSWERED
from his2lip.serving.loading import load_for_inference
from his2lip.serving.mlflow_model import MAX_BASE64, MAX_IMAGES
from his2lip.serving.questions import ask

Ask = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def promoted(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a checkpoint that was registered by `models promote`."""
    folder = tmp_path_factory.mktemp("served")
    checkpoint = save_checkpoint(folder / "best", load_model("tiny", seed=3), meta={"name": "served"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        promote_model(alias="champion", model=str(checkpoint), name="served")
        yield "models:/served@champion"
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # the process's own default again


@pytest.fixture(scope="module")
def ask_server(promoted: str) -> Iterator[Ask]:
    """ask_server(body) -> (status, JSON of the response), from `mlflow models serve` on loopback."""
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", promoted, "--env-manager", "local"]
    # The server starts `uvicorn` by its name, so it must be on PATH, as in an activated environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}
    with on_loopback([*command, "--workers", "1"], env=environment) as url:
        yield lambda body, **options: _post(url, body, **options)


def _post(url: str, body: object, *, content_type: str = "application/json") -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = urllib.request.Request(f"{url}/invocations", data=data, headers={"Content-Type": content_type})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        text = refused.read().decode()
        return refused.code, json.loads(text) if text.startswith("{") else {"message": text}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header states `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_served_checkpoint_answers_as_the_classifier_in_this_process(
    ask_server: Ask, promoted: str, real_ihc: np.ndarray
) -> None:
    images = [encode_png(real_ihc[:256, :256]), encode_png(real_ihc[256:, 256:])]
    params = {"biomarker": "ki-67", "top": 2, "mpp": 0.5, "organ": "colon"}
    status, answer = ask_server({"inputs": {"image": [_base64(i) for i in images]}, "params": params})
    assert status == 200
    # The same model by its alias: his2lip reads its checkpoint.
    loaded = load_for_inference(promoted)
    classifier = Classifier(loaded.model, ask(biomarker="Ki67"), history=loaded.history, organ="colon")
    wanted = classifier.classify(images, scale=Scale(0.5, "option"))
    for served, home in zip(answer["predictions"], wanted, strict=True):
        assert list(served) == ["tissue", "staining"]
        for name, given in home.items():
            assert (served[name]["label"], served[name]["prompt"]) == (given.label, given.prompt)
            assert served[name]["similarity"] == pytest.approx(given.similarity, abs=1e-5)
            assert served[name]["top"][0]["label"] == given.label
            assert len(served[name]["top"]) == 2
            assert (served[name]["basis"], served[name]["answered"]) == (asdict(given.basis), True)
            assert (served[name]["dab"] or {}).get("area") == given.dab


def test_the_server_holds_an_answer_back_and_shows_it_on_request(ask_server: Ask) -> None:
    glass = _base64(encode_png(np.full((128, 128, 3), 243, np.uint8)))
    for force in (False, True):
        status, answer = ask_server({"inputs": {"image": [glass]}, "params": {"force": force}})
        assert status == 200
        found = answer["predictions"][0]["tissue"]
        assert (found["answered"], found["gate"], found["forced"]) == (False, "glass", force)
        assert (found["label"] == NOT_ANSWERED) == (found["similarity"] is None) == (not force)


def test_every_request_format_of_mlflow_is_answered(ask_server: Ask, real_ihc: np.ndarray) -> None:
    image = _base64(encode_png(real_ihc[:128, :128]))
    forms = [
        {"inputs": {"image": [image]}},
        {"inputs": [{"image": image}]},
        {"instances": [{"image": image}]},
        {"dataframe_records": [{"image": image}]},
        {"dataframe_split": {"columns": ["image"], "data": [[image]]}},
    ]
    answers = [ask_server(form) for form in forms]
    assert {status for status, _ in answers} == {200}
    assert len({json.dumps(answer) for _, answer in answers}) == 1


def test_concurrent_requests_get_the_same_answer_as_a_single_one(
    ask_server: Ask, real_ihc: np.ndarray
) -> None:
    body = {"inputs": {"image": [_base64(encode_png(real_ihc[:128, :128]))]}, "params": {"biomarker": "CD8"}}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask_server, [body] * 8))
    assert {status for status, _ in answers} == {200}
    assert len({json.dumps(answer) for _, answer in answers}) == 1


def test_a_promoted_model_has_tensors_and_text_and_no_pickle(promoted: str) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(promoted))
    files = [path for path in folder.rglob("*") if path.is_file()]
    # Python writes its cache beside the file that MLflow imports.
    kinds = {path.suffix for path in files if path.parent.name != "__pycache__"}
    assert kinds <= {"", ".safetensors", ".json", ".yaml", ".txt", ".py", ".md"}


REFUSED = {
    "oversized base64": ({"inputs": {"image": ["A" * (MAX_BASE64 + 4)]}}, "33,554,432"),
    "a decompression bomb": ({"inputs": {"image": [_base64(_bomb(60_000))]}}, "decompression bomb"),
    "not base64": ({"inputs": {"image": ["no base64!"]}}, "this is not base64 (image 0)"),
    "not an image": ({"inputs": {"image": [_base64(b"hello")]}}, "this is not an image"),
    "an empty image": ({"inputs": {"image": [""]}}, "the image is empty"),
    "a broken second image": (
        {"inputs": {"image": [_base64(encode_png(np.zeros((64, 64, 3), np.uint8))), "QUJD"]}},
        "(image 1)",
    ),
    "a number": ({"dataframe_records": [{"image": 5}]}, "int (image 0)"),
    "nothing for an image": ({"dataframe_records": [{"image": None}]}, "NoneType (image 0)"),
    "a list for an image": ({"inputs": {"image": [["QUJD"]]}}, "list (image 0)"),
    "an empty list": ({"inputs": {"image": []}}, "no image"),
    "no records": ({"dataframe_records": []}, "missing inputs"),
    "another column": ({"dataframe_records": [{"picture": "QUJD"}]}, "missing inputs"),
    "too many": ({"inputs": {"image": ["QUJD"] * (MAX_IMAGES + 1)}}, "send at most 64"),
    "an unknown biomarker": (
        {"inputs": {"image": ["QUJD"]}, "params": {"biomarker": "Ki68"}},
        "unknown biomarker 'Ki68'; did you mean 'Ki67'?",
    ),
    "an unknown prompt set": (
        {"inputs": {"image": ["QUJD"]}, "params": {"prompts": "tisue"}},
        "did you mean 'tissue'?",
    ),
    "a file of the server's": (
        {"inputs": {"image": ["QUJD"]}, "params": {"prompts": "/etc/hosts.yaml"}},
        "/etc/hosts.yaml",
    ),
    "no class": ({"inputs": {"image": ["QUJD"]}, "params": {"top": 0}}, "top is 0"),
    "impossible microns per pixel": ({"inputs": {"image": ["QUJD"]}, "params": {"mpp": 300.0}}, "mpp is 300"),
    "a word for a number": ({"inputs": {"image": ["QUJD"]}, "params": {"top": "x"}}, "top"),
    "another body": ([1], "Received a list"),
    "no JSON": (b"{", "valid JSON"),
}


@pytest.mark.parametrize(("body", "said"), REFUSED.values(), ids=REFUSED)
def test_a_bad_request_is_refused_with_a_sentence(ask_server: Ask, body: object, said: str) -> None:
    status, answer = ask_server(body)
    assert status == 400
    assert said in answer["message"]
    assert "Traceback" not in json.dumps(answer)


def test_a_body_of_another_content_type_gets_status_415(ask_server: Ask) -> None:
    status, answer = ask_server(b"\x89PNG", content_type="image/png")
    assert status == 415
    assert "application/json" in answer["message"]
