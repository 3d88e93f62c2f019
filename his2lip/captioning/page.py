"""The review page: one reviewer, one project; its state is in this process, the browser only shows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from his2lip.captioning.agreement import with_oneself
from his2lip.captioning.fields import COMPARTMENTS, INTENSITIES, PATTERNS, sentence
from his2lip.captioning.gate import App, Gate
from his2lip.captioning.queue import FILTERS, Session, progress, shown
from his2lip.captioning.records import ACTS, Acceptance, Act, Fields, Judgement
from his2lip.captioning.shortcuts import BUTTONS, Shortcuts
from his2lip.captioning.state import Item, State
from his2lip.captioning.store import PICTURES, Project, StaleError, check_reviewer
from his2lip.config import validate
from his2lip.data.shards import STAININGS
from his2lip.errors import ConfigError, His2lipError, first_line
from his2lip.files import printable

if TYPE_CHECKING:
    from nicegui.element import Element

_HERE = Path(__file__).parent
_GOOD, _BAD = ("accepted", "revised"), ("rejected", "wrong label", "disputed")
_YOURS = "What you typed is kept: Ctrl+Enter saves it, Escape shows the present text."
_LISTED = 200  # rewordings of a seed that the page lists
_LONGEST = 10_000  # characters of a caption; a message of 1 MB closes the connection of the browser


@dataclass(frozen=True)
class Review:
    """Who reviews what.

    acceptance  when a batch of rewordings passes of which nothing was decided yet; the others keep their plan
    shortcuts   the keys of the page
    """

    project: Project
    reviewer: str
    acceptance: Acceptance
    shortcuts: Shortcuts


def serve(
    review: Review, *, host: str, port: int, token: str | None, ready: Callable[[], None] | None = None
) -> None:
    """Serves the page until the process is stopped; `ready` is called when it answers.

    token  what a browser needs to know; None only where `host` is this machine itself
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if ready is not None and self.started:
                ready()

    app = application(review, token)
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", server_header=False, timeout_graceful_shutdown=1
    )
    Server(config).run()


def application(review: Review, token: str | None) -> App:
    """The page as an ASGI application. One process has one."""
    from fastapi import FastAPI
    from fastapi.staticfiles import StaticFiles
    from nicegui import ui

    check_reviewer(review.reviewer)
    Session(review.reviewer, review.project.seed, review.acceptance).batches(review.project.refresh())
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/pictures", StaticFiles(directory=review.project.folder / PICTURES, check_dir=False))

    def root() -> None:
        _Tab(review).build()

    ui.run_with(app, root=root, title="Captions", tailwind=False, show_welcome_message=False)
    return Gate(app, token)


