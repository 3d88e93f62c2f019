"""The leaderboard of 13 rows on ten datasets in a real browser: size, sorting, filters, links, colours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from boards import DATASETS, MODELS, real_size
from browser import browser_page
from page_colours import AA, COLOURS, channels, contrast, luminance
from page_tags import dead_links, tags

from his2lip.report.board import Board, read_board
from his2lip.report.pages import write_pages

if TYPE_CHECKING:
    from playwright.sync_api import Page

CSS = Path(__file__).parents[2] / "his2lip/report/templates/leaderboard.css"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """index.html of a board of real size."""
    folder = tmp_path_factory.mktemp("board")
    return write_pages(real_size(folder), folder / "report")


@pytest.fixture(scope="module")
def board(path: Path) -> Board:
    return read_board(path.with_name("leaderboard.csv"))


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser_page() as page:
        yield page


@pytest.fixture
def page(tab: Page, path: Path) -> Page:
    """The page in a tab of 1,280 px, as it opens."""
    tab.emulate_media(color_scheme="light")
    tab.goto(path.as_uri())
    return tab


def rows(page: Page, table: str) -> list[str]:
    """The models of a table from top to bottom, hidden ones left out."""
    names = page.eval_on_selector_all(
        f"{table} tbody tr", "rows => rows.filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    )
    assert isinstance(names, list)
    return names


def test_the_page_opens_without_errors_or_requests_and_fits_on_1280_px(tab: Page, path: Path) -> None:
    told: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: told.append(message.text))
    tab.on("pageerror", lambda error: told.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    assert not told
    assert asked == [path.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
    tab.evaluate("all('[data-figure]').forEach(part => { part.hidden = false; })")
    inside = "tables => tables.every(t => t.getBoundingClientRect().right <= 1280)"
    assert tab.eval_on_selector_all("table.board", inside)
    tab.evaluate("choose()")
    tab.locator("#plots .plot").first.scroll_into_view_if_needed()
    tab.wait_for_selector("#plots .plot svg .heatmap-label")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
    assert not told
    assert tab.locator("#datasets th:visible", has_text="24 cases").count() == 14, "without the pointer"


def test_a_column_is_sorted_by_click_or_key_with_missing_figures_last(page: Page, board: Board) -> None:
    table = "[data-figure=macro_f1] >> nth=0"
    for name in ("bcdata", "mihic"):
        known = {m: cell.macro_f1 for m in board.models if (cell := board.cell(m, name)) is not None}
        best_first = sorted(known.values(), reverse=True)
        button = page.locator(table).locator(f"th[data-dataset={name}] button")
        button.click()
        found = page.locator(table).locator("tbody th").all_text_contents()
        assert [known.get(model) for model in found] == [*best_first, *[None] * (13 - len(known))]
        button.press("Enter")
        found = page.locator(table).locator("tbody th").all_text_contents()
        assert [known.get(model) for model in found] == [*best_first[::-1], *[None] * (13 - len(known))]
        head = page.locator(table).locator("th[aria-sort=ascending]")
        assert head.get_attribute("data-dataset") == name


def test_filters_hide_datasets_protocols_and_models_everywhere(page: Page) -> None:
    page.uncheck("input[value=bci]")
    assert page.locator("[data-dataset=bci]:visible").count() == 0
    assert page.locator("#datasets th[data-dataset=hnscc]:visible").count() == 2
    cells = "rows => rows.map(r => [...r.cells].filter(c => !c.hidden).length)"
    assert set(page.eval_on_selector_all("[data-figure=macro_f1] tr", cells)) == {10, 5}, (
        "a model and nine or four datasets"
    )
    page.select_option("#protocol", "paper")
    assert page.locator("[data-protocol=default]:visible").count() == 0
    assert page.locator("#datasets table:visible").count() == 1
    page.uncheck("#baselines")
    assert rows(page, "#summary") == [name for name in rows(page, "#summary") if name in MODELS]
    assert len(rows(page, "#summary")) == 8
    page.fill("#model-filter", "his2")
    assert sorted(rows(page, "#summary")) == ["HIS2BiomedCLIP", "HIS2CLIP", "HIS2PLIP"]
    assert page.inner_text("#shown") == "3 of 13 models, 9 of 10 datasets"
    page.click("#no-datasets")
    assert page.locator("#datasets table:visible").count() == 0
    page.click("#all-datasets")
    assert page.locator("#datasets th[data-dataset=hnscc]:visible").count() == 1


def test_the_keyboard_skips_to_the_figures(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the figures"
    assert page.locator(":focus").bounding_box() is not None
    page.keyboard.press("Enter")
    assert page.url.endswith("#summary")


def test_a_figure_opens_its_evidence(page: Page) -> None:
    figure = page.locator("[data-figure=macro_f1] tr[data-model=MUSK] td a").first
    place = figure.get_attribute("href")
    figure.press("Enter")
    evidence = page.locator(str(place))
    assert evidence.get_attribute("data-model") == "MUSK"
    evidence.locator("caption", has_text="Confusion matrix").wait_for()
    assert evidence.locator("a", has_text="predictions").is_visible()


def test_a_mean_leads_to_the_figures_that_it_is_the_mean_of(page: Page) -> None:
    page.locator("#summary td a").first.click()
    page.locator("#figure-chance_corrected table").wait_for()
    assert page.locator("#figure-macro_f1").is_hidden()
    assert page.input_value("#figure") == "chance_corrected"


def test_every_link_leads_to_a_place_on_the_page_or_a_file(path: Path) -> None:
    assert dead_links(path) == []
    found = tags(path.read_text())
    links = {attributes["href"] for name, attributes in found if name == "a"}
    files = {link for link in links if not link.startswith("#")}
    assert len(files) > len(DATASETS) * 8, "the predictions of each grid cell, and tables"
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_text_can_be_read_in_light_and_dark(page: Page) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        found = page.evaluate(COLOURS)
        assert len(found) > 5
        for text, colour, background in found:
            ratio = contrast(channels(colour), channels(background))
            assert ratio >= AA, f"{scheme}, {text}: {colour} on {background}"
        grounds.append(luminance(channels(page.evaluate("getComputedStyle(document.body).backgroundColor"))))
    assert grounds[0] > 0.9
    assert grounds[1] < 0.05


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_the_colours_of_text_have_enough_contrast(scheme: int) -> None:
    """What can be checked on a machine without a browser."""
    values = [dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in CSS.read_text().split("@media")[:2]]
    own = values[scheme]
    on_page = [(name, "page") for name in ("text", "muted", "link", "mark", "odd")]
    for name, ground in (
        *on_page,
        ("muted", "raised"),
        ("text", "best"),
        ("mark", "best"),
        ("text", "warning"),
    ):
        colour, background = ([int(own[n][i : i + 2], 16) for i in (1, 3, 5)] for n in (name, ground))
        assert contrast(colour, background) >= AA, (name, ground)
