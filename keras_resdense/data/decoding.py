"""Image files into pixels by Pillow: RGB of 8 bits on white, upright, the first frame of an animation."""

from __future__ import annotations

import io
import os
import warnings

import numpy as np

#: The formats that are opened, by Pillow's names. Pillow would hand others, such as EPS, to programs of their own.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
#: Suffixes of the files that are taken for images; others are left alone.
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"))
#: Environment variable with the most pixels of an image that is opened.
MAX_PIXELS = "KERAS_RESDENSE_MAX_PIXELS"
_ORIENTATION_TAG = 0x0112
#: Where Pillow finds an orientation besides EXIF; browsers and TensorFlow do not look there.
_OTHER_ORIENTATIONS = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def decode_image(encoded: bytes) -> np.ndarray:
    """Decodes an image file.

    Args:
        encoded: A file of one of `FORMATS`.

    Returns:
        Pixels `(height, width, 3)`, uint8. Transparent ones lie on white. The EXIF orientation is obeyed.

    Raises:
        ValueError: If it is no image of these formats, is damaged, or has more than 178,956,970 pixels. The environment
            variable `KERAS_RESDENSE_MAX_PIXELS` sets another limit.
    """
    from PIL import Image, UnidentifiedImageError

    _set_up_pillow()
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            image.load()
            return np.asarray(_upright(_to_rgb(image, encoded), _orientation(image)))
    except UnidentifiedImageError as error:
        raise ValueError("no image") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} To open larger images, set {MAX_PIXELS} to more pixels.") from error
    # Pillow's decoders raise whatever they stumble over.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}".replace("\n", " ")) from error


def is_plain_jpeg(encoded: bytes) -> bool:
    """Says whether a file is a JPEG that needs no turning and no conversion but from grey to colour."""
    return _is_plain(encoded, "JPEG")


def is_plain_png(encoded: bytes) -> bool:
    """Says whether a file is a PNG of 8 bits, without transparency or palette, that needs no turning."""
    return _is_plain(encoded, "PNG")


def _is_plain(encoded: bytes, format: str) -> bool:
    from PIL import Image

    _set_up_pillow()
    try:
        with Image.open(io.BytesIO(encoded), formats=[format]) as image:
            modes = image.mode in ("RGB", "L") and not image.has_transparency_data
            return image.format == format and modes and _orientation(image) in (0, 1)
    # Pillow's decoders raise whatever they stumble over.
    except Exception:
        return False


def _set_up_pillow() -> None:
    """Sets the limit of pixels that the user asks for, and silences Pillow about what is odd but readable.

    `warnings.catch_warnings` would do it for a moment, but not in threads, where it silences everything for good.
    """
    from PIL import Image

    if (limit := os.environ.get(MAX_PIXELS, "")).isdecimal():
        # Pillow warns beyond its number, and refuses beyond twice its number.
        Image.MAX_IMAGE_PIXELS = int(limit) // 2
    if not any(rule[0] == "ignore" and rule[3] is not None and rule[3].pattern == _PILLOW for rule in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW)


_PILLOW = r"PIL\."


def _to_rgb(image, encoded: bytes):
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits: the high byte, as TensorFlow and Pillow take it of colours
        pixels = np.clip(np.asarray(image), 0, 65535) >> 8
        return Image.fromarray(pixels.astype("uint8")).convert("RGB")
    if image.mode == "CMYK":  # cut off, as TensorFlow and browsers do; Pillow rounds
        inks = 255 - np.asarray(image).astype("uint16")
        return Image.fromarray((inks[..., :3] * inks[..., 3:] // 255).astype("uint8"))
    if image.has_transparency_data:
        _scale_transparent_grey(image, encoded)
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _scale_transparent_grey(image, encoded: bytes) -> None:
    """Corrects the grey value that a PNG of 2 or 4 bits calls transparent: Pillow scales its pixels, but not this."""
    depth = encoded[24] if image.format == "PNG" else 8
    transparent = image.info.get("transparency")
    if image.mode == "L" and depth < 8 and isinstance(transparent, int):
        image.info["transparency"] = transparent * (255 // (2**depth - 1))


def _orientation(image) -> int:
    for name in _OTHER_ORIENTATIONS:
        image.info.pop(name, None)
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF counts as none, as in browsers
        return 1


def _upright(image, orientation: int):
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image
