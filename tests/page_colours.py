"""The contrast of the texts of a page, as a browser shows them."""

from __future__ import annotations

import re

AA = 4.5  # smallest contrast of text, WCAG 2.2, success criterion 1.4.3

# Every visible text with its colour and the colour behind it, as [text, colour, background].
COLOURS = """() => {
  document.querySelectorAll('[hidden]').forEach(part => { part.hidden = false; });
  document.querySelectorAll('details').forEach(part => { part.open = true; });
  const behind = part => {
    const colour = getComputedStyle(part).backgroundColor;
    return colour === 'rgba(0, 0, 0, 0)' && part.parentElement ? behind(part.parentElement) : colour;
  };
  const found = new Map();
  for (const part of document.body.querySelectorAll('*')) {
    const own = [...part.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    const isDrawn = part.closest('.heatmap-label, script, style, .modebar, .skip');
    if (!own || isDrawn || !part.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    const style = getComputedStyle(part);
    const colour = part.closest('svg') ? style.fill : style.color;
    found.set(colour + behind(part), [part.textContent.trim().slice(0, 40), colour, behind(part)]);
  }
  return [...found.values()];
}"""


def channels(colour: str) -> list[float]:
    """Red, green and blue, 0 to 255, of a computed colour without transparency."""
    found = [float(number) for number in re.findall(r"[\d.]+", colour)]
    assert len(found) == 3 or found[3] == 1, colour
    return found[:3]


def luminance(rgb: list[float]) -> float:
    """Relative luminance of sRGB, as WCAG 2.2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    """The contrast ratio of two colours, 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
