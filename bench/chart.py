"""Draws charts as SVG that look right in a README, light or dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#2f6fde", "#c8781e", "#6b8e23", "#8e5bb5", "#b5485d", "#7a7a7a")
WIDTH, LABELS, RIGHT = 860, 300, 70
BAR, GAP, TOP = 14, 16, 84


def chart(title: str, subtitle: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Draw groups of bars on a logarithmic scale around 1. Values must be above zero."""
    names = list(dict.fromkeys(name for _, bars in rows for name in bars))
    colour = dict(zip(names, COLOURS * (1 + len(names) // len(COLOURS)), strict=False))
    values = [value for _, bars in rows for value in bars.values()] or [1.0]
    low = math.floor(math.log10(min(*values, 0.5)))
    high = math.ceil(math.log10(max(*values, 2.0)))
    room = WIDTH - LABELS - RIGHT

    def x(value: float) -> float:
        return LABELS + room * (math.log10(value) - low) / (high - low)

    parts: list[str] = []
    y = TOP
    for label, bars in rows:
        middle = y + len(bars) * BAR / 2 + 4
        parts.append(f'<text x="{LABELS - 10}" y="{middle:.0f}" text-anchor="end">{escape(label)}</text>')
        for name, value in bars.items():
            left, right = sorted((x(1), x(value)))
            parts.append(
                f'<rect x="{left:.1f}" y="{y}" width="{max(right - left, 1.5):.1f}" height="{BAR - 3}" '
                f'fill="{colour[name]}"/>'
                f'<text x="{right + 5:.1f}" y="{y + 9}" font-size="10">{value:.3g}</text>'
            )
            y += BAR
        y += GAP
    grid = [
        f'<line x1="{x(10.0**power):.1f}" x2="{x(10.0**power):.1f}" y1="{TOP - 12}" y2="{y - GAP}" '
        f'stroke="#999" stroke-width="{1.2 if power == 0 else 0.4}"/>'
        f'<text x="{x(10.0**power):.1f}" y="{y}" text-anchor="middle" font-size="10">{10.0**power:g}</text>'
        for power in range(low, high + 1)
    ]
    legend, left = [], 20.0
    for name in names:
        legend.append(
            f'<rect x="{left:.0f}" y="52" width="11" height="11" fill="{colour[name]}"/>'
            f'<text x="{left + 16:.0f}" y="62">{escape(name)}</text>'
        )
        left += 36 + 7.2 * len(name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 14}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#777">'
        f'<text x="20" y="22" font-size="16" font-weight="600">{escape(title)}</text>'
        f'<text x="20" y="40">{escape(subtitle)}</text>'
        f"{''.join(legend)}{''.join(grid)}{''.join(parts)}</svg>\n"
    )


def lines(title: str, unit: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Draw lines over time, from zero up; `unit` is the unit of the time."""
    points = [(1e-9, 1e-9), *(point for each in series.values() for point in each)]
    longest, highest = max(x for x, _ in points), max(y for _, y in points)
    left, top, width, height = 60, 60, WIDTH - 80, 240

    def place(x: float, y: float) -> str:
        return f"{left + width * x / longest:.1f},{top + height * (1 - y / highest):.1f}"

    parts = []
    for number, (name, each) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in each)
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>'
            f'<text x="{left + number * 220}" y="44" fill="{colour}">{escape(name)}</text>'
        )
    for share in (0, 0.5, 1):
        parts.append(
            f'<text x="{left - 6}" y="{top + height * (1 - share) + 4:.0f}" text-anchor="end">'
            f"{highest * share:.0f}</text>"
            f'<text x="{left + width * share:.0f}" y="{top + height + 18}" text-anchor="middle">'
            f"{longest * share:.0f}{f' {unit}' if share == 1 else ''}</text>"
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + height + 30}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#777">'
        f'<text x="20" y="22" font-size="16" font-weight="600">{escape(title)}</text>'
        f'<path d="M{left} {top} V{top + height} H{left + width}" fill="none" stroke="#999"/>'
        f"{''.join(parts)}</svg>\n"
    )