class _Tab:
    """One tab: what it shows, and what its keys and buttons do."""

    def __init__(self, review: Review) -> None:
        self._review, self._project = review, review.project
        self._session = Session(review.reviewer, review.project.seed, review.acceptance)

    def build(self) -> None:
        from nicegui import ui

        keys = json.dumps(self._review.shortcuts.acts()).replace("<", "\\u003c")
        ui.add_head_html(f"<style>{(_HERE / 'page.css').read_text()}</style>")
        ui.add_head_html(
            f"<script>window.reviewKeys = {keys};</script><script>{(_HERE / 'page.js').read_text()}</script>"
        )
        self._root = _tag("div", classes="review")
        ui.on("review", lambda event: self._handle(event.args))
        self._state = self._project.refresh()
        self._session.advance(self._state)
        self._draw(self._state, "")

    def _handle(self, told: Mapping[str, Any]) -> None:
        """Does what the browser asked for and shows the outcome. What was typed and not saved stays."""
        typed: Mapping[str, Any] | None = None
        is_warning = True
        try:
            message = self._perform(told)
            if told.get("act") == "generate":
                typed = {**told, "text": self._generated(told)}
            is_warning = False
        except StaleError as error:
            message = f"Not saved: {error.what}. The present text is shown."
            if told.get("changed"):
                typed = told
                message = f"Not saved: {error.what}. The present text is: {error.item.shown} {_YOURS}"
        except (His2lipError, _Ignored) as error:
            message, typed = f"Not saved: {error}", told
        except OSError as error:  # such as a full disk
            message, typed = f"Not saved: {first_line(error)}", told
        kept = None if typed is None or typed.get("item") != self._session.item else _typed(typed)
        try:
            self._state = self._project.refresh()
        except (His2lipError, OSError) as error:
            message, is_warning = f"This page is not up to date: {error}", True
        self._draw(self._state, message, is_warning=is_warning, typed=kept)

    def _perform(self, told: Mapping[str, Any]) -> str:
        """Does what the browser asked for; the message to show."""
        state, session, act = self._project.refresh(), self._session, told.get("act")
        if act not in ("generate", "accept", "revise"):
            self._check_saved(state, told)
        if act in ("next", "previous"):
            session.step(state, 1 if act == "next" else -1)
            return ""
        if act == "filter":
            after = FILTERS[(FILTERS.index(session.chosen) + 1) % len(FILTERS)]
            value = told.get("value")
            session.choose(state, value if value in FILTERS else after)
            return ""
        if act == "undo":
            return self._undo(state)
        if act == "generate":
            if session.item is None or told.get("item") != session.item:
                raise _Ignored("that key came before this item was shown")
            return "The sentence is from the fields and is not saved yet."
        if act not in ACTS:
            raise _Ignored("the browser asked for something that this page does not know")
        return self._decide(state, act, told)

    def _decide(self, state: State, act: Act, told: Mapping[str, Any]) -> str:
        session = self._session
        if session.item is None or told.get("item") != session.item:
            raise _Ignored("that key came before this item was shown")
        item, text = state.items[session.item], str(told.get("text") or "")
        now_shown = item.original if session.is_blind else item.shown
        is_same = _words(text) == _words(now_shown)
        if act == "accept":
            self._check_saved(state, told)
        if act == "revise" and is_same:
            raise _Ignored("the text is as it was; accept it, or edit it")
        decision = self._project.submit(
            session.reviewer,
            item.id,
            Judgement(
                act,
                text=text,
                fields=self._fields_of(item, told, text) if act == "revise" and item.is_seed else None,
                note=_words(told.get("note")),
            ),
            version=int(told.get("version") or 0),
            blind=session.is_blind,
            acceptance=self._review.acceptance,
        )
        session.advance(self._project.refresh())
        return f"Saved as number {decision.sequence}: {act}, {item.key.title}."

    def _check_saved(self, state: State, told: Mapping[str, Any]) -> None:
        """Raises _Ignored where the act would throw away what was typed about the item that is shown."""
        session = self._session
        if session.item is None or told.get("item") != session.item:
            return
        item = state.items[session.item]
        if not session.is_blind and told.get("version") != item.version:
            if told.get("changed"):
                raise _Ignored(f"this item was decided elsewhere in the meantime. {_YOURS}")
            return
        if _words(told.get("text")) != _words(item.original if session.is_blind else item.shown):
            raise _Ignored("the text was changed; Ctrl+Enter saves it, Escape restores it")
        if item.is_seed and _fields(told) != self._standing_fields(item):
            raise _Ignored(
                "the fields were changed; G writes their sentence, Ctrl+Enter saves it, Escape restores them"
            )
        if _words(told.get("note")) and told.get("act") != "wrong label":
            raise _Ignored("a note is kept for a wrong label only; Escape empties it")

    def _standing_fields(self, item: Item) -> Fields:
        return (None if self._session.is_blind else item.fields) or item.key.fields

    def _undo(self, state: State) -> str:
        last = state.last_undoable(self._session.reviewer)
        if last is None:
            raise _Ignored("there is no decision of yours to undo")
        version = 1 if last.blind else state.items[last.item].version
        self._project.submit(
            self._session.reviewer, last.item, Judgement("undo"), version=version, blind=last.blind
        )
        self._session.show(last.item, is_blind=last.blind)
        return f"Undone: {last.act}, {state.items[last.item].key.title}."

    def _fields_of(self, item: Item, told: Mapping[str, Any], text: str) -> Fields | None:
        """The fields where they generate the text that was saved; None for free text."""
        fields = _fields(told)
        generated = sentence(item.key.tissue, item.key.biomarker, fields)
        return fields if generated == " ".join(text.split()) else None

    def _generated(self, told: Mapping[str, Any]) -> str:
        key = self._project.refresh().items[str(told["item"])].key
        return sentence(key.tissue, key.biomarker, _fields(told))

    # --- drawing ---

    def _draw(
        self, state: State, message: str, *, is_warning: bool = False, typed: _Typed | None = None
    ) -> None:
        self._root.clear()
        with self._root:
            self._header(state)
            line = _text("p", message, classes="message warning" if is_warning else "message")
            line.props["role"] = "status"
            item = None if self._session.item is None else state.items[self._session.item]
            if item is None:
                self._nothing(state)
                return
            version = 0 if self._session.is_blind else item.version
            with _tag("main", data_item=item.id, data_version=version, classes="columns"):
                _pictures(item)
                with _tag("section", classes="decision"):
                    self._item(state, item, typed)

    def _header(self, state: State) -> None:
        found = self._session.batches(state)
        far = progress(state, found, self._session.reviewer)
        share = 100 * far.covered / far.patches if far.patches else 0.0
        with _tag("header"):
            _text("h1", f"Captions: {self._project.about['name']}")
            _text(
                "p",
                f"{far.decided} of {far.seeds} seeds decided. {share:.1f} % of {far.patches:,} patches have "
                f"an approved caption. {far.to_do} items to do, about {far.minutes:.0f} minutes left. "
                f"Reviewer: {self._session.reviewer}.",
            )
            for batch in found:
                _text("p", f"{str(batch)[:1].upper()}{str(batch)[1:]}.", classes="muted")
            with _tag("nav", classes="filters", aria_label="Filter by status"):
                for name in FILTERS:
                    count = len(shown(state, found, name))
                    pressed = "true" if name == self._session.chosen else "false"
                    _text(
                        "button",
                        f"{name} ({count})",
                        data_act="filter",
                        data_value=name,
                        aria_pressed=pressed,
                    )

    def _nothing(self, state: State) -> None:
        _text("h2", "Nothing is left under this filter")
        _text("p", f"Blind repeats: {with_oneself(state, self._session.reviewer)}.")
        self._buttons(("undo", "filter"))

    def _item(self, state: State, item: Item, typed: _Typed | None) -> None:
        is_blind = self._session.is_blind
        original = item.original if is_blind else item.shown
        kind = "Seed" if item.is_seed else "Rewording"
        _text("h2", item.key.title)
        status = "open" if is_blind else item.status
        with _tag("p"):
            _text("span", f"{kind}, {item.key.patches:,} patches, ", classes="muted")
            _text("span", status, classes=_status_class(status))
        if not is_blind:
            _disputes(item)
        if not item.is_seed:
            seed = state.items[item.key.id]
            _text("p", f"Seed: {seed.shown}")
        box = _tag("textarea", data_original=original, rows=3, spellcheck="true", aria_label="Caption")
        box.props["maxlength"] = _LONGEST
        box.props["value"] = original if typed is None else typed.text
        self._buttons(("accept", "edit"))
        save = _text("button", "Save revision", data_act="revise")
        with save:
            _text("kbd", "Ctrl+Enter")
        self._buttons(("reject", "cannot_tell", "wrong_label"))
        with _tag("p"):
            self._buttons(("undo", "previous", "next", "filter"))
        with _tag("label", classes="muted"):
            _text("span", "For a wrong label, what you take it for (optional)")
            note = "" if typed is None else typed.note
            _tag("input", id="note", data_original="", maxlength=200, value=note)
        if item.is_seed:
            self._fields_form(item, typed)
            self._variants(state, item)

    def _buttons(self, names: tuple[str, ...]) -> None:
        for name in names:
            act, label = BUTTONS[name]
            button = _text("button", label, data_act=act, classes="main" if name == "accept" else "")
            with button:
                _text("kbd", getattr(self._review.shortcuts, name).upper())

    def _fields_form(self, item: Item, typed: _Typed | None) -> None:
        standing = self._standing_fields(item)
        fields = standing if typed is None else typed.fields
        _text("h3", "Fields")
        with _tag("div", classes="fields"):
            _choice("compartment", fields.compartment, COMPARTMENTS, standing.compartment)
            _input("cells", fields.cells, standing.cells)
            _choice("share", fields.share or "", STAININGS, standing.share or "")
            names = [f"{n} {word}" for n, word in enumerate(INTENSITIES)]
            now, before = ("" if of.intensity is None else names[of.intensity] for of in (fields, standing))
            _choice("intensity", now, names, before)
            _choice("pattern", fields.pattern, PATTERNS, standing.pattern)
            _input("background", fields.background, standing.background)
        self._buttons(("generate",))

    def _variants(self, state: State, seed: Item) -> None:
        own = [item for item in state.variants if item.key.id == seed.id and state.is_current(item)]
        if not own or self._session.is_blind:
            return
        _text("h3", f"Rewordings: {len(own)}")
        with _tag("ul", tabindex=0, aria_label="Rewordings"):
            for item in own[:_LISTED]:
                with _tag("li"):
                    _text("span", f"{item.status}: ", classes=_status_class(item.status))
                    _text("span", item.shown)
            if len(own) > _LISTED:
                _text("li", f"and {len(own) - _LISTED} more")


