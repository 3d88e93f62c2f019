"""The review page in a real browser, served by the real command, which is killed at the end."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import browser_page
from page_colours import AA, COLOURS, channels, contrast
from projects import keys, project, variants
from review_server import Server, free_port, review_server

from his2lip.captioning import Project
from his2lip.captioning.records import Decision, Judgement

if TYPE_CHECKING:
    from playwright.sync_api import Dialog, Page

CSS = Path(__file__).parents[2] / "his2lip/captioning/page.css"
EVIL = "<script>window.hacked = 1</script><img src=x onerror='hacked = 1'> `${window.hacked = 1}` CD3 & <b>"
ACCEPT = "j"  # another key than the default one


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """16 keys with two pictures; the second seed, whose text is markup, is approved and has 30 rewordings."""
    folder = tmp_path_factory.mktemp("review") / "p"
    found = keys(16, pictures=2)
    found[1] = found[1].model_copy(update={"text": EVIL})
    made = project(folder, found)
    made.submit("zoe", found[1].id, Judgement("accept"), version=0)
    made.add_variants("first", [v.model_copy(update={"text": EVIL}) for v in variants(found[1], 30)])
    return made


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(made: Project, port: int) -> Iterator[Server]:
    shortcuts = made.folder.parent / "keys.yaml"
    shortcuts.write_text(f"accept: {ACCEPT}\n")
    options = ("--keys", str(shortcuts), "--error-rate", "0.2")
    with review_server(made.folder, *options, port=port) as running:
        yield running


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What the page said to the console, and the addresses outside its own that it asked for."""
    return []


@pytest.fixture(scope="module")
def tab(server: Server, told: list[str]) -> Iterator[Page]:
    with browser_page() as page:
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on(
            "request",
            lambda request: told.append(request.url) if _is_elsewhere(request.url, server) else None,
        )
        yield page


@pytest.fixture
def page(tab: Page, server: Server) -> Page:
    tab.goto(server.address)
    tab.wait_for_selector("[data-item]")
    return tab


def _is_elsewhere(url: str, server: Server) -> bool:
    return not url.startswith((server.address, "data:", "blob:"))


def item_of(page: Page) -> str:
    return str(page.get_attribute("[data-item]", "data-item"))


def message(page: Page) -> str:
    return page.inner_text(".message")


def press(page: Page, *presses: str) -> str:
    """Presses keys, waits until the page has answered, and gives its message."""
    page.evaluate("document.querySelector('.message').dataset.old = 1")
    for key in presses:
        page.keyboard.press(key)
    page.wait_for_selector(".message:not([data-old])", state="attached")
    return message(page)


def decisions(made: Project, reviewer: str = "ann") -> list[Decision]:
    return [d for d in Project.open(made.folder).refresh().decisions if d.reviewer == reviewer]


def test_the_page_fits_on_1280_px_asks_nobody_else_and_its_text_can_be_read(
    page: Page, told: list[str]
) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    found = page.evaluate(COLOURS)
    assert len(found) >= 3
    for text, colour, background in found:
        ratio = contrast(channels(colour), channels(background))
        assert ratio >= AA, f"{text}: {colour} on {background}"
    assert page.locator(".review figure img").count() == 2
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
    assert page.inner_text("button.main kbd") == ACCEPT.upper()
    assert told == []


def test_texts_are_shown_as_they_are_never_as_markup(page: Page, made: Project) -> None:
    page.click("[data-value='accepted']")
    page.wait_for_selector(f"[data-item='{made.keys[1].id}']")
    assert page.input_value(".review textarea") == EVIL
    assert EVIL in page.inner_text(".review li >> nth=0")
    assert page.evaluate("window.hacked") is None
    page.click("[data-value='to do']")
    page.wait_for_selector("[data-value='to do'][aria-pressed=true]")


