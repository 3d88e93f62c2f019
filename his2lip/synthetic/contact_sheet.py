"""The contact sheet: one generated patch of every tissue type and biomarker, labelled as generated."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from his2lip import taxonomy
from his2lip.synthetic.cases import Biology, Staining, draw_biology, draw_staining, keyed_rng
from his2lip.synthetic.patch import Spec, render

TILE, MPP = 96, 0.4531  # the pixels of the twin, and 1.5 times its field: 43 um
GAP, LEFT, TOP, FOOT = 3, 112, 62, 26
TITLE = "Generated IHC patches: not real"
NOTE = (
    "Rows: tissue types; columns: biomarkers by pattern. Each column is one generated case and slide. "
    "43 microns a side."
)
# Columns in groups of one staining pattern, so that the four can be compared.
PATTERNS = {
    "nuclear": ("Ki67", "P53", "Cyclin-D1", "CDK4"),
    "membranous or cytoplasmic": ("CD3", "CD20", "CD38", "CD68"),
    "endothelial": ("CD34", "D2-40"),
    "stromal": ("FAP", "SMA"),
}


def contact_sheet(*, seed: int = 1) -> Image.Image:
    """The 7 x 12 grid as one picture; the same for the same seed."""
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
            sheet.paste(_patch(tissue, marker, seed), (LEFT + column * pitch, top))
    return sheet


def _head(pen: ImageDraw.ImageDraw, pitch: int) -> None:
    """Names of patterns and biomarkers over their columns."""
    column = 0
    for pattern, group in PATTERNS.items():
        left, right = LEFT + column * pitch, LEFT + (column + len(group)) * pitch - GAP
        pen.text(((left + right) // 2, TOP - 30), pattern, "#444444", _font(12), anchor="mm")
        pen.line((left, TOP - 21, right, TOP - 21), "#999999")
        for marker in group:
            pen.text((LEFT + column * pitch + TILE // 2, TOP - 10), marker, "black", _font(14), anchor="mm")
            column += 1


def _patch(tissue: str, marker: str, seed: int) -> Image.Image:
    biology, staining = _case(marker, seed)
    spec = Spec(tissue=tissue, biomarker=marker, size=TILE, mpp=MPP, biology=biology, staining=staining)
    return Image.fromarray(render(spec, keyed_rng(seed, "sheet", tissue, marker)))


def _case(marker: str, seed: int) -> tuple[Biology, Staining]:
    """One case per column; its nuclear markers stain, so that the pattern is visible."""
    biology = draw_biology(keyed_rng(seed, "sheet", marker))
    shown = {name: max(share, 0.4) for name, share in biology.positive.items()}
    biology.positive.update(shown)
    return biology, draw_staining(keyed_rng(seed, "sheet", marker, "slide"))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def main(arguments: list[str] | None = None) -> int:
    """`python -m his2lip.synthetic.contact_sheet OUT.png`."""
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