@dataclass(frozen=True)
class _Typed:
    """What the reviewer wrote and did not save."""

    text: str
    fields: Fields
    note: str


def _typed(told: Mapping[str, Any]) -> _Typed | None:
    try:
        return _Typed(str(told.get("text") or ""), _fields(told), _words(told.get("note")))
    except ConfigError:
        return None


class _Ignored(Exception):
    """What the reviewer did changes nothing, for this reason."""


def _words(text: object) -> str:
    """A text with single spaces; halves of characters, which a browser can send, are escaped."""
    return " ".join(printable(str(text or "")).split())


def _fields(told: Mapping[str, Any]) -> Fields:
    """The fields of the form. Raises ConfigError for values that the form does not offer."""
    given = told.get("fields")
    tree: dict[str, Any] = {k: _words(v) for k, v in given.items()} if isinstance(given, dict) else {}
    tree["share"] = tree.get("share") or None
    intensity = tree.get("intensity") or None
    tree["intensity"] = None if intensity is None else intensity.partition(" ")[0]
    return validate(Fields, tree)


def _pictures(item: Item) -> None:
    has_context = any(picture.context_um is not None for picture in item.key.pictures)  # beside the patch
    classes = "pictures wide" if has_context else "pictures"
    with _tag("section", classes=classes, aria_label="Representative patches"):
        for number, picture in enumerate(item.key.pictures, start=1):
            told = [f"{number}"]
            if picture.context_um is not None:
                told.append(f"{picture.context_um:g} µm of context")
            if picture.scale_bar_um is not None:
                told.append(f"bar {picture.scale_bar_um:g} µm")
            elif picture.context_um is None:
                told.append("scale unknown")
            if picture.case:
                told.append(f"case {picture.case}")
            with _tag("figure"):
                name = picture.file.removeprefix(f"{PICTURES}/")
                _tag("img", src=f"/pictures/{quote(name)}", alt=f"Patch {number} of {item.key.title}")
                _text("figcaption", ", ".join(told))