def test_every_act_by_keyboard_alone_and_none_about_an_item_that_was_not_shown(
    page: Page, made: Project
) -> None:
    seen: list[str] = []
    before = len(decisions(made))
    for key in (ACCEPT, "r", "c", "w"):
        seen.append(item_of(page))
        press(page, key)
    seen.append(item_of(page))
    page.keyboard.press("e")
    page.keyboard.type(" Revised.")
    press(page, "Control+Enter")
    last = item_of(page)
    assert press(page, "u")
    assert item_of(page) == seen[-1]
    found = decisions(made)[before:]
    assert [d.act for d in found] == ["accept", "reject", "cannot tell", "wrong label", "revise", "undo"]
    assert [d.item for d in found] == [*seen, seen[-1]]
    assert (found[4].after or "").endswith(" Revised.")
    press(page, "n")
    assert item_of(page) == last
    press(page, "p")
    assert item_of(page) == seen[-1]
    page.evaluate("document.querySelector('[data-item]').dataset.item = 'another'")
    press(page, ACCEPT)
    assert item_of(page) == seen[-1]
    page.keyboard.press("e")
    page.keyboard.type(" Not saved.")
    page.keyboard.press("Escape")
    assert not page.input_value(".review textarea").endswith("Not saved.")
    assert len(decisions(made)) == before + 6


def test_the_fields_write_the_sentence_and_are_kept_with_it(page: Page, made: Project) -> None:
    item = item_of(page)
    page.select_option("[data-field=intensity]", label="3 strong")
    page.fill("[data-field=background]", "red blood cells")
    page.locator("[data-field=background]").press("Escape")
    assert press(page, ACCEPT).startswith("Not saved: the fields were changed")
    assert page.input_value("[data-field=background]") == "red blood cells"
    page.keyboard.press("Escape")
    assert page.input_value("[data-field=background]") == ""
    assert page.input_value("[data-field=intensity]") == "2 moderate"
    page.select_option("[data-field=intensity]", label="3 strong")
    page.fill("[data-field=background]", "red blood cells")
    page.locator("[data-field=background]").press("Escape")
    press(page, "g")
    assert "red blood cells" in page.input_value(".review textarea")
    assert page.input_value("[data-field=background]") == "red blood cells"
    press(page, "Control+Enter")
    found = decisions(made)[-1]
    assert (found.item, found.act) == (item, "revise")
    assert found.fields is not None
    assert (found.fields.intensity, found.fields.background) == (3, "red blood cells")


def test_the_browser_asks_before_a_reload_drops_what_was_typed(page: Page) -> None:
    asked: list[str] = []

    def accept(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.accept()

    page.on("dialog", accept)
    page.keyboard.press("e")
    page.keyboard.type(" and more")
    page.reload()
    page.wait_for_selector("[data-item]")
    assert asked == ["beforeunload"]
    page.keyboard.press("e")
    page.keyboard.type(" and more")
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_selector("[data-item]")
    page.remove_listener("dialog", accept)
    assert asked == ["beforeunload"], "nothing is lost, so nothing is asked"


def test_without_an_answer_the_page_says_that_nothing_may_be_saved_and_a_late_answer_replaces_it(
    page: Page, server: Server, made: Project
) -> None:
    item = item_of(page)
    page.keyboard.press("e")
    page.keyboard.type(" Late.")
    server.process.send_signal(signal.SIGSTOP)
    try:
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".message.warning")
        assert message(page).startswith("No answer for 5 s: whether this was saved is not known.")
        assert page.input_value(".review textarea").endswith(" Late.")
    finally:
        server.process.send_signal(signal.SIGCONT)
    page.wait_for_selector(f"[data-item]:not([data-item='{item}'])")
    assert message(page).startswith("Saved as number")
    assert (decisions(made)[-1].after or "").endswith(" Late.")
    press(page, "u")
    assert item_of(page) == item


def test_a_text_of_any_length_is_answered(page: Page) -> None:
    page.keyboard.press("e")
    page.keyboard.insert_text("word " * 400_000)
    assert len(page.input_value(".review textarea")) == 10_000
    page.keyboard.press("Escape")
    press(page, "n")
    press(page, "p")


def test_the_mouse_does_what_the_keys_do(page: Page, made: Project) -> None:
    item = item_of(page)
    page.fill("#note", "stroma")
    page.click("[data-act='wrong label']")
    page.wait_for_selector(f"[data-item]:not([data-item='{item}'])")
    assert (decisions(made)[-1].item, decisions(made)[-1].note) == (item, "stroma")
    page.click("[data-act=undo]")
    page.wait_for_selector(f"[data-item='{item}']")
    assert decisions(made)[-1].act == "undo"
    page.click(".review figure img >> nth=0")
    assert page.locator("figure.large").count() == 1
    page.keyboard.press("1")
    assert page.locator("figure.large").count() == 0


