"""Matplotlib figures of networks and of the results of `keras_resdense.insight.analysis`.

Each function returns a figure, which notebooks show and `save_figure` writes. Lines differ in style as well as in
colour, and the colours are those of Okabe and Ito, which colour-blind people can distinguish.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_resdense.files import staged
from keras_resdense.graph import place_of
from keras_resdense.insight.analysis import GradientNorm, PartSummary, group_layers, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

_BLUE, _SKY, _ORANGE, _AMBER, _INK, _GREY = "#0072b2", "#b9dff5", "#d55e00", "#f7dca5", "#222222", "#8a8a8a"
_LINES = {
    "identity shortcut": {"color": _BLUE, "linestyle": "solid"},
    "identity, subsampled or padded": {"color": _BLUE, "linestyle": (0, (1, 1))},
    "projection shortcut": {"color": _ORANGE, "linestyle": (0, (4, 1.5))},
}
_FILLS = {
    "block": {"facecolor": "#f4f4f4", "edgecolor": _INK},
    "block that shrinks the map": {"facecolor": "#c4c4c4", "edgecolor": _INK},
    "dense layer": {"facecolor": "#ffffff", "edgecolor": _INK},
    "concatenation, as high as it has channels": {"facecolor": _SKY, "edgecolor": _BLUE},
    "transition": {"facecolor": _AMBER, "edgecolor": _INK},
}
#: Inches: height of a row, width of the labels, largest width of all boxes, half of a box's height.
_ROW, _LABELS, _BOXES, _HALF = 1.3, 3.7, 9.5, 0.2
#: Inches from the middle of a box to the foot of the concatenation, and the height of the largest one.
_FOOT, _TALLEST = 0.3, 0.36


def check_suffix(path: Path | str) -> None:
    """Raises a ValueError if the suffix is not a format of pictures."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} does not end in {' or '.join(SUFFIXES)}, the formats of pictures.")


def save_figure(figure: Figure, path: Path | str) -> None:
    """Writes a figure as PNG or SVG, depending on the file's suffix.

    Raises:
        ValueError: If the suffix is neither.
        OSError: If the file cannot be written.
    """
    check_suffix(path)
    with staged(Path(path)) as temporary:
        figure.savefig(temporary, dpi=150, facecolor="white")


def draw_network(model: keras.Model) -> Figure:
    """Draws a network: a row for each stage, a box for each block or dense layer, shortcuts and concatenations.

    In an SVG, the ids of boxes and shortcuts are the names of their blocks.

    Args:
        model: Model that `summarise` accepts.

    Raises:
        ValueError: If `summarise` refuses the model.
    """
    from matplotlib.figure import Figure

    parts = {part.name: part for part in summarise(model)}
    blocks = group_layers(model, "block")
    rows = _rows(blocks)
    longest = max(map(len, rows.values()))
    pitch = min(0.62, _BOXES / longest)
    width, height = max(9.0, _LABELS + 1.2 + longest * pitch), _ROW * len(rows) + 1.0
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    sheet = _Sheet(axes=axes, pitch=pitch, most=max(_channels(layers) for layers in blocks.values()), used={})
    sheet.write(0.3, height - 0.35, model.name, size=15, weight="bold")
    sheet.write(0.3, height - 0.6, _costs(parts.values(), "×".join(map(str, model.input_shape[1:]))), color=_GREY)
    end = None
    for number, (name, inside) in enumerate(rows.items()):
        y = height - 1.4 - _ROW * number
        if end:
            sheet.turn(end, y + _ROW, y + _FOOT if inside and _kind(blocks[inside[0]]) == "layer" else y)
        repeated = [block for block in inside if _kind(blocks[block]) != "transition"]
        sheet.label(y, parts[name], blocks[repeated[-1] if inside else name], len(repeated))
        if inside:
            end = sheet.stage(y, {block: blocks[block] for block in inside})
        else:
            end = sheet.ends(y, name, blocks[name])
    axes.legend(
        handles=list(sheet.used.values()),
        loc="lower left",
        bbox_to_anchor=(0.3, 0.05),
        frameon=False,
        bbox_transform=axes.transData,
        ncols=len(sheet.used),
        fontsize=8,
        handlelength=2.4,
    )
    return figure


