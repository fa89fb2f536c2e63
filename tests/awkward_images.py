"""Makes `golden/awkward/`: image files that are difficult to decode, from two photographs.

Every file shows scikit-learn's `china.jpg` or `flower.jpg`, as its name says, upright to whoever obeys the file's
EXIF orientation, lays transparency on white, and ignores colour profiles, gamma, XMP and comments. Most are written
byte by byte, for Pillow would not write them. To make the files anew:

    pip install pillow==13.0.0 scikit-learn
    python -m tests.awkward_images
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn.datasets
from PIL import Image, ImageCms

FOLDER = Path(__file__).parent / "golden/awkward"
ORIENTATIONS = range(1, 9)
#: What turns an upright image into one as a camera stores it, by its EXIF orientation.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
#: The types of a PNG's colours.
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
#: First row, first column and steps of the passes of an interlaced PNG.
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


@functools.cache
def photograph(name: str, width: int = 120, height: int = 80) -> Image.Image:
    """Returns one of the two photographs, "china" or "flower", at a small size."""
    path = Path(sklearn.datasets.__file__).parent / f"images/{name}.jpg"
    return Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def pixels(name: str, mode: str = "RGB") -> np.ndarray:
    return np.asarray(photograph(name).convert(mode))


def ramp(name: str) -> np.ndarray:
    """Returns an alpha channel that is opaque in the middle and transparent at the left and right edges."""
    height, width = pixels(name, "L").shape
    row = np.clip(8 * 255 * np.minimum(np.arange(width), np.arange(width)[::-1]) / width, 0, 255)
    return np.tile(row.astype("uint8"), (height, 1))


def saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def stored(name: str, orientation: int) -> Image.Image:
    """Returns a photograph, rotated as a camera in that orientation stores it."""
    upright = photograph(name)
    return upright.transpose(STORED[orientation]) if orientation in STORED else upright


def tiff(orientation: int, order: str) -> bytes:
    """Returns an EXIF block whose orientation is the second of three tags; order is ">" or "<"."""
    entries = [(0x010F, 2, b"cam\0"), (0x0112, 3, struct.pack(f"{order}HH", orientation, 0)), (0x0213, 3, b"\0\1\1\0")]
    block = struct.pack(f"{order}2sHIH", b"MM" if order == ">" else b"II", 42, 8, len(entries))
    for tag, kind, value in entries:
        block += struct.pack(f"{order}HHI", tag, kind, 4 if kind == 2 else 1) + value
    return block + bytes(4)


def segment(code: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(content) + 2) + content


def jpeg(image: Image.Image, *segments: bytes, jfif: bool = True, **options) -> bytes:
    """Writes a JPEG with segments after its first one, the JFIF header, or instead of it."""
    whole = saved(image, "JPEG", **options)
    end = 4 + int.from_bytes(whole[4:6], "big")
    return whole[: end if jfif else 2] + b"".join(segments) + whole[end:]


def exif_jpeg(name: str, orientation: int, order: str) -> bytes:
    return jpeg(stored(name, orientation), segment(0xE1, b"Exif\0\0" + tiff(orientation, order)))


def cmyk_jpeg(name: str, ycck: bool = False) -> bytes:
    """Writes a JPEG of inks, or one that holds them as brightness and colour (YCCK); Pillow and Adobe invert both."""
    colours = 255.0 - pixels(name)
    black = colours.min(-1, keepdims=True)
    paper = (255 - 255 * (colours - black) / np.maximum(255 - black, 1)).astype("uint8")
    stored_as = np.asarray(Image.fromarray(255 - paper).convert("YCbCr")) if ycck else paper
    inks = np.concatenate([255 - stored_as, black.astype("uint8")], -1)
    whole = saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=90)
    transform = whole.index(b"Adobe") + 11
    return whole[:transform] + bytes([2 * ycck]) + whole[transform + 1 :]


def unmarked(whole: bytes) -> bytes:
    """Removes Adobe's segment from a JPEG, so a decoder must guess the meaning of its inks."""
    start = whole.index(b"Adobe") - 4
    return whole[:start] + whole[start + 16 :]