def test_of_two_tabs_the_later_one_is_told_and_shows_the_newer_state(page: Page, made: Project) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("[data-item]")
    item, before = item_of(page), len(decisions(made))
    assert item_of(other) == item
    page.keyboard.press("e")
    page.keyboard.type(" From the first tab.")
    press(page, "Control+Enter")
    said = press(other, "r")
    assert said.startswith("Not saved")
    assert item_of(other) == item
    assert other.input_value(".review textarea").endswith(" From the first tab.")
    press(other, "r")
    other.close()
    assert [(d.item, d.act) for d in decisions(made)[before:]] == [(item, "revise"), (item, "reject")]


def test_rewordings_are_read_by_sample_and_one_item_in_ten_comes_back_blind(
    page: Page, made: Project
) -> None:
    for _ in range(60):
        if page.locator("[data-item]").count() == 0:
            break
        press(page, ACCEPT)
    found = decisions(made)
    blind = [d for d in found if d.blind]
    assert blind
    assert len(blind) == len({d.item for d in found if not d.blind and d.act != "undo"}) // 10
    assert all(d.item in [e.item for e in found if e.sequence < d.sequence] for d in blind)
    state = Project.open(made.folder).refresh()
    read = [item for item in state.variants if item.status != "open"]
    assert 0 < len(read) < 30
    assert "passed" in page.inner_text(".review header")
    assert "Cohen" in page.inner_text(".review")


def test_a_killed_server_loses_only_what_is_being_typed(
    tab: Page, made: Project, server: Server, port: int
) -> None:
    """The last test of this file that needs the server: it ends it."""
    tab.goto(server.address)
    tab.click("[data-value=all]")
    tab.wait_for_selector("[data-item]")
    press(tab, "r")
    known = decisions(made)
    tab.keyboard.press("e")
    tab.keyboard.type(" Typed, not saved")
    server.kill()
    assert decisions(made) == known
    assert known[-1].act == "reject"
    log = made.folder / "decisions/ann.jsonl"
    with log.open("ab") as file:
        file.write(log.read_bytes().splitlines()[0][:50])  # as if it had been killed in mid-write
    with review_server(made.folder, port=port) as again:
        tab.goto(again.address)
        tab.click("[data-value=all]")
        tab.wait_for_selector("[data-item]")
        assert decisions(made) == known
        press(tab, "c")
        assert [d.act for d in decisions(made)[len(known) :]] == ["cannot tell"]
        assert decisions(made)[-1].sequence == known[-1].sequence + 1


@pytest.mark.slow
def test_84_keys_are_reviewed_by_keyboard_alone(tmp_path: Path) -> None:
    made = project(tmp_path / "p", keys(84, pictures=4))
    with review_server(made.folder) as server, browser_page() as page:
        page.goto(server.address)
        page.wait_for_selector("[data-item]")
        start, presses, shown = time.monotonic(), 0, 0
        while page.locator("[data-item]").count():
            assert page.evaluate("document.documentElement.scrollWidth") <= 1280
            press(page, "a")
            presses, shown = presses + 1, shown + 1
        took = time.monotonic() - start
    state = Project.open(made.folder).refresh()
    assert {item.status for item in state.seeds} == {"accepted"}
    blind = [d for d in state.decisions if d.blind]
    assert len(blind) == 8
    assert shown == 84 + len(blind)
    assert presses / 84 <= 4
    print(
        f"84 keys, {len(blind)} blind repeats: {presses} keystrokes, {took:.0f} s, {took / shown:.2f} s each"
    )


def test_the_colours_of_the_page_have_enough_contrast() -> None:
    """What can be checked on a machine without a browser."""
    own = dict(re.findall(r"--([\w-]+): (#\w{6})", CSS.read_text()))
    pairs = [(name, "page") for name in ("text", "muted", "good", "bad")]
    for name, ground in (*pairs, ("text", "raised"), ("text", "note"), ("on-main", "main")):
        colour, background = ([int(own[n][i : i + 2], 16) for i in (1, 3, 5)] for n in (name, ground))
        assert contrast(colour, background) >= AA, (name, ground)
