"""Pictures of the guides: each function returns the axes of one."""

import json
import re
import statistics
from pathlib import Path

from drawing import BLUE, GREEN, INK, ORANGE, PURPLE, arrow, bare, box, canvas, column, plus, write
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from keras_resdense import ORDERS

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
INFERENCE, QUANTISATION = BENCHMARKS / "inference.json", BENCHMARKS / "quantisation.json"
NOISE = BENCHMARKS / "noise.json"
VARIANTS = Path(__file__).parent / "variants.md"
#: Colour and marker of each family, by the beginning of its builders' names or a part of them; the first that fits.
FAMILIES = {
    "dense": ("DenseNet", ORANGE, "o"),
    "plain": ("PlainNet", INK, "x"),
    "wide and ResNeXt": ("ResNeXt|Wide", GREEN, "D"),
    "pre-activation": ("V2|PreAct", PURPLE, "^"),
    "residual": ("ResNet", BLUE, "s"),
}
#: Variants that are named beside their points.
NAMED = ("ResNet20", "ResNet50", "ResNet152", "DenseNetBC40_12", "DenseNet121", "WideResNet101_2")
#: Runs whose noise is drawn.
RUNS = {"resnet20_fashion_mnist": "ResNet-20", "densenetbc40_12_fashion_mnist": "DenseNet-BC-40"}
#: Formats whose noise is drawn.
QUANTISED = {"tflite_int8": ORANGE, "tflite_int16x8": BLUE}


def strides():
    """Draws where networks of the same name stride: within a block, and within a stage of V2."""
    axes = canvas(740, 270)
    for x, name, elsewhere, strided in (
        (80, "ResNet50V1", "keras.applications' ResNet50", 0),
        (290, "ResNet50", "torchvision's and timm's", 1),
    ):
        write(axes, x + 20, 260, name, size=11, weight="bold")
        write(axes, x + 20, 243, elsewhere)
        arrow(axes, (x, 230), (x, 206))
        for index, kernel in enumerate(("1×1", "3×3", "1×1")):
            y, stride = 192 - 48 * index, index == strided
            box(axes, x, y, f"conv {kernel}" + ", stride 2" * stride, ORANGE if stride else BLUE, width=128)
            arrow(axes, (x, y - 13), (x, y - (34 if index < 2 else 36)))
        plus(axes, x, 50)
        arrow(axes, (x, 222), (x + 96, 222), (x + 96, 50), (x + 10, 50), colour=INK)
        arrow(axes, (x, 40), (x, 20))
    for y, name, elsewhere, strided in (
        (200, "ResNet50V2", "the paper's code and timm", 0),
        (90, "ResNet50V2_Keras", "keras.applications' ResNet50V2", 3),
    ):
        write(axes, 570, y + 60, name, size=11, weight="bold")
        write(axes, 570, y + 43, elsewhere)
        for block in range(4):
            x, stride = 450 + 80 * block, block == strided
            label = "stride 2" if stride else f"block {block + 1}"
            box(axes, x, y, label, ORANGE if stride else BLUE, width=62, height=44)
            arrow(axes, (x + 31, y), (x + 49, y))
    write(axes, 570, 40, "stage 3: four blocks", size=9)
    return axes


