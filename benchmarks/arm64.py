"""Whether `.tflite` files answer on ARM64, the phones' instruction set, as on this machine. Nothing is timed.

    python benchmarks/arm64.py [--formats tflite tflite_int8] [names …]

QEMU emulates the processor, on Debian or a relative of it: `apt install qemu-user-static`. The first call downloads a
Python for ARM64 from the system's own package sources and LiteRT from PyPI, some 60 MB, into the user's cache; the
system's packages stay as they are. LiteRT is version 1.4.0 there, because 2.3.0 crashes under QEMU 7.2.

A line for each file: the committed ResNet-20 in each format on 200 images held out, then an untrained network of each
family, or those named, on 4 images of 32 × 32 pixels. "apart" is the largest difference of any output, in steps of the
output for files that give bytes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_resdense
from keras_resdense.data.batches import take_images
from keras_resdense.data.sources import load_data
from keras_resdense.exporting.exporter import Extras
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.read import load_keras

FORMATS = [name for name in EXPORTERS if name.startswith("tflite")]
FAMILIES = "resnet18d resnet50v1 resnext50_32x4d seresnet18 plainnet18 resnet18v2 densenet121 resnet20 densenetbc40_12"
COMMITTED = Path(__file__).parent.parent / "saved_models" / "resnet20_fashion_mnist"
QEMU = "qemu-aarch64-static"
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
WHEELS = ("numpy<2", "ai-edge-litert==1.4.0")
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
#: Runs under both processors, with nothing but NumPy and LiteRT.
RUN = """
import sys
import numpy
from ai_edge_litert.interpreter import Interpreter
model, images, outputs = sys.argv[1:]
interpreter = Interpreter(model, num_threads=1)
interpreter.allocate_tensors()
(source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
found = []
for image in numpy.load(images):
    interpreter.set_tensor(source["index"], image[None].astype(source["dtype"]))
    interpreter.invoke()
    found.append(interpreter.get_tensor(target["index"])[0])
numpy.save(outputs, numpy.stack(found))
"""


def make_root() -> Path:
    """Returns a folder with a Python for ARM64 and its packages; makes it if there is none."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keras_resdense" / "arm64"
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        made, apt, wheels = Path(folder) / "root", Path(folder) / "apt", Path(folder) / "wheels"
        for part in ("state/lists/partial", "cache/archives/partial"):
            (apt / part).mkdir(parents=True)
        (apt / "status").touch()
        settings = {
            "Dir::State": apt / "state",
            "Dir::State::status": apt / "status",
            "Dir::Cache": apt / "cache",
            "APT::Architecture": "arm64",
            "APT::Architectures": "arm64",
            "APT::Sandbox::User": "root",
        }
        command = ["apt-get", "-q", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
        subprocess.run([*command, "update"], check=True, stdout=subprocess.DEVNULL)
        install = [*command, "install", "--yes", "--download-only", "--no-install-recommends", *PACKAGES]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        for package in (apt / "cache" / "archives").glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, made], check=True)
        version = os.readlink(made / "usr" / "bin" / "python3").removeprefix("python")
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
        subprocess.run([*pip, "--python-version", version, "--dest", wheels, *WHEELS], check=True)
        for wheel in wheels.glob("*.whl"):
            shutil.unpack_archive(wheel, made / "site", "zip")
        made.rename(root)
    return root


def arm64_python(root: Path) -> list[str]:
    """Returns the command that starts the Python for ARM64."""
    paths = {"PYTHONPATH": root / "site", "PYTHONHOME": root / "usr"}
    settings = [word for name, value in paths.items() for word in ("-E", f"{name}={value}")]
    return [QEMU, "-L", str(root), *settings, str(root / "usr" / "bin" / "python3")]


def compare(label: str, model: Path, images: np.ndarray, root: Path) -> None:
    """Runs a file on both processors and prints how far apart they are."""
    given, outputs = model.with_suffix(".npy"), []
    np.save(given, images)
    for python in (arm64_python(root), [sys.executable]):
        made = model.with_suffix(".outputs.npy")
        subprocess.run([*python, "-c", RUN, model, given, made], check=True, stderr=subprocess.DEVNULL)
        outputs.append(np.load(made))
    arm, here = outputs
    apart = np.abs(arm.astype("float64") - here.astype("float64"))
    unit = "steps" if here.dtype.kind in "iu" else f"of {np.abs(here).max():.3g}"
    same = (arm.argmax(-1) == here.argmax(-1)).mean()
    print(
        f"{label:36} apart {apart.max():.2g} {unit}, {(apart > 0).mean():.2%} differ, same class {same:.2%}", flush=True
    )


def write(model: keras.Model, format: str, path: Path, extras: Extras) -> np.ndarray:
    """Writes a model in a format and returns the images as the file takes them."""
    exporter = EXPORTERS[format]
    adapted = exporter.adapt(extras)
    exporter.write(exporter.prepare(model), path, adapted)
    return adapted.images


def committed() -> tuple[keras.Model, Extras]:
    model, data = load_keras(COMMITTED), load_data("fashion_mnist")
    contract = model.image_contract
    calibration, _ = take_images(data.train, contract, 256)
    return model, Extras(images=take_images(data.test, contract, 200)[0], calibration=calibration, contract=contract)


def untrained(name: str) -> tuple[keras.Model, Extras]:
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).round().astype("float32")
    model = keras_resdense.create_model(name, input_shape=(32, 32, 3), classes=10, include_preprocessing=True)
    return model, Extras(images=images, calibration=images)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["committed", *FAMILIES.split()], help="variants, or 'committed'")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    options = parser.parse_args()
    missing = [program for program in (QEMU, "apt-get", "dpkg") if not shutil.which(program)]
    if missing:
        sys.exit(f"There is no {', '.join(missing)}: on Debian or a relative of it, apt install qemu-user-static.")
    root = make_root()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names:
            model, extras = committed() if name == "committed" else untrained(name)
            for format in options.formats:
                path = Path(folder) / f"{name}_{format}.tflite"
                compare(f"{name} {format}", path, write(model, format, path, extras), root)


if __name__ == "__main__":
    main()