def swapped_profile() -> bytes:
    """Returns a colour profile that swaps red and blue, so decoders that use it are noticed."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile[:24] + bytes(12) + profile[36:84] + bytes(16) + profile[100:]  # date and checksum
    for old, new in ((b"rXYZ", b"?XYZ"), (b"bXYZ", b"rXYZ"), (b"?XYZ", b"bXYZ")):
        profile = profile.replace(old, new, 1)
    return profile


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def rows(samples: np.ndarray, depth: int) -> bytes:
    """Packs samples `(height, width, channels)` into a PNG's unfiltered rows."""
    height, width, channels = samples.shape
    if depth == 16:
        packed = samples.astype(">u2").view("uint8").reshape(height, -1)
    else:
        bits = np.unpackbits(samples.astype("uint8").reshape(height, width * channels, 1), axis=2)[..., 8 - depth :]
        packed = np.packbits(bits.reshape(height, -1), axis=1)
    return np.concatenate([np.zeros((height, 1), "uint8"), packed], 1).tobytes()


def png(samples, kind: int, depth: int = 8, before=b"", after=b"", interlaced: bool = False) -> bytes:
    """Writes a PNG of samples `(height, width, channels)`, with chunks before and after the pixels."""
    height, width = samples.shape[:2]
    passes = [samples[top::down, left::right] for top, left, down, right in ADAM7] if interlaced else [samples]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    body = zlib.compress(b"".join(rows(part, depth) for part in passes if part.size), 9)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before
    return start + chunk(b"IDAT", body) + after + chunk(b"IEND", b"")


def palette_png(name: str, depth: int, transparency: bytes = b"") -> bytes:
    image = photograph(name).quantize(2**depth, dither=Image.Dither.NONE)
    before = chunk(b"PLTE", bytes(image.getpalette()[: 3 * 2**depth]))
    before += chunk(b"tRNS", transparency) if transparency else b""
    return png(np.asarray(image)[..., None], PALETTE, depth, before)


def grey_png(name: str, depth: int, transparent: int | None = None) -> bytes:
    before = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    return png(pixels(name, "L")[..., None] >> (8 - depth), GREY, depth, before)


def exif_png(name: str, orientation: int, order: str, behind: bool = False) -> bytes:
    block = chunk(b"eXIf", tiff(orientation, order))
    image = np.asarray(stored(name, orientation))
    return png(image, RGB, after=block) if behind else png(image, RGB, before=block)


def sixteen_bits(samples: np.ndarray) -> np.ndarray:
    """Converts 8 to 16 bits, with low bytes that distinguish rounding from truncation."""
    return samples.astype("uint16") * 256 + (np.arange(samples.size).reshape(samples.shape) * 37 % 256).astype("uint16")


def with_alpha(name: str, mode: str = "RGB") -> np.ndarray:
    return np.dstack([pixels(name, mode), ramp(name)])


def cut_out(name: str) -> np.ndarray:
    """Returns RGBA whose transparent pixels have a bright colour."""
    image = with_alpha(name)
    image[image[..., 3] < 255] = (255, 0, 255, 0)
    return image


def transparent_gif(name: str) -> bytes:
    image = photograph(name).quantize(64)
    return saved(image, "GIF", transparency=int(np.bincount(np.asarray(image).ravel()).argmax()))


def animated(name: str, format: str) -> bytes:
    return saved(photograph(name), format, save_all=True, append_images=[stored(name, 3)])


def enlarged(name: str, side: int) -> Image.Image:
    """Returns a photograph of coarse squares, which compresses well."""
    small = photograph(name, 200, 130)
    return small.resize((200 * side, 130 * side), Image.Resampling.NEAREST)


def sized(name: str, height: int, width: int, format: str) -> bytes:
    return saved(photograph(name, width, height), format)


XMP = b"http://ns.adobe.com/xap/1.0/\0" + (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
)
RAW_PROFILE = b"Raw profile type exif\0\nexif\n      44\n" + (b"Exif\0\0" + tiff(6, ">")).hex().encode() + b"\n"