def draw_feature_reuse(reuse: Mapping[str, np.ndarray]) -> Figure:
    """Draws the result of `feature_reuse` as figure 5 of 1608.06993.

    Each reader's weights are divided by the largest of them, because readers of more channels have smaller weights.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(reuse) + 0.8, 4.4), layout="constrained")
    every = figure.subplots(1, len(reuse), squeeze=False)[0]
    for axes, (block, weights) in zip(every, reuse.items(), strict=True):
        layers = len(weights) - 1
        image = axes.imshow(weights / np.nanmax(weights, axis=0), vmin=0, vmax=1, cmap="viridis")
        axes.set(title=block, xlabel="reader: layer", ylabel="source: layer (0: the block's input)")
        step = max(1, layers // 6)
        shown = list(range(0, layers, step))
        readers = [str(place + 1) for place in shown]
        if weights.shape[1] > layers:
            shown, readers = [*shown, layers], [*readers, "next"]
            axes.axvline(layers - 0.5, color="white", linewidth=1.5)
        axes.set_xticks(shown, readers)
        axes.set_yticks(range(0, layers + 1, step))
    figure.colorbar(image, ax=every, label="mean absolute weight, as share of the reader's largest", shrink=0.8)
    return figure


def draw_gradient_norms(norms: Mapping[str, Sequence[GradientNorm]]) -> Figure:
    """Draws results of `gradient_norms` over depth, with one line for each name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=[_BLUE, _ORANGE, "#009e73", "#cc79a7", "#e69f00", _INK], marker=list("os^Dvx"))
    for name, values in norms.items():
        axes.plot(range(1, len(values) + 1), [value.norm for value in values], markersize=3, linewidth=1, label=name)
    axes.set(xlabel="convolution, from the image on", ylabel="norm of the kernel's gradient", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def draw_grad_cam(images: np.ndarray, heat: np.ndarray, titles: Sequence[str]) -> Figure:
    """Draws heat maps of `grad_cam` over the images.

    Args:
        images: Pixels 0–255, `(batch, height, width, 1 or 3)`.
        heat: `(batch, height, width)` in [0, 1].
        titles: Title of each image.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * len(images) + 1, 4.4), layout="constrained")
    rows = figure.subplots(2, len(images), squeeze=False)
    for (above, below), image, warmth, title in zip(rows.T, images, heat, titles, strict=True):
        for axes in (above, below):
            axes.imshow(np.broadcast_to(image, (*image.shape[:2], 3)).astype("uint8"))
            axes.axis("off")
        above.set_title(title, fontsize=10)
        shown = below.imshow(warmth, vmin=0, vmax=1, cmap="inferno", alpha=0.6)
    figure.colorbar(shown, ax=rows, label="speaks for the class", shrink=0.8)
    return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sheet:
    """The sheet that a network is drawn on.

    Attributes:
        axes: Axes whose unit is an inch.
        pitch: Distance from one box to the next, in inches.
        most: Channels of the largest concatenation.
        used: Legend entries, one for each kind of box and line that was drawn.
    """

    axes: Any
    pitch: float
    most: int
    used: dict

    def write(self, x: float, y: float, words: str, size=8.2, color=_INK, weight="normal", align="left") -> None:
        self.axes.text(x, y, words, fontsize=size, color=color, weight=weight, ha=align, va="center")

    def label(self, y: float, part: PartSummary, layers: list[keras.Layer], count: int) -> None:
        """Writes a stage's description in the words of the papers' tables."""
        self.write(0.3, y + 0.36, part.name.replace("stage", "stage "), size=11, weight="bold")
        self.write(0.3, y + 0.13, " × ".join(map(str, part.output_shape)))
        if count:
            self.write(0.3, y - 0.07, f"{count} × ({_described(layers)})")
        sees = "" if part.receptive_field is None else f" · sees {part.receptive_field} px"
        self.write(0.3, y - (0.27 if count else 0.07), _costs([part]) + sees, size=7.5, color=_GREY)

    def stage(self, y: float, blocks: dict[str, list[keras.Layer]]) -> float:
        """Draws a stage's boxes and returns the x coordinate of their end."""
        names = [name for name, layers in blocks.items() if _kind(layers) != "transition"]
        x = _LABELS + len(names) * self.pitch
        dense = _kind(blocks[names[0]]) == "layer"
        if not dense:
            self._flow(_LABELS - 0.15, x + 0.15, y)
        for index, name in enumerate(names):
            left = _LABELS + index * self.pitch
            if not dense:
                self._shortcut(left, y, name, blocks[name])
            kind = "dense layer" if dense else "block that shrinks the map" if _shrinks(blocks[name]) else "block"
            self._box(left + 0.16 * self.pitch, y, 0.68 * self.pitch, kind, name)
            self._number(left + self.pitch / 2, y, index + 1, len(names))
        if dense:
            self._concatenation(y, [_channels(blocks[name]) for name in names], blocks[names[0]])
        for name in [name for name in blocks if name not in names]:
            self._flow(x, x + 1.1, y)
            self._box(x + 0.15, y, 0.8, "transition", name)
            halved = "\nhalved" if isinstance(blocks[name][-1], keras.layers.AveragePooling2D) else ""
            self.write(x + 0.55, y, _described(blocks[name]) + halved, size=7, align="center")
            x += 0.95
        return x + 0.15

    def ends(self, y: float, name: str, layers: list[keras.Layer]) -> float:
        """Draws a stem or a head, with a box for each step, and returns the x coordinate of its end."""
        x = _LABELS
        for index, words in enumerate(_steps(layers)):
            self._flow(x - 0.15, x + 1.25, y)
            self._box(x, y, 1.1, None, f"{name}_{index + 1}")
            self.write(x + 0.55, y, words, size=7.5, align="center")
            x += 1.25
        return x

    def turn(self, x: float, y: float, into: float) -> None:
        """Draws a line from the end of a row to the start of the next."""
        middle, start = y - 0.48, _LABELS - 0.15
        self.axes.plot([x, x, start, start], [y, middle, middle, into], color=_GREY, linewidth=1, zorder=0)

    def _flow(self, start: float, end: float, y: float) -> None:
        self.axes.plot([start, end], [y, y], color=_GREY, linewidth=1, zorder=0)

    def _box(self, x: float, y: float, width: float, kind: str | None, name: str) -> None:
        from matplotlib.patches import FancyBboxPatch, Patch

        fill = _FILLS[kind or "dense layer"] | {"linewidth": min(0.8, 6 * self.pitch)}
        style = f"round,pad=0,rounding_size={min(0.05, 0.3 * width)}"
        self.axes.add_patch(FancyBboxPatch((x, y - _HALF), width, 2 * _HALF, boxstyle=style, gid=name, **fill))
        if kind:
            self.used.setdefault(kind, Patch(label=kind, **fill))

    def _shortcut(self, x: float, y: float, name: str, layers: list[keras.Layer]) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path as Curve

        kind = _shortcut_kind(layers)
        if kind is None:
            return
        top, end = y + 0.62, x + self.pitch
        curve = Curve([(x, y), (x, top), (end, top), (end, y)], [Curve.MOVETO, *[Curve.CURVE4] * 3])
        line = _LINES[kind] | {"linewidth": min(1.6, 12 * self.pitch)}
        self.axes.add_patch(PathPatch(curve, fill=False, gid=f"{name}_shortcut", zorder=0, **line))
        self.used.setdefault(kind, Line2D([], [], label=kind, **_LINES[kind]))

    def _number(self, x: float, y: float, number: int, count: int) -> None:
        """Numbers every box where there is room, else the first and every tenth or so."""
        if self.pitch >= 0.3:
            self.write(x, y, str(number), size=8, align="center")
        else:
            step = next(step for step in (5, 10, 20, 50, 100) if step * self.pitch >= 0.45)
            if number == 1 or number % step == 0 or number == count and number % step > step / 2:
                self.write(x, y - _HALF - 0.11, str(number), size=7, color=_GREY, align="center")

    def _concatenation(self, y: float, channels: list[int], first: list[keras.Layer]) -> None:
        """Draws what each layer of a dense block reads and adds to."""
        from matplotlib.patches import Patch

        kind = "concatenation, as high as it has channels"
        read, _ = first[-1].input
        steps, foot = [read.shape[-1], *channels], y + _FOOT
        start, end = _LABELS - 0.15, _LABELS + len(channels) * self.pitch + 0.02
        places = [start, *(_LABELS + (index + 0.84) * self.pitch for index in range(len(channels))), end]
        self.axes.plot([end, end, end + 0.13], [foot, y, y], color=_GREY, linewidth=1, zorder=0)
        heights = [foot + _TALLEST * count / self.most for count in steps]
        band = self.axes.fill_between(places, foot, [*heights, heights[-1]], step="post", linewidth=0.8, **_FILLS[kind])
        band.set_gid(f"stage{place_of(first[0].name).stage}_concatenation")
        for index in range(len(channels)):
            left = _LABELS + (index + 0.16) * self.pitch
            thin = min(0.9, 5 * self.pitch)
            self.axes.plot([left + 0.1 * self.pitch] * 2, [y + _HALF, foot], color=_GREY, linewidth=thin)
            self.axes.plot([left + 0.58 * self.pitch] * 2, [y + _HALF, foot], color=_BLUE, linewidth=thin)
        self.write(places[0] - 0.05, foot + 0.06, str(steps[0]), size=7, color=_BLUE, align="right")
        self.write(places[-1] + 0.05, heights[-1] - 0.06, str(steps[-1]), size=7, color=_BLUE)
        self.used.setdefault(kind, Patch(label=kind, **_FILLS[kind]))


def _kind(layers: list[keras.Layer]) -> str | None:
    """Returns the kind of unit that layers belong to: "block", "layer" (a dense one), "transition" or another."""
    place = place_of(layers[0].name)
    return place and place.kind


def _rows(blocks: Mapping[str, list[keras.Layer]]) -> dict[str, list[str]]:
    """Maps each stage to its blocks, dense layers and transition. Stem and head get an empty list."""
    rows = {}
    for name, layers in blocks.items():
        inside = _kind(layers) in ("block", "layer", "transition")
        row = rows.setdefault(f"stage{place_of(layers[0].name).stage}" if inside else name, [])
        if inside:
            row.append(name)
    return rows


def _costs(parts, *words: str) -> str:
    parts = list(parts)
    parameters, macs = sum(part.parameters for part in parts), sum(part.macs for part in parts)
    multiplied = f"{macs / 1e9:.2f} GMACs" if macs >= 1e8 else f"{macs / 1e6:.3g} MMACs"
    return " · ".join([*words, f"{parameters:,} parameters", multiplied])


def _channels(layers: list[keras.Layer]) -> int:
    return layers[-1].output.shape[-1]


def _convolutions(layers: list[keras.Layer]) -> list[keras.layers.Conv2D]:
    """Returns the convolutions of a block's own branch."""
    beside = ("shortcut_conv", "se_reduce", "se_expand")
    convolutions = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]
    return [layer for layer in convolutions if (place := place_of(layer.name)) is None or place.role not in beside]


