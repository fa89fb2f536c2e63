"""Records what timm and torchvision make of photographs, for the tests to match.

Writes `transforms.npz` beside this file:

* `pixels/<library>/<picture>/<crop>/<interpolation>/<resized>/<size>` holds every `STRIDE`-th value of the
  network's input before it is normalised, uint8, counted through `(size, size, 3)`. `crop` is "center" (the
  shorter side becomes `resized`) or "squash" (both sides do), `size` the side of the central crop.
* `logits/<preprocessing>/<picture>/<crop>/<interpolation>/<resized>/<size>` holds what `NETWORK`, with weights by
  `rule.py`, says of that input as normalised by timm, (1000,).

The pictures are cut from the two photographs that scikit-learn ships, by `PICTURES`. To make the file anew:

    pip install numpy==2.4.6 torch==2.14.1 torchvision==0.29.1 timm==1.0.31 scikit-learn pillow==13.0.0
    python tests/golden/make_transform_golden.py
"""

import math
from pathlib import Path

import numpy as np

#: Each picture's photograph and the part of it: two whole ones, a tall one, and one that must be enlarged.
PICTURES = {
    "china": ("china.jpg", slice(None), slice(None)),
    "flower": ("flower.jpg", slice(None), slice(None)),
    "tall": ("china.jpg", slice(None), slice(100, 401)),
    "small": ("flower.jpg", slice(150, 241), slice(200, 333)),
}
#: A prime, so that all channels and columns have their turn.
STRIDE = 149
CROPS = ("center", "squash")
INTERPOLATIONS = ("bilinear", "bicubic")
SHARES = (0.875, 0.95, 1.0)
SIZES = (160, 224, 288)
#: Sides after resizing of torchvision's two recipes for size 224.
TORCHVISION_RESIZED = (256, 232)
NETWORK = "resnet18"
#: Multiplies the logits, for the rule's networks are undecided: the first probabilities become 0.3 to 0.8.
SHARPNESS = 8
#: Crop, interpolation, share and size of the inputs that the network is given.
CLASSIFIED = (("center", "bicubic", 0.95, 224), ("squash", "bilinear", 1.0, 160))
MEANS = {"torch": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "half": ((0.5,) * 3, (0.5,) * 3)}


def pictures() -> dict[str, np.ndarray]:
    """Returns the pictures, `(height, width, 3)`, uint8, as Pillow decodes them."""
    import sklearn.datasets
    from PIL import Image

    folder = Path(sklearn.datasets.__file__).parent / "images"
    return {
        name: np.asarray(Image.open(folder / file))[rows, columns] for name, (file, rows, columns) in PICTURES.items()
    }


def sample(pixels: np.ndarray) -> np.ndarray:
    """Takes every `STRIDE`-th value of an input `(size, size, 3)`."""
    return pixels.reshape(-1)[::STRIDE]


def main() -> None:
    import timm
    import torch
    import torchvision
    from make_torch_golden import fill
    from PIL import Image
    from timm.data import create_transform
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    def by_timm(picture, crop, interpolation, share, size, **normalisation):
        transform = create_transform(size, crop_mode=crop, interpolation=interpolation, crop_pct=share, **normalisation)
        return transform(Image.fromarray(picture)), f"{crop}/{interpolation}/{math.floor(size / share)}/{size}"

    golden = {}
    for name, picture in pictures().items():
        for crop in CROPS:
            for interpolation in INTERPOLATIONS:
                for share in SHARES:
                    for size in SIZES:
                        pixels, key = by_timm(picture, crop, interpolation, share, size, normalize=False)
                        golden[f"pixels/timm/{name}/{key}"] = sample(pixels.permute(1, 2, 0).numpy())
        for resized in TORCHVISION_RESIZED:
            transform = ImageClassification(
                crop_size=224,
                resize_size=resized,
                mean=(0, 0, 0),
                std=(1, 1, 1),
                interpolation=InterpolationMode.BILINEAR,
            )
            pixels = (transform(Image.fromarray(picture)) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            golden[f"pixels/torchvision/{name}/center/bilinear/{resized}/224"] = sample(pixels)
    assert torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms().resize_size == [TORCHVISION_RESIZED[0]]
    assert torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms().resize_size == [TORCHVISION_RESIZED[1]]

    network = fill(timm.create_model(NETWORK))
    with torch.inference_mode():
        for name, picture in pictures().items():
            for preprocessing, (mean, std) in MEANS.items():
                for crop, interpolation, share, size in CLASSIFIED:
                    image, key = by_timm(picture, crop, interpolation, share, size, mean=mean, std=std)
                    golden[f"logits/{preprocessing}/{name}/{key}"] = network(image[None])[0].numpy()
    path = Path(__file__).with_name("transforms.npz")
    np.savez_compressed(path, **golden)
    print(f"{len(golden)} entries, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
