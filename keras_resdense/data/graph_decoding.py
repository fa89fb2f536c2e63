"""Decodes JPEG and PNG files in a TensorFlow graph to the same pixels as `decode_image`.

`tf.io.decode_image` gives other pixels: it ignores orientation and transparency, decodes JPEG in lower precision, and
reads palettes of BMP and transparent GIF wrongly. Formats other than JPEG and PNG are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_resdense.data.decoding import ORIENTATION_TAG
from keras_resdense.data.encoded import JPEG, starts_with

if TYPE_CHECKING:
    import tensorflow as tf

_PNG = b"\x89PNG\r\n\x1a\n"
#: Bytes of a PNG's signature, of a chunk's length and type, and of these and the chunk's checksum.
_PNG_START, _CHUNK_HEADER, _CHUNK_FRAME = 8, 8, 12
#: Where a PNG has its bits per value; the next byte tells whether it has colour, a palette and alpha.
_PNG_DEPTH = 24
_PNG_WITH_ALPHA = (4, 6)
_IFD_ENTRY = 12
#: Codes of EXIF's unsigned and signed types.
_SHORT, _LONG = (3, 8), (4, 9)
_EXIF, _ADOBE = (0xE1, b"Exif\0\0"), (0xEE, b"Adobe")


def decode_in_graph(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes an image file in a TensorFlow graph, such as that of a SavedModel.

    Args:
        encoded: Scalar string tensor: a JPEG or a PNG.

    Returns:
        Pixels `(height, width, 3)`, uint8, as `decode_image` returns them.

    Raises:
        tf.errors.InvalidArgumentError: When it runs, if the file is of another format, is damaged, or is a CMYK JPEG
            without Adobe's marker, whose colours TensorFlow inverts and other decoders do not.
    """
    import tensorflow as tf

    is_jpeg, is_png = starts_with(encoded, JPEG), starts_with(encoded, _PNG)
    # The bytes of the file must not be in the message: Python could not print them.
    check = tf.debugging.Assert(is_jpeg | is_png, ["An image is neither a JPEG nor a PNG: convert it."])
    with tf.control_dependencies([check]):
        image = tf.cond(is_jpeg, lambda: _decode_jpeg(encoded), lambda: _decode_png(encoded))
        exif = tf.cond(is_jpeg, lambda: _jpeg_segment(encoded, *_EXIF), lambda: _png_chunk(encoded, b"eXIf"))
    return _upright(image, _orientation(exif))


def _decode_jpeg(encoded):
    import tensorflow as tf

    is_cmyk = tf.image.extract_jpeg_shape(encoded)[2] == 4
    known = tf.cond(is_cmyk, lambda: _jpeg_segment(encoded, *_ADOBE) != b"", lambda: True)
    with tf.control_dependencies(
        [tf.debugging.Assert(known, ["An image is a CMYK JPEG without Adobe's marker: convert it."])]
    ):
        return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def _decode_png(encoded):
    import tensorflow as tf

    kind = _bytes(tf.strings.substr(encoded, _PNG_DEPTH + 1, 1), 1)[0]
    transparent = tf.strings.length(_png_chunk(encoded, b"tRNS")) > 0
    # Without alpha, TensorFlow sets it to the largest value of the file's depth, not to 255.
    return tf.cond(
        transparent | tf.reduce_any(kind == _PNG_WITH_ALPHA),
        lambda: _on_white(tf.io.decode_png(encoded, channels=4)),
        lambda: tf.io.decode_png(encoded, channels=3),
    )


def _on_white(image):
    """Blends pixels `(height, width, 4)` with white, exactly as Pillow's `alpha_composite`."""
    import tensorflow as tf

    wide = tf.cast(image, tf.int32)
    colour, alpha = wide[..., :3], wide[..., 3:]
    return tf.cast((colour * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)


def _upright(image, orientation):
    """Applies an orientation, 1 to 8, to an image `(height, width, 3)`."""
    import tensorflow as tf

    image = tf.transpose(image, tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2]))
    upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
    mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    image = tf.reverse(image, tf.boolean_mask([0, 1], tf.stack([upside_down, mirrored])))
    return tf.ensure_shape(image, (None, None, 3))


