"""A slide with a scanned area that does not begin at (0, 0), in Leica's SCN format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

_SCAN = """<image><device model="Leica SCN400" version="1"/>
<pixels sizeX="{width}" sizeY="{height}">
<dimension sizeX="{width}" sizeY="{height}" r="0" ifd="{ifd}"/></pixels>
<view sizeX="{view[0]}" sizeY="{view[1]}" offsetX="{offset[0]}" offsetY="{offset[1]}"/>
<scanSettings><objectiveSettings><objective>{power}</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.4</numericalAperture>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"""


def write_scn(
    path: Path, pixels: np.ndarray, *, mpp: float, offset: tuple[int, int], size: tuple[int, int]
) -> None:
    """uint8 (H, W, 3) at `offset` (x, y) of a slide of `size` (width, height), in level-0 pixels."""
    nanometres = round(mpp * 1000)
    height, width = pixels.shape[:2]
    whole = (size[0] * nanometres, size[1] * nanometres)
    macro = _SCAN.format(width=200, height=100, ifd=1, view=whole, offset=(0, 0), power=0.6)
    scan = _SCAN.format(
        width=width,
        height=height,
        ifd=0,
        view=(width * nanometres, height * nanometres),
        offset=(offset[0] * nanometres, offset[1] * nanometres),
        power=20,
    )
    description = (
        '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection sizeX="{whole[0]}" sizeY="{whole[1]}">{macro}{scan}</collection></scn>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        for page, text in ((pixels, description), (np.full((100, 200, 3), 200, np.uint8), None)):
            out.write(
                page,
                description=text,
                photometric="rgb",
                tile=(256, 256),
                compression="zlib",
                metadata=None,
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
            )
