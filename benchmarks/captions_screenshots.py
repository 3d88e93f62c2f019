"""Pictures of the review page: docs/images/captions_review.png and captions_sampling.png.

Usage: PYTHONPATH=tests:tests/captioning python benchmarks/captions_screenshots.py PROJECT OUT_FOLDER

PROJECT is the folder of a project that `his2lip captions draft` made of generated patches; a copy of it is
reviewed. The script needs Chromium and the development dependencies.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from browser import browser_page
from projects import variants
from review_server import review_server

from his2lip.captioning import Judgement, Project
from his2lip.data.captions import CaptionBank

WIDTH, HEIGHT = 1280, 860
DECIDED = 12  # keys that are accepted before the pictures are taken
SHOWN = "Tumor."  # the first open seed of this tissue type is shown


def main(folder: Path, out: Path) -> None:
    """Writes what the browser shows of a seed and of a rewording."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("decisions", "variants"))
        project = Project.open(copy)
        for item in project.refresh().seeds[:DECIDED]:
            project.submit("pathologist", item.id, Judgement("accept"), version=0)
        key = project.refresh().seeds[0].key
        texts = CaptionBank.templates().lines(key.tissue, key.biomarker, key.staining)  # in place of answers
        rewordings = variants(key, len(texts))
        project.add_variants(
            "example",
            [v.model_copy(update={"text": text}) for v, text in zip(rewordings, texts, strict=True)],
        )
        with (
            review_server(copy, reviewer="pathologist") as server,
            browser_page(width=WIDTH, height=HEIGHT) as page,
        ):
            page.goto(server.address)
            page.wait_for_selector("[data-item]")
            while not str(shown := page.get_attribute("[data-item]", "data-item")).startswith(SHOWN):
                page.keyboard.press("n")
                page.wait_for_selector(f"[data-item]:not([data-item='{shown}'])")
            page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            page.screenshot(path=out / "captions_review.png")
            page.click("[data-value=open]")
            page.wait_for_selector("[data-value=open][aria-pressed=true]")
            page.keyboard.press("p")  # from the first item to the last one, a rewording
            page.wait_for_selector(f"[data-item^='{key.id}.']")
            page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            page.screenshot(path=out / "captions_sampling.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
