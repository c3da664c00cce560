"""A picture of a network's axes: layers as rows, dimensions of their weights as bars, an axis a colour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple
from xml.sax.saxutils import escape

ROW, BAR, GAP, TEXT = 22, 150, 12, 6.7  # pixels: of a row, of a bar and between two, of a letter


class Part(NamedTuple):
    """A stretch of a dimension that runs along an axis, or along none."""

    axis: str | None
    size: int


Layers = Mapping[str, list[list[Part]]]
"""{layer: its dimensions, each a list of parts}."""


def svg(layers: Layers, axes: Iterable[str]) -> str:
    """The picture as text."""
    axes = list(axes)
    colours = {name: f"hsl({round(137.508 * n) % 360}, 60%, {62 if n % 2 else 72}%)" for n, name in enumerate(axes)}
    left = round(TEXT * max(map(len, [*layers, "layer"]), default=0)) + 2 * GAP
    bars = max((len(dims) for dims in layers.values()), default=0)
    right = left + bars * (BAR + GAP) + GAP
    width = right + round(TEXT * max(map(len, [*axes, "axes"]), default=0)) + 3 * GAP + 12
    height = ROW * (max(len(layers), len(axes)) + 1) + 2 * GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        "<style>text { font: 11px monospace; } .head { font-weight: bold; }</style>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(GAP, ROW, "layer", "head"),
        *(_text(left + n * (BAR + GAP), ROW, f"dimension {n}", "head") for n in range(bars)),
        _text(right, ROW, "axes", "head"),
    ]
    for row, (layer, dims) in enumerate(layers.items(), start=1):
        top = row * ROW + GAP
        lines.append(_text(GAP, top + 11, layer))
        for n, parts in enumerate(dims):
            lines += _bar(left + n * (BAR + GAP), top, parts, colours)
    for row, name in enumerate(axes, start=1):
        top = row * ROW + GAP
        lines.append(f'<rect x="{right}" y="{top}" width="12" height="14" fill="{colours[name]}"/>')
        lines.append(_text(right + 12 + GAP / 2, top + 11, name))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _bar(x: float, y: float, parts: list[Part], colours: Mapping[str, str]) -> list[str]:
    """Parts side by side, as long as their shares; what each is shows where a pointer rests on it."""
    whole = sum(part.size for part in parts)
    lines = []
    for part in parts:
        length = BAR * part.size / max(whole, 1)
        fill = "#ddd" if part.axis is None else colours[part.axis]
        said = escape(f"{part.size} of {part.axis}" if part.axis is not None else f"{part.size}, fixed")
        box = f'<rect x="{x:.1f}" y="{y:.1f}" width="{length:.1f}" height="14" fill="{fill}" stroke="white">'
        lines.append(f"{box}<title>{said}</title></rect>")
        if length > TEXT * len(str(part.size)) + 4:
            lines.append(_text(x + 3, y + 11, str(part.size)))
        x += length
    return lines


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    look = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{look}>{escape(words)}</text>'
