"""Draws the pictures of the pages, which follow a reader's light or dark colours: `python docs/figures.py`.

`PYTHONPATH=. python docs/figures.py page` also takes the picture of the web page, after `npm run build` in
`examples/web`.
"""

import io
import re
import shutil
import sys
from pathlib import Path

import guide_figures
import matplotlib
from drawing import BLUE, INK, ORANGE, arrow, bare, box, canvas, column, plus, write
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from keras_resdense import ORDERS, VARIANTS

FOLDER = Path(__file__).parent / "figures"
WEB = Path(__file__).parent.parent / "examples" / "web"
STYLE = "<style>:root{color:#24292f}@media(prefers-color-scheme:dark){:root{color:#dfe2e9}}</style>"
#: 1603.05027, tables 1 and 2: error of ResNet-110 on CIFAR-10, in percent.
ERRORS = {
    "original": 6.61,
    "bn_after_addition": 8.17,
    "relu_before_addition": 7.84,
    "relu_only_preactivation": 6.71,
    "full_preactivation": 6.37,
}


def residual_block():
    axes = canvas(470, 330)
    branch = ["conv", "bn", "relu", "conv", "bn"]
    for x, steps, title, result, shortcut in (
        (100, [*branch, "relu"], "plain", "H(x)", None),
        (300, [*branch, "+", "relu"], "residual", "F(x) + x", ""),
    ):
        write(axes, x, 322, title, size=11, weight="bold")
        write(axes, x - 14, 303, "x", size=10, style="italic")
        end = column(axes, x, steps, 312, shortcut, gap=38)
        write(axes, x, end - 10, result, size=10, style="italic")
    write(axes, 425, 190, "identity", color=ORANGE, size=10)
    return axes


def shortcuts():
    axes = canvas(690, 304)
    branch = ["conv", "bn", "relu", "conv", "bn", "+", "relu"]
    for x, title, shortcut in (
        (80, "identity block", ""),
        (280, "A: nothing to learn", "every 2nd\npixel,\nzeros behind"),
        (510, "projection block (B, C)", "conv 1×1,\nstride 2,\nbatch norm"),
    ):
        write(axes, x + 24, 296, title, size=10, weight="bold")
        column(axes, x, branch, 284, shortcut, gap=37)
    return axes


def gradient_paths():
    axes = canvas(640, 190)
    centres = (130, 260, 390)
    write(axes, 18, 130, "$x_l$", size=12)
    for x in centres:
        box(axes, x, 60, r"$\mathcal{F}$", BLUE, width=44, height=30)
        arrow(axes, (x - 50, 130), (x - 50, 60), (x - 22, 60), colour=BLUE)
        arrow(axes, (x + 22, 60), (x + 46, 60), (x + 46, 120), colour=BLUE)
        plus(axes, x + 46, 130)
    for start, end in ((30, 166), (186, 296), (316, 426), (446, 520)):
        arrow(axes, (start, 130), (end, 130), colour=ORANGE, width=1.8)
    write(axes, 540, 130, "$x_L$", size=12)
    arrow(axes, (554, 130), (584, 130))
    write(axes, 608, 130, "loss")
    arrow(axes, (600, 166), (30, 166), colour=ORANGE, width=2.4)
    write(axes, 315, 180, "the gradient's way back over the shortcuts: times 1", color=ORANGE, size=10)
    write(axes, 260, 24, r"each branch adds its part: times $\partial\mathcal{F}/\partial x$", color=BLUE, size=10)
    return axes


def bottleneck():
    axes = canvas(640, 330)
    for centre, title, channels, kernels in (
        (165, "basic", (256, 256, 256), (3, 3)),
        (480, "bottleneck", (256, 64, 64, 256), (1, 3, 1)),
    ):
        levels = [270 - 210 * index / len(kernels) for index in range(len(channels))]
        weights = [k * k * a * b for k, a, b in zip(kernels, channels, channels[1:], strict=False)]
        for index, (kernel, weight) in enumerate(zip(kernels, weights, strict=True)):
            (a, b), (above, below) = channels[index : index + 2], levels[index : index + 2]
            corners = [(-a / 2, above), (a / 2, above), (b / 2, below), (-b / 2, below)]
            corners = [(centre + x, y) for x, y in corners]
            axes.add_patch(Polygon(corners, facecolor=(BLUE, 0.15), edgecolor=BLUE, linewidth=0.8))
            beside = {"x": centre + a / 2 + 8, "ha": "left"} if a == b == 64 else {"x": centre}
            write(axes, y=(above + below) / 2, text=f"{kernel}×{kernel}: {weight:,}", size=10, **beside)
        for count, y in zip(channels, levels, strict=True):
            left, right = centre - count / 2, centre + count / 2
            axes.plot((left, right), (y, y), color=ORANGE, linewidth=5, solid_capstyle="butt")
            write(axes, left - 6, y, count, ha="right")
        write(axes, centre, 308, title, size=12, weight="bold")
        write(axes, centre, 28, f"{sum(weights):,} weights", size=11, weight="bold")
    return axes


def orders():
    axes = canvas(900, 340)
    for number, (name, order) in enumerate(ORDERS.items()):
        x = 66 + 182 * number
        between, before = list(order.between), list(order.before)
        steps = [*before, "conv", *between, *before, "conv", *order.last, "+", *order.merged]
        write(axes, x + 16, 330, name.replace("_", " "), size=9.5, weight="bold")
        column(axes, x, steps, 318, "", gap=36)
        write(axes, x, 12, f"{ERRORS[name]:.2f} % error", size=10)
    return axes


