"""Makes the environments of the peers, FOLDER/keras and FOLDER/torch, from the lists in `peers/`.

    python benchmarks/make_peers.py FOLDER

Run it where the package is installed: Keras and TensorFlow get the installed versions. PyTorch includes its GPU
libraries, so both need about 6 GB. An existing environment is updated to its list.
"""

import argparse
import importlib.metadata
import subprocess
import venv
from pathlib import Path

#: Packages with the same versions as here.
SHARED = {"keras": ("keras", "tensorflow", "ai-edge-litert"), "torch": ()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder

    for name, shared in SHARED.items():
        venv.create(folder / name, with_pip=True)
        versions = [f"{package}=={importlib.metadata.version(package)}" for package in shared]
        wanted = ["--requirement", Path(__file__).parent / "peers" / f"{name}.txt", *versions]
        subprocess.run([folder / name / "bin" / "python", "-m", "pip", "install", *wanted], check=True)


if __name__ == "__main__":
    main()