def _described(layers: list[keras.Layer]) -> str:
    """Names the convolutions of a block as the papers' tables do; C is the number of groups (1611.05431)."""
    words = []
    for convolution in _convolutions(layers):
        side, groups, dilation = convolution.kernel_size[0], convolution.groups, convolution.dilation_rate[0]
        words.append(f"{side}×{side}, {convolution.filters}")
        words[-1] += f", C = {groups}" if groups > 1 else ""
        words[-1] += f", dilation {dilation}" if dilation > 1 else ""
    gate = ["gate"] if any(isinstance(layer, keras.layers.Multiply) for layer in layers) else []
    return " · ".join(words + gate)


def _shrinks(layers: list[keras.Layer]) -> bool:
    return any(convolution.strides[0] > 1 for convolution in _convolutions(layers))


def _shortcut_kind(layers: list[keras.Layer]) -> str | None:
    roles = {place.role for layer in layers if (place := place_of(layer.name))}
    if "shortcut_conv" in roles:
        return "projection shortcut"
    if roles & {"shortcut_pool", "shortcut_pad"}:
        return "identity, subsampled or padded"
    return "identity shortcut" if any(isinstance(layer, keras.layers.Add) for layer in layers) else None


def _steps(layers: list[keras.Layer]) -> list[str]:
    """Describes the steps of a stem or a head, one for each box."""
    steps = []
    for layer in layers:
        if isinstance(layer, keras.layers.Conv2D):
            steps.append(f"{_described([layer])}{', halved' if layer.strides[0] > 1 else ''}")
        elif isinstance(layer, keras.layers.MaxPooling2D) and layer.strides[0] > 1:
            steps.append("max pool, halved")
        elif isinstance(layer, keras.layers.GlobalAveragePooling2D):
            steps.append("average pool")
        elif isinstance(layer, keras.layers.Dense):
            steps.append(f"dense, {layer.units}")
    return steps
