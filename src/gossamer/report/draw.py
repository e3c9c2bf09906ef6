"""Charts as pictures: SVG for a page, in its colours by day and by night, and PNG for a README."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from gossamer.report.curves import FEW, PALETTE, SLICES, Chart, Curve, Floats, Mark, smooth, thin
from gossamer.report.history import Axis
from gossamer.report.scales import Scale, x_scale, y_scale

__all__ = ["Picture", "draw_png", "draw_svg"]

_MARK_COLORS = {"skip": "alarm", "rollback": "pink", "resume": "muted"}
# A triangle of the mark's own, its point on the line: down for a skipped update, back, on.
_MARK_SHAPES = {"skip": "l-4 -7h8z", "rollback": "l7 -4v8z", "resume": "l-7 -4v8z"}
_MARK_SPACE = 14  # pixels above the plot that marks stand in
_FAR = 2.0  # heights of the plot beyond which a point's exact place no longer shows


@dataclass(frozen=True)
class Picture:
    """An SVG element; where its plot lies, as fractions of the picture; the x values at the plot's left and right."""

    svg: Markup
    left: float
    right: float
    top: float
    bottom: float
    low: float
    high: float


def draw_svg(chart: Chart, axis: Axis, end: float, width: int, height: int) -> Picture:
    """Draw a chart with a transparent background, its text as text, its colours the CSS variables of PALETTE's names.

    Args:
        axis: what to draw the curves over.
        end: where that axis ends, in tokens, steps or seconds; it begins at 0.
        width, height: of the picture, in CSS pixels at which its text is 12 pixels high.
    """
    across, up = x_scale(axis, end), y_scale(chart)
    left, right, top, bottom = 50, width - 14, 10 + (_MARK_SPACE if chart.marks else 0), height - 42
    wide, high = right - left, bottom - top
    parts = [f'<svg viewBox="0 0 {width} {height}" font-size="12" fill="none" aria-hidden="true">']
    for value, label in up.ticks:
        y = f"{top + high * (1 - float(up.place(value))):.1f}"
        parts.append(f'<path d="M{left} {y}H{right}" stroke="var(--line)"/>{_text(left - 7, y, label, "end", 4)}')
    parts.append(f'<path d="M{left} {bottom}H{right}" stroke="var(--muted)" stroke-opacity=".6"/>')
    for value, label in across.ticks:
        parts.append(_text(f"{left + wide * float(across.place(value)):.1f}", bottom + 19, label, "middle"))
    parts.append(_text((left + right) / 2, height - 5, across.name, "middle"))
    # An inner picture cuts off what leaves the plot.
    parts.append(f'<svg x="{left}" y="{top}" width="{wide}" height="{high}" stroke-linejoin="round">')
    for item in chart.curves:
        parts.append(_curve(item, wide * across.place(item.x(axis)), up, high))
    parts.append("</svg>")
    parts += _marks(chart.marks, axis, across, left, wide, top, bottom)
    parts.append("</svg>")
    place = left / width, right / width, top / height, bottom / height
    return Picture(Markup("".join(parts)), *place, across.low, across.high)


def _text(x: float | str, y: float | str, text: str, anchor: str, down: int = 0) -> str:
    shift = f' dy="{down}"' if down else ""
    return f'<text x="{x}" y="{y}"{shift} text-anchor="{anchor}" fill="var(--muted)">{escape(text)}</text>'


def _curve(item: Curve, x: Floats, up: Scale, high: int) -> str:
    def path(values: Floats, style: str) -> str:
        chosen = thin(values)
        return f'<path d="{_path(x[chosen], y(values[chosen]))}" {style}/>'

    def y(values: Floats) -> Floats:
        return high * np.clip(1 - up.place(values), -_FAR, 1 + _FAR)

    color = f'stroke="var(--{item.color})"'
    finite = np.isfinite(item.values)
    if finite.sum() == 1:
        return _dots(x[finite], y(item.values[finite]), item.color, 4)
    if item.faint:
        return path(item.values, f'{color} stroke-opacity=".55"')
    values, parts = item.values, []
    if item.smoothed and len(values) >= FEW:
        crowded = len(thin(values)) > SLICES
        if item.raw:
            parts.append(path(values, f'{color} stroke-opacity="{0.28 if crowded else 0.5}"'))
        values = smooth(values)
    dash = ' stroke-dasharray="7 4"' if item.dashed else ""
    if item.line:
        parts.append(path(values, f'{color} stroke-width="2"{dash}'))
    if not item.line or (item.dots and len(values) <= 60):
        parts.append(_dots(x, y(values), item.color, 2.6))
    return "".join(parts)


