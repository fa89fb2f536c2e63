"""Writes `augment.npz`: a photograph, and what timm makes of it with each operation of RandAugment.

    python tests/golden/make_augment_golden.py tests/golden

Needs timm, torch, torchvision, Pillow and scikit-learn; ours is not imported.
"""

import functools
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import auto_augment

#: The strengths of magnitudes that RandAugment draws.
MAGNITUDES = (3.3, 7.0, 9.9)
#: What timm's `create_transform` gives to the operations, but for the filter, which it draws by default.
HYPERPARAMETERS = {"translate_pct": 0.45, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BILINEAR}
#: Operations whose strength has a sign, which timm draws, and those without a strength.
SIGNED = ("Rotate", "Color", "Contrast", "Brightness", "Sharpness", "Shear", "Translate")
PLAIN = ("AutoContrast", "Equalize", "Invert")


def main() -> None:
    photo = Image.fromarray(load_sample_image("flower.jpg")).resize((48, 36), Image.Resampling.BICUBIC)
    arrays = {"photo": np.asarray(photo)}
    for name in auto_augment._RAND_INCREASING_TRANSFORMS:
        for magnitude in MAGNITUDES[:1] if name in PLAIN else MAGNITUDES:
            for sign in (1, -1) if name.startswith(SIGNED) else (1,):
                auto_augment._randomly_negate = functools.partial(np.multiply, sign)
                operation = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=dict(HYPERPARAMETERS))
                arrays[f"{name} {magnitude} {sign}"] = np.asarray(operation(photo))
    np.savez_compressed(Path(sys.argv[1]) / "augment.npz", **arrays)


if __name__ == "__main__":
    main()