IMAGES: dict[str, Callable[[], bytes]] = {
    "jpeg_china.jpg": lambda: jpeg(photograph("china")),
    "jpeg_flower.jpg": lambda: jpeg(photograph("flower")),
    "jpeg_full_colour_china.jpg": lambda: jpeg(photograph("china"), subsampling=0, quality=95),
    "jpeg_halved_colour_flower.jpg": lambda: jpeg(photograph("flower"), subsampling=1),
    "jpeg_quality_10_china.jpg": lambda: jpeg(photograph("china"), quality=10),
    "jpeg_progressive_flower.jpg": lambda: jpeg(photograph("flower"), progressive=True),
    "jpeg_restarts_china.jpg": lambda: jpeg(photograph("china"), restart_marker_rows=1),
    "jpeg_grey_flower.jpg": lambda: jpeg(photograph("flower").convert("L")),
    "jpeg_grey_progressive_china.jpg": lambda: jpeg(photograph("china").convert("L"), progressive=True),
    "jpeg_rgb_flower.jpg": lambda: saved(photograph("flower"), "JPEG", keep_rgb=True),
    "jpeg_cmyk_china.jpg": lambda: cmyk_jpeg("china"),
    "jpeg_cmyk_flower.jpg": lambda: cmyk_jpeg("flower"),
    "jpeg_ycck_china.jpg": lambda: cmyk_jpeg("china", ycck=True),
    "jpeg_cmyk_unmarked_flower.jpg": lambda: unmarked(cmyk_jpeg("flower")),
    "jpeg_profile_china.jpg": lambda: jpeg(photograph("china"), icc_profile=swapped_profile()),
    "jpeg_with_tail_flower.jpg": lambda: jpeg(photograph("flower")) + b"\0" * 99,
    **{
        f"exif_{orientation}_{'big' if order == '>' else 'little'}_{name}.jpg": functools.partial(
            exif_jpeg, name, orientation, order
        )
        for orientation in ORIENTATIONS
        for order, name in ((">", "china"), ("<", "flower"))
    },
    "exif_behind_others_china.jpg": lambda: jpeg(
        stored("china", 6),
        segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\xff\xe1Exif\0\0" * 100),
        segment(0xE1, XMP.replace(b"6", b"3")),
        segment(0xFE, b"a comment"),
        b"\xff\xff",
        segment(0xE1, b"Exif\0\0" + tiff(6, "<")),
    ),
    "exif_without_jfif_flower.jpg": lambda: jpeg(
        stored("flower", 8), segment(0xE1, b"Exif\0\0" + tiff(8, ">")), jfif=False
    ),
    "exif_damaged_china.jpg": lambda: jpeg(photograph("china"), segment(0xE1, b"Exif\0\0XX" + tiff(6, ">")[2:])),
    "exif_cut_off_flower.jpg": lambda: jpeg(photograph("flower"), segment(0xE1, b"Exif\0\0" + tiff(6, ">")[:25])),
    "exif_9_china.jpg": lambda: exif_jpeg("china", 9, ">"),
    "xmp_6_flower.jpg": lambda: jpeg(photograph("flower"), segment(0xE1, XMP)),
    **{
        f"exif_{orientation}_{'big' if order == '>' else 'little'}_{name}.png": functools.partial(
            exif_png, name, orientation, order
        )
        for orientation, order, name in ((3, ">", "flower"), (5, "<", "china"), (6, "<", "flower"), (8, ">", "china"))
    },
    "exif_6_behind_pixels_china.png": lambda: exif_png("china", 6, ">", behind=True),
    "exif_raw_profile_flower.png": lambda: png(pixels("flower"), RGB, before=chunk(b"tEXt", RAW_PROFILE)),
    "rgb_china.png": lambda: png(pixels("china"), RGB),
    "rgb_interlaced_flower.png": lambda: png(pixels("flower"), RGB, interlaced=True),
    "rgb_one_colour_transparent_flower.png": lambda: png(
        pixels("flower"), RGB, before=chunk(b"tRNS", struct.pack(">HHH", *pixels("flower")[40, 60].tolist()))
    ),
    "rgb_16_bits_china.png": lambda: png(sixteen_bits(pixels("china")), RGB, 16),
    "rgb_gamma_flower.png": lambda: png(pixels("flower"), RGB, before=chunk(b"gAMA", struct.pack(">I", 100_000))),
    "rgb_profile_china.png": lambda: png(
        pixels("china"), RGB, before=chunk(b"iCCP", b"swapped\0\0" + zlib.compress(swapped_profile()))
    ),
    "rgba_china.png": lambda: png(with_alpha("china"), RGBA),
    "rgba_cut_out_flower.png": lambda: png(cut_out("flower"), RGBA),
    "rgba_interlaced_china.png": lambda: png(with_alpha("china"), RGBA, interlaced=True),
    "rgba_16_bits_flower.png": lambda: png(sixteen_bits(with_alpha("flower")), RGBA, 16),
    "palette_china.png": lambda: palette_png("china", 8),
    "palette_transparent_flower.png": lambda: palette_png("flower", 8, bytes(range(256))),
    "palette_one_transparent_china.png": lambda: palette_png("china", 8, b"\xff" * 9 + b"\0"),
    "palette_4_bits_flower.png": lambda: palette_png("flower", 4),
    "palette_4_bits_transparent_china.png": lambda: palette_png("china", 4, b"\xff\xff\x0f\0"),
    "palette_1_bit_flower.png": lambda: palette_png("flower", 1),
    "grey_china.png": lambda: grey_png("china", 8),
    "grey_4_bits_flower.png": lambda: grey_png("flower", 4),
    "grey_2_bits_china.png": lambda: grey_png("china", 2),
    "grey_1_bit_flower.png": lambda: grey_png("flower", 1),
    "grey_transparent_china.png": lambda: grey_png("china", 8, int(pixels("china", "L")[10, 10])),
    "grey_4_bits_transparent_flower.png": lambda: grey_png("flower", 4, 3),
    "grey_16_bits_china.png": lambda: png(sixteen_bits(pixels("china", "L")[..., None]), GREY, 16),
    "grey_alpha_flower.png": lambda: png(with_alpha("flower", "L"), GREY_ALPHA),
    "grey_alpha_16_bits_china.png": lambda: png(sixteen_bits(with_alpha("china", "L")), GREY_ALPHA, 16),
    "animated_flower.png": lambda: animated("flower", "PNG"),
    **{
        f"sides_{height}_{width}_{name}.{format}": functools.partial(sized, name, height, width, format)
        for height, width, format, name in (
            (1, 1, "png", "china"),
            (1, 1000, "png", "flower"),
            (1000, 1, "png", "china"),
            (2, 999, "jpeg", "flower"),
            (999, 3, "jpeg", "china"),
            (17, 500, "png", "flower"),
            (401, 11, "jpeg", "china"),
            (3, 5, "png", "flower"),
            (63, 65, "jpeg", "china"),
        )
    },
    "megapixels_27_flower.jpg": lambda: jpeg(enlarged("flower", 32), progressive=True, subsampling=2, quality=75),
    "megapixels_26_china.png": lambda: saved(enlarged("china", 32).quantize(64), "PNG", optimize=True),
    "opaque_china.gif": lambda: saved(photograph("china").quantize(64), "GIF"),
    "animated_flower.gif": lambda: animated("flower", "GIF"),
    "transparent_china.gif": lambda: transparent_gif("china"),
    "rgb_flower.bmp": lambda: saved(photograph("flower"), "BMP"),
    "palette_china.bmp": lambda: saved(photograph("china").quantize(256), "BMP"),
    "lossy_flower.webp": lambda: saved(photograph("flower"), "WEBP"),
    "rgba_china.webp": lambda: saved(Image.fromarray(with_alpha("china")), "WEBP", lossless=True, exact=True),
    "exif_6_flower.webp": lambda: saved(stored("flower", 6), "WEBP", exif=b"Exif\0\0" + tiff(6, ">")),
    "rgb_china.tiff": lambda: saved(photograph("china"), "TIFF", compression="tiff_lzw"),
    "grey_16_bits_flower.tiff": lambda: saved(Image.fromarray(sixteen_bits(pixels("flower", "L"))), "TIFF"),
    "rgb_china.ppm": lambda: saved(photograph("china"), "PPM"),
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, make in IMAGES.items():
        (FOLDER / name).write_bytes(make())
    sizes = [(FOLDER / name).stat().st_size for name in IMAGES]
    print(f"{len(sizes)} images, {sum(sizes):,} bytes, in {FOLDER}")


if __name__ == "__main__":
    main()