def dense_block():
    axes = canvas(760, 330)
    first, growth, layers = 64, 32, 6
    shades = matplotlib.colormaps["viridis"]([0.3 + 0.1 * index for index in range(layers + 1)])
    height = [first, *[growth] * layers]
    for column_index in range(layers + 1):
        x, y = 40 + 92 * column_index, 44
        for source in range(column_index + 1):
            style = {"facecolor": shades[source], "edgecolor": INK, "linewidth": 0.5}
            axes.add_patch(Rectangle((x, y), 34, height[source], **style))
            y += height[source]
        write(axes, x + 17, 30, y - 44, size=10)
        write(axes, x + 17, 12, "input" if not column_index else f"layer {column_index}", size=8.5)
        if column_index < layers:
            arrow(axes, (x + 38, 44 + (y - 44) / 2), (x + 88, 44 + (y - 44) / 2))
            write(axes, x + 63, 54 + (y - 44) / 2, f"+ {growth}", size=9)
    x = 40 + 92 * (layers + 1)
    arrow(axes, (x - 54, 108), (x - 4, 108))
    write(axes, x - 28, 120, "θ = ½", size=9, color=ORANGE)
    axes.add_patch(Rectangle((x, 44), 34, 128, facecolor=(ORANGE, 0.35), edgecolor=ORANGE, linewidth=1))
    write(axes, x + 17, 30, 128, size=10)
    write(axes, x + 17, 12, "transition", size=8.5)
    write(axes, 40, 316, "channels that each layer hands on, coloured by the layer that made them", size=10, ha="left")
    return axes


def channels():
    """Draws the channels behind each layer with a 3×3 convolution, of a dense and of a residual network."""
    figure = Figure(figsize=(6.4, 2.9), layout="constrained")
    axes = figure.subplots()
    dense, residual = VARIANTS["densenet121"], VARIANTS["resnet50"]
    count, behind = 2 * dense.growth_rate, []
    for depth in dense.depths:
        behind += [count + dense.growth_rate * (layer + 1) for layer in range(depth)]
        count = int(behind[-1] * dense.compression)
    wide = [4 * filters for filters, depth in zip(residual.filters, residual.depths, strict=True) for _ in range(depth)]
    axes.step(range(1, len(behind) + 1), behind, where="mid", color=BLUE, label="DenseNet-121: dense layers")
    axes.step(range(1, len(wide) + 1), wide, where="mid", color=ORANGE, label="ResNet-50: bottleneck blocks")
    axes.set_xlabel("layers or blocks", color=INK)
    axes.set_ylabel("channels handed on", color=INK)
    bare(axes)
    return axes


def logo():
    """Draws the site's icon, an arc that goes around two layers."""
    axes = canvas(64, 64)
    for y in (22, 42):
        axes.add_patch(Rectangle((8, y - 6), 32, 12, facecolor=BLUE))
    axes.plot((24, 54, 54, 24), (59, 59, 5, 5), color=ORANGE, linewidth=4.5, solid_joinstyle="round")
    axes.plot((24, 24), (61, 3), color=ORANGE, linewidth=3, zorder=0)
    return axes


PICTURES = (
    residual_block,
    shortcuts,
    gradient_paths,
    bottleneck,
    orders,
    dense_block,
    channels,
    logo,
    *guide_figures.PICTURES,
)


def draw(folder: Path) -> None:
    """Writes every picture as `{name}.svg`."""
    settings = {"svg.hashsalt": "keras_resdense", "font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}
    with matplotlib.rc_context(settings):
        for picture in PICTURES:
            file = io.StringIO()
            picture().figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            head, separator, rest = file.getvalue().replace(INK, "currentColor").partition("<metadata>")
            lines = (head + STYLE + separator + rest).splitlines()
            (folder / f"{picture.__name__}.svg").write_text("\n".join(line.rstrip() for line in lines) + "\n")


def draw_icons(folder: Path) -> None:
    """Writes the logo as the icons of an installed page, in the middle that systems leave of a maskable one."""
    folder.mkdir(exist_ok=True)
    for side in (192, 512):
        axes = logo()
        axes.set(xlim=(-19, 87), ylim=(-21, 85))
        axes.figure.savefig(folder / f"{side}.png", dpi=side / 0.64, facecolor="white", metadata={"Software": None})


def photograph_page(folder: Path) -> None:
    """Writes a picture of the committed network's page, built before, on a phone; needs playwright and Chromium."""
    from playwright.sync_api import sync_playwright

    from examples.web import check

    with check.served(str(folder / "dist")) as port, sync_playwright() as playwright:
        device = playwright.devices["Pixel 7"] | {"viewport": {"width": 412, "height": 1010}, "device_scale_factor": 1}
        with playwright.chromium.launch(executable_path=shutil.which("chromium")) as browser:
            page = browser.new_page(**device)
            page.goto(f"http://localhost:{port}/")
            page.get_by_text("works without a network").wait_for()
            page.get_by_role("button", name="Bag").tap()
            page.get_by_text(re.compile("Bag, in")).wait_for()
            page.screenshot(path=folder / "phone.png")


if __name__ == "__main__":
    draw(FOLDER)
    draw_icons(WEB / "icons")
    if sys.argv[1:] == ["page"]:
        photograph_page(WEB)
