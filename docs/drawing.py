"""Pen and colours of the pictures that `figures.py` and `guide_figures.py` draw."""

from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

#: Stands for the colour of the text around a picture, which the browser puts in.
INK = "#010203"
#: Okabe and Ito's colours, told apart without red or green, as bright as shows on white and on black.
BLUE, ORANGE, GREEN, PURPLE = "#2b8cc4", "#d9830f", "#0f9f78", "#b8699a"
COLOURS = {"conv": BLUE, "bn": GREEN, "relu": PURPLE}
LABELS = {"conv": "conv 3×3", "bn": "batch norm", "relu": "ReLU"}


def canvas(width: int, height: int):
    """Returns axes without frame, a hundred units to the inch."""
    axes = Figure(figsize=(width / 100, height / 100)).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return axes


def write(axes, x, y, text, size=9, **options):
    options = {"ha": "center", "va": "center", "color": INK} | options
    axes.text(x, y, text, size=size, **options)


def box(axes, x, y, text, colour, width=104, height=26):
    """Draws a layer around its centre."""
    corner = (x - width / 2, y - height / 2)
    style = {"boxstyle": "round,pad=0,rounding_size=5", "linewidth": 1.2}
    axes.add_patch(FancyBboxPatch(corner, width, height, facecolor=(colour, 0.18), edgecolor=colour, **style))
    write(axes, x, y - 1, text)


def plus(axes, x, y):
    axes.add_patch(Circle((x, y), 10, facecolor=(ORANGE, 0.18), edgecolor=ORANGE, linewidth=1.4))
    write(axes, x, y - 0.5, "+", size=12)


def arrow(axes, *points, colour=INK, width=1.2):
    """Draws a line through points, with a head at the last."""
    axes.plot(*zip(*points[:-1], strict=True), color=colour, linewidth=width, solid_joinstyle="round")
    shape = {"arrowstyle": "-|>,head_length=.35,head_width=.18", "color": colour, "linewidth": width}
    axes.annotate("", points[-1], points[-2], arrowprops=shape | {"shrinkA": 0, "shrinkB": 0})


def column(axes, x, steps, top, shortcut=None, gap=40):
    """Draws steps from top to bottom, "+" among them, with the shortcut on the right; returns where they end.

    Args:
        axes: To draw on.
        x: Of the column's centre.
        steps: "conv", "bn", "relu" or "+".
        top: Of the column.
        shortcut: What stands on the way around; "" for nothing, None for no such way.
        gap: Between two steps.
    """
    y = top - 12
    arrow(axes, (x, top), (x, y - 14))
    for step in steps:
        y -= gap
        if step == "+":
            plus(axes, x, y + 13)
            around = x + (108 if shortcut else 74)
            arrow(axes, (x, top - 8), (around, top - 8), (around, y + 13), (x + 10, y + 13), colour=ORANGE, width=1.8)
            if shortcut:
                box(axes, around, (top - 8 + y + 13) / 2, shortcut, ORANGE, width=90, height=52)
        else:
            box(axes, x, y + 13, LABELS[step], COLOURS[step])
        arrow(axes, (x, y + (3 if step == "+" else 0)), (x, y - 14))
    return y - 14


def bare(axes):
    """Gives a chart the ink and the frame of all charts."""
    axes.tick_params(colors=INK)
    for side, spine in axes.spines.items():
        spine.set(color=INK, visible=side in ("left", "bottom"))
    axes.grid(color=INK, alpha=0.15)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=INK)
