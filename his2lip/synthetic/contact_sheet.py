"""The contact sheet: one generated patch of every tissue type and biomarker."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from his2lip import taxonomy
from his2lip.synthetic.cases import Biology, SlideStaining, draw_biology, draw_staining, keyed_rng
from his2lip.synthetic.patch import Spec, render

SEED = 1
TILE, MPP = 96, 0.4531  # side in pixels of a patch, and microns per pixel as in the MIHIC twin: 43 microns
GAP, LEFT, TOP, FOOT = 3, 112, 62, 26  # pixels between patches and beside the grid
TITLE = "Generated IHC patches: not real"
NOTE = (
    "Rows: tissue types; columns: biomarkers by pattern. Each column is one generated case and slide. "
    "Each patch is 43 microns wide."
)
# Biomarkers, one column each, by staining pattern.
PATTERNS = {
    "nuclear": ("Ki67", "P53", "Cyclin-D1", "CDK4"),
    "membranous or cytoplasmic": ("CD3", "CD20", "CD38", "CD68"),
    "endothelial": ("CD34", "D2-40"),
    "stromal": ("FAP", "SMA"),
}


def contact_sheet() -> Image.Image:
    """The 7 x 12 patches as one picture, which is the same at each call."""
    markers = [marker for group in PATTERNS.values() for marker in group]
    pitch = TILE + GAP
    size = (LEFT + pitch * len(markers), TOP + pitch * len(taxonomy.TISSUES) + FOOT)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((8, 8), TITLE, "black", _font(18))
    pen.text((8, size[1] - FOOT + 5), NOTE, "#444444", _font(12))
    _head(pen, pitch)
    for row, tissue in enumerate(taxonomy.TISSUES):
        top = TOP + row * pitch
        pen.text((LEFT - 8, top + TILE // 2), tissue, "black", _font(14), anchor="rm")
        for column, marker in enumerate(markers):
            sheet.paste(_patch(tissue, marker), (LEFT + column * pitch, top))
    return sheet


def _head(pen: ImageDraw.ImageDraw, pitch: int) -> None:
    """Draws the names of patterns and biomarkers above their columns."""
    column = 0
    for pattern, group in PATTERNS.items():
        left, right = LEFT + column * pitch, LEFT + (column + len(group)) * pitch - GAP
        pen.text(((left + right) // 2, TOP - 30), pattern, "#444444", _font(12), anchor="mm")
        pen.line((left, TOP - 21, right, TOP - 21), "#999999")
        for marker in group:
            pen.text((LEFT + column * pitch + TILE // 2, TOP - 10), marker, "black", _font(14), anchor="mm")
            column += 1


def _patch(tissue: str, marker: str) -> Image.Image:
    biology, staining = _case(marker)
    spec = Spec(tissue=tissue, biomarker=marker, size=TILE, mpp=MPP, biology=biology, staining=staining)
    return Image.fromarray(render(spec, keyed_rng(SEED, "sheet", tissue, marker)))


def _case(marker: str) -> tuple[Biology, SlideStaining]:
    """The case of a column. At least 40 % of its tumour nuclei stain, to make nuclear patterns visible."""
    biology = draw_biology(keyed_rng(SEED, "sheet", marker))
    shown = {name: max(share, 0.4) for name, share in biology.positive.items()}
    biology.positive.update(shown)
    return biology, draw_staining(keyed_rng(SEED, "sheet", marker, "slide"))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def main(arguments: list[str] | None = None) -> int:
    """Runs `python -m his2lip.synthetic.contact_sheet OUT.png`, which writes the sheet."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        print("usage: python -m his2lip.synthetic.contact_sheet OUT.png", file=sys.stderr)
        return 2
    out = Path(arguments[0])
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet().save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
