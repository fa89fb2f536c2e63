"""Images a second that come out of a folder of JPEGs: ours, tf.data by hand, torchvision and timm.

    python benchmarks/loading.py PEERS [--images 2000] [--rounds 3] [--batches 20]

PEERS is the folder of `make_peers.py`. All run in turns, each time in a new process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from loaders import LOADERS

#: Whom ours meets: with the same crops and flips, and with the same augmentation.
RIVALS = {
    "tf.data, not antialiased": "ours, crop and flip",
    "tf.data, antialiased": "ours, crop and flip",
    "torchvision": "ours, crop and flip",
    "timm, rand-m7-mstd0.5-inc1": "ours, strikes_back_a2",
}


def make_images(folder: Path, count: int) -> None:
    """Writes JPEGs of 500 × 375 pixels and some 57 kB, as ImageNet has them: parts of two photographs, with noise."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos, random = [Image.fromarray(photo) for photo in load_sample_images().images], np.random.default_rng(0)
    for number in range(count):
        photo, share = photos[number % 2], random.uniform(0.6, 1)
        width, height = int(500 * share), int(375 * share)
        left, top = random.integers(0, photo.width - width + 1), random.integers(0, photo.height - height + 1)
        part = photo.crop((left, top, left + width, top + height)).resize((500, 375), Image.Resampling.BICUBIC)
        pixels = np.clip(np.asarray(part) + random.normal(0, 4.5, (375, 500, 3)), 0, 255).astype("uint8")
        path = folder / f"class{number % 10}" / f"{number:05}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=89)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--batches", type=int, default=20, help="of a round; default %(default)s")
    options = parser.parse_args()
    interpreters = {"ours": Path(sys.executable), "torch": options.peers / "torch" / "bin" / "python"}

    found = {name: [] for name in LOADERS}
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), options.images)
        for _ in range(options.rounds):
            for name, (environment, _) in LOADERS.items():
                command = [interpreters[environment], Path(__file__).with_name("loaders.py"), name, folder]
                run = subprocess.run([*command, str(options.batches)], check=True, stdout=subprocess.PIPE, text=True)
                found[name].append(json.loads(run.stdout.splitlines()[-1]))

    print("| | images/s | min–max | processor ms an image | ours over it |\n|---|---:|---:|---:|---:|")
    for name, rounds in found.items():
        speeds = [measured["images_per_second"] for measured in rounds]
        costs = statistics.median(measured["processor_ms"] for measured in rounds)
        ratio = ""
        if name in RIVALS:
            pairs = zip(found[RIVALS[name]], speeds, strict=True)
            ratio = f"{statistics.median(mine['images_per_second'] / speed for mine, speed in pairs):.2f}"
        spread = f"{min(speeds):.0f}–{max(speeds):.0f}"
        print(f"| {name} | {statistics.median(speeds):.0f} | {spread} | {costs:.2f} | {ratio} |")


if __name__ == "__main__":
    main()