def _path(x: Floats, y: Floats) -> str:
    """Lines from point to point, interrupted where y is NaN. A tenth of a pixel is finer than any screen."""
    words, pen = [], "M"
    for across, down in zip(x.tolist(), y.tolist(), strict=True):
        if down != down:
            pen = "M"
            continue
        words.append(f"{pen}{across:.1f} {down:.1f}")
        pen = "L"
    return "".join(words)


def _dots(x: Floats, y: Floats, color: str, radius: float) -> str:
    places = [(across, down) for across, down in zip(x.tolist(), y.tolist(), strict=True) if down == down]
    circles = "".join(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{radius}"/>' for across, down in places)
    return f'<g fill="var(--{color})">{circles}</g>'


def _marks(
    marks: tuple[Mark, ...], axis: Axis, across: Scale, left: int, wide: int, top: int, bottom: int
) -> list[str]:
    parts, taken = [], set()
    for mark in marks:
        x = left + wide * float(across.place(mark.x(axis)))
        if (mark.kind, round(x / 3)) in taken:  # hundreds of skipped steps need not be hundreds of triangles
            continue
        taken.add((mark.kind, round(x / 3)))
        color, middle = _MARK_COLORS[mark.kind], top - 3 if mark.kind == "skip" else top - 7
        parts.append(f'<path d="M{x:.1f} {middle}{_MARK_SHAPES[mark.kind]}" fill="var(--{color})"/>')
        if mark.kind != "skip":
            line = f'M{x:.1f} {top - 11}V{bottom}" stroke="var(--{color})" stroke-dasharray="2 3"'
            parts.append(f'<path d="{line}/>')
    return parts


def draw_png(chart: Chart, end: float, title: str, subtitle: str) -> bytes:
    """Draw a chart over tokens with a headline and a legend on white, 1600 pixels wide: a picture for a README."""
    import matplotlib
    from matplotlib.figure import Figure

    ink, muted, line = (PALETTE[name][0] for name in ("ink", "muted", "line"))
    across, up = x_scale("tokens", end), y_scale(chart)
    with matplotlib.rc_context({"font.size": 10.5}):
        figure = Figure(figsize=(8, 4.4), facecolor="white")
        axes = figure.add_axes((0.075, 0.13, 0.9, 0.69))
        if up.logarithmic:
            axes.set_yscale("log")
            axes.minorticks_off()
        for item in chart.curves:
            color, values = PALETTE[item.color][0], item.values
            if item.faint or (item.smoothed and len(values) >= FEW):
                axes.plot(item.tokens, values, color=color, alpha=0.3, linewidth=0.7)
            if not item.faint:
                drawn = smooth(values) if item.smoothed else values
                single = np.isfinite(values).sum() == 1
                dots = "o" if single or (item.dots and len(values) <= 60) else None
                axes.plot(item.tokens, drawn, color=color, linewidth=1.9, marker=dots, markersize=3.6, label=item.label)
        axes.set_xlim(across.low, across.high)
        axes.set_ylim(up.low, up.high)
        axes.set_xticks([tick for tick, _ in across.ticks], [label for _, label in across.ticks])
        axes.set_yticks([tick for tick, _ in up.ticks], [label for _, label in up.ticks])
        axes.set_xlabel(across.name, color=muted)
        axes.set_ylabel(chart.unit, color=muted)
        axes.grid(axis="y", color=line, linewidth=1)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, colors=muted, pad=6)
        for name, spine in axes.spines.items():
            spine.set_visible(name == "bottom")
            spine.set_color(line)
        # A dollar sign in a name is no formula.
        figure.text(0.022, 0.925, title, fontsize=15, fontweight="bold", color=ink, parse_math=False)
        figure.text(0.022, 0.868, subtitle, color=muted, parse_math=False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="upper right", labelcolor=ink)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()
