"""Decodes image files with Pillow to 8-bit RGB: upright, on white, the first frame of an animation."""

from __future__ import annotations

import io
import os
import warnings

import numpy as np

#: Supported formats by Pillow's names. For others, such as EPS, Pillow would start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
#: Suffixes of image files; other files are ignored.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jfif")
#: Environment variable with the largest allowed number of pixels of an image.
MAX_PIXELS = "KERAS_RESDENSE_MAX_PIXELS"
#: EXIF's tag of the orientation.
ORIENTATION_TAG = 0x0112
#: Where Pillow finds an orientation besides EXIF; browsers and TensorFlow ignore these.
_OTHER_ORIENTATIONS = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def decode_image(encoded: bytes) -> np.ndarray:
    """Decodes an image file.

    Args:
        encoded: A file of one of `FORMATS`.

    Returns:
        Pixels `(height, width, 3)`, uint8. Transparent pixels are blended with white, and the EXIF orientation
        is applied.

    Raises:
        ValueError: If it is not an image of these formats, is damaged, or has more than 178,956,970 pixels. The
            environment variable `KERAS_RESDENSE_MAX_PIXELS` sets another limit.
    """
    from PIL import Image, UnidentifiedImageError

    _set_up_pillow()
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            image.load()
            return np.asarray(_upright(_to_rgb(image, encoded), _orientation(image)))
    except UnidentifiedImageError as error:
        raise ValueError("not an image") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} To open larger images, set {MAX_PIXELS} to more pixels.") from error
    # Pillow's decoders raise exceptions of any kind for damaged files.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}".replace("\n", " ")) from error


def is_plain_jpeg(encoded: bytes) -> bool:
    """Returns whether a file is an upright JPEG in RGB or grey."""
    return _is_plain(encoded, "JPEG")


def is_plain_png(encoded: bytes) -> bool:
    """Returns whether a file is an upright 8-bit PNG without transparency or a palette."""
    return _is_plain(encoded, "PNG")


def _is_plain(encoded: bytes, format: str) -> bool:
    from PIL import Image

    _set_up_pillow()
    try:
        with Image.open(io.BytesIO(encoded), formats=[format]) as image:
            modes = image.mode in ("RGB", "L") and not image.has_transparency_data
            return image.format == format and modes and _orientation(image) in (0, 1)
    # Pillow's decoders raise exceptions of any kind for damaged files.
    except Exception:
        return False


def _set_up_pillow() -> None:
    """Sets the limit of pixels that the user asks for, and silences Pillow's warnings about odd but readable files.

    `warnings.catch_warnings` is not safe in threads.
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

    if image.mode.startswith("I"):  # 16 bits: keep the high byte, as TensorFlow and Pillow do for colours
        pixels = np.clip(np.asarray(image), 0, 65535) >> 8
        return Image.fromarray(pixels.astype("uint8")).convert("RGB")
    if image.mode == "CMYK":  # round down like TensorFlow and browsers; Pillow rounds to nearest
        inks = 255 - np.asarray(image).astype("uint16")
        return Image.fromarray((inks[..., :3] * inks[..., 3:] // 255).astype("uint8"))
    if image.has_transparency_data:
        _scale_transparent_grey(image, encoded)
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _scale_transparent_grey(image, encoded: bytes) -> None:
    """Scales the transparent grey value of a 2-bit or 4-bit PNG, because Pillow scales only the pixels."""
    depth = encoded[24] if image.format == "PNG" else 8
    transparent = image.info.get("transparency")
    if image.mode == "L" and depth < 8 and isinstance(transparent, int):
        image.info["transparency"] = transparent * (255 // (2**depth - 1))


def _orientation(image) -> int:
    for name in _OTHER_ORIENTATIONS:
        image.info.pop(name, None)
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # like browsers, ignore damaged EXIF
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
