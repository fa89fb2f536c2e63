"""The check of image files, its stored results, and partial decoding."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_image

from keras_resdense import progress
from keras_resdense.data import checking
from keras_resdense.data.batches import training_batches
from keras_resdense.data.decoding import decode_image
from keras_resdense.data.encoded import open_encoded
from keras_resdense.data.plan import Plan
from keras_resdense.data.sources import load_data
from keras_resdense.training.recipes import Recipe

PHOTO = Image.fromarray(load_sample_image("china.jpg")).resize((90, 60))


def encoded(mode="RGB", format="JPEG", **options):
    buffer = io.BytesIO()
    PHOTO.convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def black_bmp():
    """Returns a file that ends with zeros."""
    buffer = io.BytesIO()
    Image.new("RGB", (60, 50)).save(buffer, "BMP")
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.fixture
def photos(tmp_path):
    """Returns a folder of all kinds of images. The first ones are plain JPEGs."""
    files = {
        "0.jpg": encoded(quality=95),
        "1.jpg": encoded(progressive=True, subsampling=2),
        "2.jpg": encoded("L"),
        "3.jpg": encoded(exif=exif(1)),
        "4.jpg": encoded(exif=exif(6)),
        "5.jpg": encoded("CMYK"),
        "6.png": encoded(format="PNG"),
        "7.png": encoded("P", "PNG"),
        "8.gif": encoded(format="GIF"),
        "8.webp": encoded(format="WEBP"),
        "9.bmp": black_bmp(),
    }
    for name in ("one", "other"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / "photos" / name / file).write_bytes(content)
    return tmp_path / "photos"


def listed(folder):
    return sorted(str(path) for path in Path(folder).rglob("*.*"))


def counting(monkeypatch):
    """Records which files are read from now on."""
    read, inspect = [], checking._inspect
    monkeypatch.setattr(checking, "_inspect", lambda name: read.append(os.fsdecode(name)) or inspect(name))
    return read


def test_plain_jpegs_are_told_from_what_pillow_must_read(photos):
    checked = checking.check_images(listed(photos), photos)
    assert not checked.faults
    assert checked.plain.tolist() == 2 * (4 * [True] + 7 * [False])
    assert checked.sizes.tolist() == [Path(path).stat().st_size for path in listed(photos)]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_part_of_a_jpeg_has_pillow_s_pixels(progressive, subsampling):
    content = encoded(progressive=progressive, subsampling=subsampling)
    expected = decode_image(content)
    shape, part = open_encoded(tf.constant(content))
    assert shape.numpy().tolist() == [60, 90, 3]
    np.testing.assert_array_equal(part(None), expected)
    for top, left, height, width in [(0, 0, 60, 90), (7, 11, 20, 33), (40, 1, 20, 89), (59, 89, 1, 1)]:
        found = part(tf.constant((top, left, height, width)))
        np.testing.assert_array_equal(found, expected[top : top + height, left : left + width])


def test_training_reads_every_kind_as_pillow_does(photos):
    data = load_data(str(photos))
    for examples in (data.train, data.test):
        for handle in examples.handles(None):
            example = examples.open(handle)
            image = example.part(None).numpy()
            assert example.shape.numpy().tolist() == list(image.shape)
            np.testing.assert_array_equal(example.part(tf.constant((2, 3, 30, 40))), image[2:32, 3:43])
    images = [data.train.read(handle)[0].numpy() for handle in data.train.handles(None)]
    expected = [decode_image(Path(path).read_bytes()) for path in listed(photos)]
    for image in images:
        assert any(image.shape == other.shape and (image == other).all() for other in expected)


def test_a_second_check_reads_only_what_is_new_or_changed(photos, monkeypatch):
    paths = listed(photos)
    first = checking.check_images(paths, photos)
    read = counting(monkeypatch)
    again = checking.check_images(paths, photos)
    assert not read
    np.testing.assert_array_equal(first.plain, again.plain)
    np.testing.assert_array_equal(first.sizes, again.sizes)

    Path(paths[3]).write_bytes(encoded(quality=20))
    os.utime(paths[5], ns=(1, 1))
    added = photos / "one" / "a new one.jpg"
    added.write_bytes(encoded())
    checking.check_images(listed(photos), photos)
    assert sorted(read) == sorted([paths[3], paths[5], str(added)])


def test_bad_files_are_checked_each_time_and_a_broken_memory_is_no_harm(photos, monkeypatch):
    bad = photos / "one" / "bad.jpg"
    bad.write_bytes(encoded()[:300])
    paths = listed(photos)
    assert list(checking.check_images(paths, photos).faults) == [paths.index(str(bad))]
    read = counting(monkeypatch)
    assert checking.check_images(paths, photos).faults
    assert read == [str(bad)]
    checking._memory(photos).write_bytes(b"no memory")
    assert checking.check_images(paths, photos).faults
    assert len(read) == 1 + len(paths)


def test_what_was_found_before_an_interruption_is_remembered(photos, monkeypatch):
    paths, inspect = listed(photos), checking._inspect

    def interrupt(name):
        if os.fsdecode(name) == paths[12]:
            raise KeyboardInterrupt
        return inspect(name)

    monkeypatch.setattr(checking, "_inspect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checking.check_images(paths, photos)
    monkeypatch.setattr(checking, "_inspect", inspect)
    read = counting(monkeypatch)
    checking.check_images(paths, photos)
    assert read == paths[12:]


def test_a_memory_that_cannot_be_written_is_told(photos, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(checking, "_memory", lambda root: tmp_path / "file" / "memory.npz")
    assert not checking.check_images(listed(photos), photos).faults
    assert "the next start checks again" in capsys.readouterr().out


def test_pipes_and_other_things_are_named_and_not_opened(photos):
    os.mkfifo(photos / "one" / "pipe.jpg")
    (photos / "one" / "dangling.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match="2 bad files") as error:
        load_data(str(photos))
    assert "pipe.jpg: not a regular file" in str(error.value) and "dangling.png: not a regular file" in str(error.value)
    assert load_data(str(photos), on_bad_image="skip").train.count == 17


@pytest.mark.parametrize("change", ["vanish", "shrink"])
def test_a_file_that_changes_after_its_check_is_named(photos, change):
    data = load_data(str(photos))
    for path in listed(photos):
        Path(path).unlink() if change == "vanish" else Path(path).write_bytes(encoded(quality=5))
    plan = Plan(recipe=Recipe(batch_size=4, crop="area", padding=0), size=(32, 32), classes=2)
    batches = training_batches(data.train, plan, tf.distribute.OneDeviceStrategy("/cpu:0"))
    with pytest.raises(tf.errors.OpError, match=str(photos)):
        next(iter(batches))


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch, capsys):
    moments = iter([0, 10, 40, 45, 100])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    with progress.progress("Checking images", 4000) as advance:
        for _ in range(4):
            advance(1000)
    assert capsys.readouterr().err.splitlines() == [
        "Checking images: 2,000 of 4,000, about 40 s left",
        "Checking images: 4,000 of 4,000, about 0 s left",
    ]


def test_what_was_done_before_does_not_count_as_fast(monkeypatch, capsys):
    moments = iter([0, 60])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    with progress.progress("Training", 100, done=50) as advance:
        advance(10, "epoch 3 of 5")
    assert capsys.readouterr().err == "Training: 60 of 100, epoch 3 of 5, about 4 min left\n"


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress("Checking images", 20) as advance:
        advance(5)
        advance(15)
    assert "Checking images: 100%" in capsys.readouterr().err


def test_the_limit_of_pixels_can_be_raised(monkeypatch):
    content = io.BytesIO()
    Image.new("RGB", (8, 9), "red").save(content, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 35)
    with pytest.raises(ValueError, match=r"72 pixels\) exceeds limit of 70 .* set KERAS_RESDENSE_MAX_PIXELS to more"):
        decode_image(content.getvalue())
    monkeypatch.setenv("KERAS_RESDENSE_MAX_PIXELS", "72")
    assert decode_image(content.getvalue()).shape == (9, 8, 3)