def shared_batch():
    """Draws a step of several workers: each takes a part of the batch, and all make the same update."""
    axes = canvas(720, 270)
    shades = (BLUE, GREEN, PURPLE)
    for image in range(12):
        y = 216 - 17 * image
        axes.add_patch(Rectangle((28, y), 30, 13, facecolor=(shades[image // 4], 0.4), edgecolor=shades[image // 4]))
    write(axes, 43, 250, "a batch", size=10, weight="bold")
    box(axes, 612, 131, "mean of all\ngradients", ORANGE, width=96, height=46)
    for worker, shade in enumerate(shades):
        y = 199 - 68 * worker
        arrow(axes, (64, y), (128, y), colour=shade)
        box(axes, 200, y, f"worker {worker}", shade, width=140, height=44)
        arrow(axes, (272, y), (330, y), colour=shade)
        box(axes, 392, y, "its gradients", shade, width=116)
        arrow(axes, (452, y), (530, y), (562, 131 + 14 * (1 - worker)), colour=shade)
    axes.add_patch(Rectangle((122, 32), 156, 200, fill=False, edgecolor=ORANGE, linewidth=1.2))
    arrow(axes, (612, 108), (612, 22), (200, 22), (200, 32), colour=ORANGE, width=1.8)
    write(axes, 410, 10, "the same update of the same weights on every worker", size=9, color=ORANGE)
    return axes


def triple_block():
    axes = canvas(230, 400)
    before = list(ORDERS["full_preactivation"].before)
    write(axes, 90, 392, "x", size=10, style="italic")
    end = column(axes, 90, [*before, "conv"] * 3 + ["+"], 382, "", gap=34)
    write(axes, 90, end - 8, "F(x) + x", size=10, style="italic")
    return axes


def exporting():
    """Draws the way of an export, which ends in files or in an error."""
    axes = canvas(740, 190)
    steps = (
        "model",
        "batch norms\nfolded",
        "file\nwritten",
        "read back by\nits runtime",
        "difference\nwithin the\ntolerance?",
    )
    for index, text in enumerate(steps):
        x, colour = 60 + 126 * index, ORANGE if index == 4 else BLUE
        box(axes, x, 120, text, colour, width=98, height=56)
        if index < 4:
            arrow(axes, (x + 49, 120), (x + 77, 120))
    write(axes, 626, 148, "yes")
    arrow(axes, (613, 120), (646, 120), colour=GREEN)
    box(axes, 690, 120, "the file,\nits JSON,\nlabels.txt", GREEN, width=88, height=66)
    arrow(axes, (564, 92), (564, 56), colour=ORANGE)
    write(axes, 580, 74, "no")
    box(axes, 564, 38, "an error, no files", ORANGE, width=130, height=34)
    arrow(axes, (60, 148), (60, 172), (564, 172), (564, 148), colour=BLUE)
    write(axes, 312, 182, "its answers for the same images", color=BLUE)
    return axes


def boundary():
    """Draws what reaches a process: through a check, through a runtime that checks its structure, or trusted."""
    axes = canvas(720, 300)
    box(axes, 640, 150, "your process", BLUE, width=120, height=270)
    lanes = (
        ("images", "seven formats, size limit, decoded once", GREEN),
        (".safetensors, .h5, .keras weights", "names, shapes, finite numbers", GREEN),
        (".pth, .pt, .bin; .keras models", "code inside is refused", GREEN),
        ("downloads", "pinned revision or checksum", GREEN),
        ("SavedModel, TFLite, ONNX", "structure only, by their runtime", ORANGE),
        ("recipes, settings, other workers", "trusted: nothing is checked", PURPLE),
    )
    for index, (text, check, colour) in enumerate(lanes):
        y = 272 - 49 * index
        write(axes, 206, y, text, ha="right")
        arrow(axes, (216, y), (256, y), colour=colour)
        box(axes, 392, y, check, colour, width=268, height=28)
        arrow(axes, (527, y), (578, y), colour=colour)
    return axes


def phone_files():
    """Draws the time and the size of three TFLite forms of some networks, from `benchmarks/inference.json`."""
    contests = {contest["network"]: contest for contest in json.loads(INFERENCE.read_text())}
    forms = {"tflite": BLUE, "tflite_dynamic": PURPLE, "tflite_int8": ORANGE}
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    times, sizes = figure.subplots(1, 2, sharey=True)
    names = ("resnet18", "resnet50", "densenet121")
    for place, (form, colour) in enumerate(forms.items()):
        contestant = f"ours, LiteRT {form.removeprefix('tflite').strip('_')}".strip()
        rounds = [contests[name]["contestants"][contestant] for name in names]
        milliseconds = [1e3 * statistics.median(each["seconds"][0] for each in turns) for turns in rounds]
        levels = [index + 0.27 * (place - 1) for index in range(len(names))]
        for axes, values in ((times, milliseconds), (sizes, [contests[name]["file_mb"][form] for name in names])):
            bars = axes.barh(levels, values, 0.25, color=colour, label=form)
            axes.bar_label(bars, fmt="%.0f", color=INK, size=8, padding=2)
    times.set_yticks(range(len(names)), names)
    times.invert_yaxis()
    times.set_xlabel("ms an image, two threads", color=INK)
    sizes.set_xlabel("MB", color=INK)
    for axes in (times, sizes):
        bare(axes)
        axes.margins(x=0.12)
    times.get_legend().remove()
    return times


def quantised_accuracy():
    """Draws the accuracy of networks with 8- and 4-bit weights, from `benchmarks/quantisation.json`."""
    networks = json.loads(QUANTISATION.read_text())["learned"]
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    both = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axes, network in zip(both, networks, strict=True):
        for place, (case, colour) in enumerate({"calibrated": ORANGE, "learned": BLUE}.items()):
            levels = [index + 0.36 * (place - 0.5) for index in range(len(network["bits"]))]
            bars = axes.barh(levels, [100 * each[case] for each in network["bits"].values()], 0.33, color=colour)
            bars.set_label({"calibrated": "calibrated only", "learned": "quantisation-aware"}[case])
            axes.bar_label(bars, fmt="%.2f", color=INK, size=8, padding=2)
        axes.axvline(100 * network["float"], color=INK, linewidth=1, linestyle="--")
        axes.set_title(f"{network['model']}: {network['float']:.2%} in floats", color=INK, size=9)
        axes.set_yticks(range(len(network["bits"])), [f"{bits}-bit weights" for bits in network["bits"]])
        axes.set_xlabel("% of the test images", color=INK)
        axes.set_xlim(86, 96)
        bare(axes)
        axes.get_legend().remove()
    both[0].invert_yaxis()
    figure.legend(
        *both[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, labelcolor=INK
    )
    return both[0]


def moving_average():
    """Draws what is left of a moving statistic's initial value, by its momentum."""
    figure = Figure(figsize=(6.4, 2.7), layout="constrained")
    axes = figure.subplots()
    for momentum, colour, label in ((0.99, ORANGE, "0.99, Keras's default"), (0.9, BLUE, "0.9, here")):
        axes.plot([100 * momentum**step for step in range(301)], color=colour, label=f"momentum {label}")
    axes.set_xlabel("steps", color=INK)
    axes.set_ylabel("% of the initial value left", color=INK)
    bare(axes)
    return axes


def noise_by_layer():
    """Draws the signal-to-noise ratio of each layer of two 8-bit networks, from `benchmarks/noise.json`."""
    measured, figure = json.loads(NOISE.read_text()), Figure(figsize=(7.2, 2.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (run, title) in zip(panels, RUNS.items(), strict=True):
        drawn = measured[run]
        for format, colour in QUANTISED.items():
            axes.plot(list(drawn[format].values()), color=colour, label=format)
        stages = ["".join(re.findall(r"stage\d", name)[:1]) for name in drawn["tflite_int8"]]
        starts = {stage: stages.index(stage) for stage in sorted(set(stages)) if stage}
        axes.set_xticks(list(starts.values()), starts)
        axes.set_ylim(0, 70)
        axes.set_title(title, color=INK, size=10)
        bare(axes)
    panels[0].set_ylabel("signal to noise (dB)", color=INK)
    panels[1].get_legend().remove()
    return panels[0]


def variants():
    """Draws the parameters and the multiply-adds of all variants, from the table on their page."""
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes = figure.subplots()
    table = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+) ", VARIANTS.read_text(), flags=re.MULTILINE)
    places = {name: (int(count.replace(",", "")) / 1e6, float(macs)) for name, count, macs in table}
    left = dict(places)
    for label, (pattern, colour, marker) in FAMILIES.items():
        members = [left.pop(name) for name in list(left) if re.search(pattern, name)]
        axes.plot(*zip(*members, strict=True), marker, color=colour, label=label, markersize=5, alpha=0.8)
    for name in NAMED:
        axes.annotate(name, places[name], (6, -3), textcoords="offset points", size=8, color=INK, va="top")
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("million parameters", color=INK)
    axes.set_ylabel("billion multiply-adds an image", color=INK)
    bare(axes)
    return axes


PICTURES = (
    strides,
    shared_batch,
    triple_block,
    exporting,
    boundary,
    phone_files,
    quantised_accuracy,
    moving_average,
    noise_by_layer,
    variants,
)
