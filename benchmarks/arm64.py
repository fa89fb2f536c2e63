"""Whether `.tflite` files answer on ARM64, the phones' instruction set, as on this machine. Nothing is timed.

    python benchmarks/arm64.py [--formats tflite tflite_int8] [--processors cortex-a76] [names …]

QEMU emulates three generations of phones' processors, whose kernels in LiteRT differ: Cortex-A53 (ARMv8.0), Cortex-A76
(with products of bytes) and Cortex-A710 (ARMv9, with products of matrices of bytes). Both sides run the same version of
LiteRT.

It needs Debian, and installs nothing. The first call downloads QEMU 10 and a Python for ARM64 of Debian 13 from the
system's own mirror, and LiteRT from PyPI, some 140 MB, into the user's cache. Older QEMUs do not do: LiteRT 2.3 crashes
under 7.2, Debian 12's.

A line for each file and processor: the committed ResNet-20 in each format on 200 images held out, then the scores of an
untrained network of each family, or of those named, on 4 images of 32 × 32 pixels. "apart" is the largest difference of
any output, in steps of the output for files that give bytes.
"""

import argparse
import importlib.metadata
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
from keras_resdense.exporting.read import load_model

FORMATS = [name for name in EXPORTERS if name.startswith("tflite")]
FAMILIES = "resnet18d resnet50v1 resnext50_32x4d seresnet18 plainnet18 resnet18v2 densenet121 resnet20 densenetbc40_12"
COMMITTED = Path(__file__).parent.parent / "saved_models" / "resnet20_fashion_mnist"
PROCESSORS = ("cortex-a53", "cortex-a76", "cortex-a710")
#: Debian 13, and the file of Debian's archive keys.
RELEASE, KEYS = "trixie", "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ("qemu-user", "python3-minimal:arm64", "libpython3-stdlib:arm64", "libstdc++6:arm64")
LITERT = importlib.metadata.version("ai-edge-litert")
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
    """Returns a folder with QEMU, a Python for ARM64 and its packages; makes it if there is none."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keras_resdense" / f"arm64_litert{LITERT}"
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        made, apt, wheels = Path(folder) / "root", Path(folder) / "apt", Path(folder) / "wheels"
        download(apt)
        for package in (apt / "cache" / "archives").glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, made], check=True)
        # What Debian's installer does.
        (made / "lib").symlink_to("usr/lib")
        for other in {*(made / "usr" / "bin").glob("qemu-*")} - {made / "usr" / "bin" / "qemu-aarch64"}:
            other.unlink()
        version = os.readlink(made / "usr" / "bin" / "python3").removeprefix("python")
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
        pip += ["--python-version", version, "--dest", wheels, "numpy", f"ai-edge-litert=={LITERT}"]
        subprocess.run(pip, check=True)
        for wheel in wheels.glob("*.whl"):
            shutil.unpack_archive(wheel, made / "site", "zip")
        made.rename(root)
    return root


def download(apt: Path) -> None:
    """Downloads the packages into `cache/archives` of a folder, where `apt-get` also keeps everything else."""
    listed = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    sources = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split()
    mirror = next((source for source in sources if source.rstrip("/").endswith("/debian")), None)
    if mirror is None or not Path(KEYS).is_file():
        sys.exit("There is no mirror of Debian among the system's package sources: run this on Debian.")
    for part in ("state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYS}] {mirror} {RELEASE} main\n")
    settings = {
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": apt / "none",
        "APT::Architectures::": "arm64",
        "APT::Sandbox::User": "root",
    }
    command = ["apt-get", "-q", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    subprocess.run([*command, "update"], check=True, stdout=subprocess.DEVNULL)
    install = [*command, "install", "--yes", "--download-only", "--no-install-recommends", *PACKAGES]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)


def arm64_python(root: Path, processor: str) -> list[str]:
    """Returns the command that starts the Python for ARM64 on a processor."""
    paths = {"PYTHONPATH": root / "site", "PYTHONHOME": root / "usr"}
    settings = [word for name, value in paths.items() for word in ("-E", f"{name}={value}")]
    programs = root / "usr" / "bin"
    return [str(programs / "qemu-aarch64"), "-cpu", processor, "-L", str(root), *settings, str(programs / "python3")]


def outputs(python: list[str], model: Path, images: np.ndarray) -> np.ndarray:
    given, made = model.with_suffix(".npy"), model.with_suffix(".outputs.npy")
    np.save(given, images)
    subprocess.run([*python, "-c", RUN, model, given, made], check=True, stderr=subprocess.DEVNULL)
    return np.load(made)


def compare(label: str, arm: np.ndarray, here: np.ndarray) -> None:
    """Prints how far the outputs of ARM64 and of this machine are apart."""
    apart = np.abs(arm.astype("float64") - here.astype("float64"))
    unit = "steps" if here.dtype.kind in "iu" else f"of {np.abs(here).max():.3g}"
    same = (arm.argmax(-1) == here.argmax(-1)).mean()
    print(
        f"{label:48} apart {apart.max():.2g} {unit}, {(apart > 0).mean():.2%} differ, same class {same:.2%}", flush=True
    )


def write(model: keras.Model, format: str, path: Path, extras: Extras) -> np.ndarray:
    """Writes a model in a format and returns the images as the file takes them."""
    exporter = EXPORTERS[format]
    adapted = exporter.adapt(extras)
    exporter.write(exporter.prepare(model), path, adapted)
    return adapted.images


def committed() -> tuple[keras.Model, Extras]:
    model, data = load_model(COMMITTED, compile=False), load_data("fashion_mnist")
    contract = model.image_contract
    calibration, _ = take_images(data.train, contract, 256)
    return model, Extras(images=take_images(data.test, contract, 200)[0], calibration=calibration, contract=contract)


def untrained(name: str) -> tuple[keras.Model, Extras]:
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).round().astype("float32")
    model = keras_resdense.create_model(
        name, input_shape=(32, 32, 3), classes=10, classifier_activation=None, include_preprocessing=True
    )
    return model, Extras(images=images, calibration=images)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["committed", *FAMILIES.split()], help="variants, or 'committed'")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--processors", nargs="+", default=PROCESSORS, help="names of QEMU's")
    options = parser.parse_args()
    missing = [program for program in ("apt-get", "dpkg") if not shutil.which(program)]
    if missing:
        sys.exit(f"There is no {' and no '.join(missing)}: run this on Debian.")
    root = make_root()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names:
            model, extras = committed() if name == "committed" else untrained(name)
            for format in options.formats:
                path = Path(folder) / f"{name}_{format}.tflite"
                images = write(model, format, path, extras)
                here = outputs([sys.executable], path, images)
                for processor in options.processors:
                    compare(f"{name} {format} {processor}", outputs(arm64_python(root, processor), path, images), here)


if __name__ == "__main__":
    main()
