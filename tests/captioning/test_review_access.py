"""Who reaches the review page, and which keys it takes."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from projects import project
from review_server import free_port, review_server

from his2lip.captioning import Acceptance, page, read_shortcuts
from his2lip.captioning.gate import Gate, Message, Receive, Scope, Send
from his2lip.captioning.records import Judgement
from his2lip.captioning.shortcuts import Shortcuts
from his2lip.errors import ConfigError

TOKEN = "a-secret"


async def _page(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def _ask(token: str | None, *, kind: str = "http", query: str = "", **headers: str) -> Message:
    """The first message that the gate sends for a request."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {}

    named = {"host": "127.0.0.1:8300"} | headers
    scope: Scope = {
        "type": kind,
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "query_string": query.encode(),
    }
    asyncio.run(Gate(_page, token)(scope, receive, send))
    return sent[0]


@pytest.mark.parametrize("host", ["127.0.0.1:8300", "localhost:8300", "[::1]:8300"])
def test_this_machine_is_answered_by_its_own_names(host: str) -> None:
    assert _ask(None, host=host, origin=f"http://{host}")["status"] == 200


@pytest.mark.parametrize("host", ["evil.example:8300", "192.0.2.7:8300", "127.0.0.1.evil.example", ""])
def test_a_foreign_name_that_points_here_is_refused(host: str) -> None:
    assert _ask(None, host=host)["status"] == 403


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_page_of_another_origin_is_refused(token: str | None) -> None:
    known = f"his2lip_captions={TOKEN}"
    assert _ask(token, origin="https://evil.example", cookie=known)["status"] == 403
    assert _ask(token, kind="websocket", origin="https://evil.example", cookie=known)["code"] == 1008


def test_elsewhere_a_token_is_needed_and_a_cookie_keeps_it() -> None:
    assert _ask(TOKEN, host="192.0.2.7")["status"] == 403
    assert _ask(TOKEN, host="192.0.2.7", query="token=a-secret-")["status"] == 403
    assert _ask(TOKEN, host="192.0.2.7", cookie="his2lip_captions=")["status"] == 403
    assert _ask(TOKEN, kind="websocket", query=f"token={TOKEN}")["code"] == 1008
    first = _ask(TOKEN, host="192.0.2.7", query=f"token={TOKEN}")
    headers = dict(first["headers"])
    assert (first["status"], headers[b"location"]) == (303, b"/")
    cookie = headers[b"set-cookie"].decode()
    assert "HttpOnly" in cookie
    assert _ask(TOKEN, host="192.0.2.7", cookie=cookie.partition(";")[0])["status"] == 200


@pytest.mark.slow
def test_the_command_bound_elsewhere_answers_only_with_its_token(tmp_path: Path) -> None:
    made = project(tmp_path / "p", 2)
    port = free_port()
    with review_server(made.folder, "--host", "0.0.0.0", port=port) as server:
        own = server.address.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(own.partition("?")[0], timeout=20)
        assert refused.value.code == 403
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert opener.open(own, timeout=20).status == 200


@pytest.mark.parametrize(
    "typed", [{"text": "Typed."}, {"fields": {"cells": "T cells"}}, {"note": "stroma"}], ids=str
)
def test_no_act_throws_away_what_was_typed(tmp_path: Path, typed: dict[str, object]) -> None:
    made = project(tmp_path / "p", 3)
    tab = page._Tab(page.Review(made, "ann", Acceptance(), Shortcuts()))
    tab._session.advance(made.refresh())
    key = made.keys[0]
    fields = {
        "compartment": "nuclear",
        "cells": "lymphocytes",
        "share": "moderate",
        "intensity": "2 moderate",
    }
    shown = {"item": key.id, "version": 0, "text": key.text, "fields": fields, "note": ""}
    for act in ("accept", "next", "previous", "filter", "undo", "reject", "cannot tell", "wrong label"):
        if act == "wrong label" and "note" in typed:
            continue
        with pytest.raises(page._Ignored):
            tab._perform(shown | typed | {"act": act})
    assert tab._session.item == key.id
    assert made.refresh().decisions == []
    tab._perform(shown | {"act": "accept"})
    assert [d.act for d in made.refresh().decisions] == ["accept"]


@pytest.mark.parametrize("act", ["next", "reject", "accept", "revise"])
def test_what_was_typed_stays_where_another_tab_decided_about_the_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    made = project(tmp_path / "p", 3)
    tab = page._Tab(page.Review(made, "ann", Acceptance(), Shortcuts()))
    tab._session.advance(made.refresh())
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(tab, "_draw", lambda state, message, **how: drawn.append(how))
    key = made.keys[0]
    made.submit("ann", key.id, Judgement("cannot tell"), version=0)
    tab._handle({"item": key.id, "version": 0, "text": "Typed.", "changed": True, "act": act})
    assert tab._session.item == key.id
    assert drawn[0]["typed"].text == "Typed."
    assert len(made.refresh().decisions) == 1


def test_keys_are_remapped_by_a_file_and_unusable_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("accept: J\n")
    assert read_shortcuts(path).acts()["j"] == "accept"
    assert "a" not in read_shortcuts(path).acts()
    assert read_shortcuts(None) == Shortcuts()
    for text, key in (
        ("accept: r\n", "reject"),
        ("undo: ' '\n", "undo"),
        ("next: '1'\n", "next"),
        ("acept: j\n", "acept"),
        ("edit: ab\n", "edit"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as refused:
            read_shortcuts(path)
        assert refused.value.key == key
