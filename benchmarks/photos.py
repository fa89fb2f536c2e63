"""Photographs for benchmarks."""

from pathlib import Path


def make_images(folder: Path, count: int, side: int = 375) -> None:
    """Writes JPEGs in 4:3 that compress as well as ImageNet's: parts of two photographs, with noise.

    Args:
        folder: Folder for the images, which get folders of ten classes.
        count: Number of images.
        side: Shorter side, in pixels. With 375, a file has about 57 kB.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos, random = [Image.fromarray(photo) for photo in load_sample_images().images], np.random.default_rng(0)
    for number in range(count):
        photo, share = photos[number % 2], random.uniform(0.6, 1)
        width, height = int(500 * share), int(375 * share)
        left, top = random.integers(0, photo.width - width + 1), random.integers(0, photo.height - height + 1)
        part = photo.crop((left, top, left + width, top + height)).resize(
            (side * 4 // 3, side), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(part)
        pixels = np.clip(pixels + random.normal(0, 4.5, pixels.shape), 0, 255).astype("uint8")
        path = folder / f"class{number % 10}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=89)