def _disputes(item: Item) -> None:
    if item.status != "disputed":
        return
    for name, decision in sorted(item.standing.items()):
        _text("p", f"{name}: {decision.act}{f', {decision.after}' if decision.after else ''}")


def _status_class(status: str) -> str:
    return f"status {'good' if status in _GOOD else 'bad' if status in _BAD else ''}".strip()


def _choice(name: str, value: str, offered: Sequence[str], original: str) -> None:
    values = dict.fromkeys(("", original, value, *offered))
    with _tag("label"):
        _text("span", name)
        with _tag("select", data_field=name, data_original=original):
            for option in values:
                entry = _text("option", option or "not stated", value=option)
                if option == value:
                    entry.props["selected"] = True


def _input(name: str, value: str, original: str) -> None:
    with _tag("label"):
        _text("span", name)
        _tag("input", data_field=name, data_original=original, maxlength=200, value=value)


def _tag(tag: str, *, classes: str = "", **props: object) -> Element:
    """An HTML element; `data_item` is the attribute `data-item`."""
    from nicegui import ui

    return _with(ui.element(tag), classes, props)


def _text(tag: str, text: str, *, classes: str = "", **props: object) -> Element:
    """An HTML element with a text, which the browser shows as it is, never as markup."""
    from nicegui.elements.mixins.text_element import TextElement

    return _with(TextElement(tag=tag, text=text), classes, props)


def _with(element: Element, classes: str, props: Mapping[str, object]) -> Element:
    if classes:
        element.classes(classes)
    for name, value in props.items():
        element.props[name.replace("_", "-")] = value
    return element
