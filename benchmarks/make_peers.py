"""Makes the environments of the package's peers: FOLDER/keras and FOLDER/torch, of the lists in `peers/`.

    python benchmarks/make_peers.py FOLDER

Run it where the package is installed: Keras and TensorFlow get the versions that are there. PyTorch comes with its GPU
libraries; about 6 GB in all. An environment that is there is brought to what its list says.
"""

import argparse
import importlib.metadata
import subprocess
import venv
from pathlib import Path

#: Packages whose versions are ours.
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