def _jpeg_segment(encoded, wanted: int, header: bytes):
    """Returns what follows the header in a JPEG's first segment of a code and a header, or an empty string."""
    import tensorflow as tf

    size = tf.strings.length(encoded)

    def unfinished(place, content):
        return (place + 4 <= size) & (content == b"")

    def step(place, content):
        first, code, high, low = tf.unstack(_bytes(tf.strings.substr(encoded, place, 4), 4))
        is_marker = (first == 0xFF) & (code != 0xFF) & (code != 0)
        # TEM, RST0 to RST7 and SOI have no segment; EOI and SOS end the header.
        is_bare = (code == 0x01) | ((code >= 0xD0) & (code <= 0xD8))
        is_last = is_marker & ((code == 0xD9) | (code == 0xDA))
        length = high * 256 + low
        segment = tf.strings.substr(encoded, place + 4, tf.where(is_marker & (code == wanted), length - 2, 0))
        is_wanted = tf.strings.substr(segment, 0, len(header)) == header
        found = tf.strings.substr(segment, tf.minimum(len(header), tf.strings.length(segment)), length)
        moved = place + tf.where(is_marker, tf.where(is_bare, 2, 2 + tf.maximum(length, 2)), 1)
        return tf.where(is_last, size, moved), tf.where(is_wanted, found, b"")

    return tf.while_loop(unfinished, step, (tf.constant(2), tf.constant(b"")), parallel_iterations=1)[1]


def _png_chunk(encoded, wanted: bytes):
    """Returns the content of a PNG's first chunk of a kind, or an empty string."""
    import tensorflow as tf

    size = tf.strings.length(encoded)

    def unfinished(place, content):
        return (place + _CHUNK_HEADER <= size) & (content == b"")

    def step(place, content):
        length = tf.io.decode_raw(tf.strings.substr(encoded, place, 4), tf.int32, little_endian=False)[0]
        kind = tf.strings.substr(encoded, place + 4, 4)
        # A damaged length must not lead backwards or overflow.
        left = size - place - _CHUNK_HEADER
        length = tf.where((length >= 0) & (length <= left), length, left)
        content = tf.strings.substr(encoded, place + _CHUNK_HEADER, tf.where(kind == wanted, length, 0))
        return tf.where(kind == b"IEND", size, place + _CHUNK_FRAME + length), content

    start = (tf.constant(_PNG_START), tf.constant(b""))
    return tf.while_loop(unfinished, step, start, parallel_iterations=1)[1]


def _orientation(tiff):
    """Returns the orientation in a TIFF block, 1 to 8; 1 if it is missing or damaged."""
    import tensorflow as tf

    big = tf.strings.substr(tiff, 0, 2) == b"MM"
    known = tf.reduce_any(tf.strings.substr(tiff, 0, 4) == [b"MM\0*", b"II*\0"])
    size = tf.strings.length(tiff)

    def number(columns):
        """Returns the unsigned numbers in the rows of an array of bytes."""
        places = tf.range(tf.shape(columns)[-1])
        powers = tf.where(big, tf.reverse(places, [0]), places)
        values = tf.cast(columns, tf.int64) * tf.cast(256, tf.int64) ** tf.cast(powers, tf.int64)
        return tf.reduce_sum(values, axis=-1)

    header = _bytes(tf.strings.substr(tiff, 0, 8), 8)
    start = tf.cast(tf.minimum(number(header[4:]), tf.cast(size, tf.int64)), tf.int32)
    count = tf.cast(number(_bytes(tf.strings.substr(tiff, start, 2), 2)), tf.int32)
    rows = tf.io.decode_raw(tf.strings.substr(tiff, tf.minimum(start + 2, size), count * _IFD_ENTRY), tf.uint8)
    entries = tf.reshape(rows[: tf.size(rows) // _IFD_ENTRY * _IFD_ENTRY], (-1, _IFD_ENTRY))
    tag, kind = number(entries[:, :2]), number(entries[:, 2:4])
    short, long = number(entries[:, 8:10]), number(entries[:, 8:12])
    is_short, is_long = (tf.reduce_any(kind[:, None] == kinds, axis=1) for kinds in (_SHORT, _LONG))
    value = tf.where(is_short, short, tf.where(is_long, long, 0))
    value = tf.where((tag == ORIENTATION_TAG) & (value <= 8), value, 0)
    found = tf.cast(tf.reduce_max(tf.concat([value, [0]], 0)), tf.int32)
    return tf.where(known & (found > 0), found, 1)


def _bytes(text, count: int):
    """Returns the first bytes of a string as integers, padded with 0."""
    import tensorflow as tf

    found = tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32)[:count]
    return tf.ensure_shape(tf.pad(found, [[0, count - tf.size(found)]]), (count,))
