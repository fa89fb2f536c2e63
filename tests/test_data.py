"""Data: which files are read or refused, and that order and augmentation depend on the images alone."""

import io
import os
import random
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resdense.data import sources
from keras_resdense.data.batches import evaluation_batches, pixel_statistics, steps_per_epoch, training_batches
from keras_resdense.data.checking import LARGEST, check_images
from keras_resdense.data.decoding import decode_image
from keras_resdense.data.examples import in_memory
from keras_resdense.data.plan import Plan
from keras_resdense.data.sources import load_data
from keras_resdense.training.agreement import naming_changed_files
from keras_resdense.training.recipes import Recipe

ONE = tf.distribute.OneDeviceStrategy("/cpu:0")


def encode(pixels, format="PNG", mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


def colours(seed=0, size=(12, 16)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), "uint8")


@pytest.fixture
def images(tmp_path):
    """Two classes of ten images each, of different sizes."""
    for number, name in enumerate(["Katze", "狗"]):
        (tmp_path / name).mkdir()
        for index in range(10):
            pixels = np.full((10 + index, 14, 3), 40 + 150 * number, "uint8")
            (tmp_path / name / f"{index}.png").write_bytes(encode(pixels))
    return tmp_path


def plan_of(recipe, size=(8, 8), classes=10, seed=3):
    return Plan(recipe=recipe, size=size, classes=classes, seed=seed)


def drawn(batches, count):
    """Returns the first batches, with those of all replicas joined."""

    def together(values):
        return np.concatenate([np.asarray(value) for value in getattr(values, "values", [values])])

    iterator = iter(batches)
    return [tuple(together(part) for part in next(iterator)) for _ in range(count)]


def test_digits_are_split_alike_in_every_class():
    digits = load_data("digits")
    assert digits.train.count + digits.test.count == 1797
    assert digits.image_shape == (8, 8, 1)
    labels = np.array([int(digits.test.read(handle)[1]) for handle in digits.test.handles(None)])
    assert set(np.bincount(labels)) == {35, 36, 37}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip": True, "erasing": True, "crop": "area"},
        {"crop": "scale", "repeats": 3, "padding": 0},
        {"mixup": 0.2, "cutmix": 1.0, "loss": "binary", "label_smoothing": 0.1},
        {"rand_augment": 7.0},
    ],
    ids=str,
)
def test_batches_do_not_depend_on_replicas_or_on_resumption(options):
    plan = plan_of(Recipe(batch_size=32, **options))
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), "uint8")
    examples = in_memory(pixels, np.arange(100) % 10)
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    steps = steps_per_epoch(examples, plan.recipe)
    alone = drawn(training_batches(examples, plan, ONE), steps + 3)
    shared = drawn(training_batches(examples, plan, two), 3)
    resumed = drawn(training_batches(examples, plan, two, first_step=steps - 1), 4)
    for expected, found in zip([*alone[:3], *alone[-4:]], [*shared, *resumed], strict=True):
        np.testing.assert_array_equal(expected[0], found[0])
        np.testing.assert_array_equal(expected[1], found[1])
    assert alone[0][0].shape == (32, 8, 8, 1)
    assert not np.array_equal(alone[0][0], alone[steps][0])
    assert 0 <= min(batch.min() for batch, _ in alone) and max(batch.max() for batch, _ in alone) <= 255.001


@pytest.mark.parametrize(("workers", "replicas"), [(2, 2), (1, 4), (2, 4)])
@pytest.mark.parametrize("options", [{"flip": True}, {"crop": "area", "mixup": 0.2}], ids=str)
def test_workers_and_replicas_share_each_batch(workers, replicas, options):
    plan, examples = plan_of(Recipe(batch_size=32, **options)), load_data("digits").train

    class Workers:
        """Pipelines of all workers, joined in the order in which their replicas come."""

        num_replicas_in_sync = replicas

        def distribute_datasets_from_function(self, share):
            pipelines = (
                share(tf.distribute.InputContext(workers, worker, replicas)).batch(replicas // workers)
                for worker in range(workers)
            )
            return tf.data.Dataset.zip(tuple(pipelines)).map(
                lambda *parts: tuple(
                    tf.reshape(tf.concat(values, 0), (32, *values[0].shape[2:])) for values in zip(*parts, strict=True)
                )
            )

    alone = drawn(training_batches(examples, plan, ONE), 3)
    for expected, found in zip(alone, drawn(training_batches(examples, plan, Workers()), 3), strict=True):
        np.testing.assert_array_equal(expected[0], found[0])
        np.testing.assert_array_equal(expected[1], found[1])


def test_an_image_is_moved_as_if_it_were_padded_and_cropped():
    image = colours(size=(8, 8))
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
    crops = np.stack([padded[y : y + 8, x : x + 8] for y in range(5) for x in range(5)])
    examples = in_memory(image[None].repeat(1000, 0), np.zeros(1000))
    plan = plan_of(Recipe(batch_size=1000, padding=2), classes=1)
    ((images, _),) = drawn(training_batches(examples, plan, ONE), 1)
    found = (images[:, None] == crops).all((2, 3, 4))
    assert (found.sum(1) == 1).all()
    assert 15 < found.sum(0).min() and found.sum(0).max() < 70


def test_an_epoch_sees_every_image_once_and_another_seed_another_order():
    examples = load_data("digits").train
    one, two = ([int(number) for number in examples.handles(tf.constant(key, tf.int64))] for key in ([0, 1], [1, 1]))
    assert sorted(one) == sorted(two) == list(range(examples.count))
    assert one != two


def test_cutmix_weighs_classes_by_area():
    pixels = np.repeat(np.arange(64, dtype="uint8"), 32 * 32).reshape(64, 32, 32, 1)
    examples = in_memory(pixels, np.arange(64))
    plan = plan_of(Recipe(batch_size=64, padding=0, cutmix=1.0), (32, 32), 64)
    ((mixed, labels),) = drawn(training_batches(examples, plan, ONE), 1)
    seen = (mixed.round() == np.arange(64)).mean((1, 2))
    np.testing.assert_allclose(labels, seen, atol=1e-5)
    assert (labels.max(-1) < 0.99).sum() > 20


def test_repeats_come_in_succession_and_differ():
    plan = plan_of(Recipe(batch_size=30, repeats=3, crop="area", padding=0))
    ((images, labels),) = drawn(training_batches(load_data("digits").train, plan, ONE), 1)
    groups = labels.argmax(-1).reshape(10, 3)
    assert (groups == groups[:, :1]).all()
    assert not np.array_equal(images[0], images[1])


def test_batches_that_cannot_be_shared_are_refused():
    examples = load_data("digits").train
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with pytest.raises(ValueError, match="33; 2 replicas .* a multiple of 2"):
        training_batches(examples, plan_of(Recipe(batch_size=33)), two)
    with pytest.raises(ValueError, match="mix 8 images at a time.* is 36 images: .* multiple of 8"):
        training_batches(examples, plan_of(Recipe(batch_size=36, mixup=0.2)), ONE)
    with pytest.raises(ValueError, match="5000, more than the 1437"):
        training_batches(examples, plan_of(Recipe(batch_size=5000)), ONE)


def test_evaluation_sees_every_image_once_with_full_batches():
    examples, plan = load_data("digits").test, plan_of(Recipe())
    for strategy in (None, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
        batches, steps = evaluation_batches(examples, plan.contract(1), plan.classes, strategy)
        found = drawn(batches, steps)
        assert len({len(images) for images, _, _ in found}) == 1
        weights = np.concatenate([weights for _, _, weights in found])
        assert (weights > 0).sum() == 360 and weights.mean() == pytest.approx(1)
    again = drawn(batches, 2 * steps)
    np.testing.assert_array_equal(again[0][0], again[steps][0])


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (32, 32), (5, 90)])
@pytest.mark.parametrize("crop", ["none", "scale", "area"])
def test_images_of_any_size_become_the_network_s(crop, size):
    examples = in_memory(colours(size=size)[None].repeat(4, 0), np.zeros(4))
    plan = plan_of(Recipe(batch_size=4, crop=crop, padding=0), (32, 32), 1)
    ((images, _),) = drawn(training_batches(examples, plan, ONE), 1)
    batches, _ = evaluation_batches(examples, plan.contract(3), plan.classes)
    assert images.shape == next(iter(batches))[0].shape == (4, 32, 32, 3)


def test_the_middle_is_evaluated():
    pixels = np.zeros((1, 64, 128, 3), "uint8")
    pixels[:, :, 64 - 28 : 64 + 28] = 200
    plan = plan_of(Recipe(crop="area", test_crop=0.875), (56, 56), 1)
    batches, _ = evaluation_batches(in_memory(pixels, np.zeros(1)), plan.contract(3), 1)
    assert next(iter(batches))[0].numpy().min() > 195


def test_pixels_are_measured():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 2), "uint8")
    pixels[..., 1] = 7
    examples = in_memory(pixels, np.zeros(50))
    mean, deviation = pixel_statistics(examples, plan_of(Recipe()).contract(2))
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(deviation, [pixels[..., 0].std(), 1], rtol=1e-4)


def test_folder_is_split_alike_each_time(images, capsys):
    first, again = (load_data(str(images)) for _ in range(2))
    assert first.class_names == ("Katze", "狗")
    assert (first.train.count, first.test.count) == (16, 4)
    assert "4 of 20 images" in capsys.readouterr().out
    for one, two in zip(first.test.handles(None), again.test.handles(None), strict=True):
        np.testing.assert_array_equal(first.test.read(one)[0], again.test.read(two)[0])
    labels = [int(first.test.read(handle)[1]) for handle in first.test.handles(None)]
    assert labels == [0, 0, 1, 1]
    image, label, _ = first.test.read(next(iter(first.test.handles(None))))
    assert image.shape[1:] == (14, 3) and int(image[0, 0, 0]) == 40 and int(label) == 0


def test_folder_with_its_own_splits(images):
    for split in ("train", "val"):
        (images / split).mkdir()
    for name in ("Katze", "狗"):
        (images / name).rename(images / "train" / name)
        (images / "val" / name).mkdir()
        (images / "train" / name / "0.png").rename(images / "val" / name / "0.png")
    loaded = load_data(str(images))
    assert (loaded.train.count, loaded.test.count) == (18, 2)


def test_what_is_odd_but_whole_is_read():
    grey = np.arange(192, dtype="uint8").reshape(12, 16)
    picture = colours()
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90° clockwise
    cases = {
        "grey": (encode(grey), np.stack([grey] * 3, -1)),
        "16 bits": (encode(grey.astype("uint16") * 257), np.stack([grey] * 3, -1)),
        "palette": (encode(picture, mode="P"), np.asarray(Image.fromarray(picture).convert("P").convert("RGB"))),
        "rotated": (encode(picture, exif=turned), np.rot90(picture, -1)),
        "black and white": (encode(grey, mode="1"), None),
        "GIF animation": (
            encode(grey, "GIF", save_all=True, append_images=[Image.new("L", (16, 12))]),
            np.stack([grey] * 3, -1),
        ),
        "CMYK": (encode(np.full((12, 16, 3), 90, "uint8"), "JPEG", "CMYK"), np.full((12, 16, 3), 90)),
        "animated": (
            encode(picture, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (16, 12))]),
            picture,
        ),
    }
    for name, (encoded, expected) in cases.items():
        found = decode_image(encoded)
        assert found.dtype == np.uint8 and found.shape[-1] == 3, name
        if expected is not None:
            assert np.abs(found.astype(int) - expected).max() <= 1, name
    transparent = np.zeros((12, 16, 4), "uint8")
    assert decode_image(encode(transparent)).min() == 255


def test_everything_bad_is_listed_and_nothing_touched(images):
    good = (images / "Katze" / "0.png").read_bytes()
    bad = {"empty.png": b"", "cut.png": good[: len(good) // 2], "text.jpg": b"no image at all"}
    for name, content in bad.items():
        (images / "狗" / name).write_bytes(content)
    (images / "leer").mkdir()
    (images / "狗" / "loop").symlink_to(images / "狗")
    (images / "狗" / "self.png").symlink_to("self.png")
    (images / "狗" / "notes.txt").write_text("left alone")
    before = sorted(path for path in images.rglob("*"))
    with pytest.raises(ValueError) as error:
        load_data(str(images))
    for name in (*bad, "leer", "loop", "self.png"):
        assert f"{name}:" in str(error.value)
    assert "6 bad" in str(error.value) and "notes.txt" not in str(error.value)
    loaded = load_data(str(images), on_bad_image="skip")
    assert loaded.train.count + loaded.test.count == 20
    assert before == sorted(path for path in images.rglob("*"))


def test_names_of_classes_that_look_alike_are_one_or_refused(images):
    """macOS splits é into e and an accent. Names that are not valid text all look the same."""
    root = images / "photos"
    for split, name in (("train", "Ch\u00e9vre"), ("val", "Che\u0301vre")):
        for target in (name, "two\nlines"):
            shutil.copytree(images / "Katze", root / split / target)
    loaded = load_data(str(root))
    assert loaded.class_names == ("Ch\u00e9vre", "two\ufffdlines") and loaded.test.count == 20
    shutil.copytree(images / "Katze", root / "train" / "Che\u0301vre")
    with pytest.raises(ValueError, match="looks like another's"):
        load_data(str(root))


def test_file_names_need_not_be_text(images):
    (images / "Katze" / "0.png").rename(images / "Katze" / os.fsdecode(b"\xff.png"))
    loaded = load_data(str(images))
    handles = [*loaded.train.handles(None), *loaded.test.handles(None)]
    assert len(handles) == 20
    assert all(loaded.train.read(handle)[0].shape[-1] == 3 for handle in loaded.train.handles(None))


def damaged(count):
    """Writes files that are truncated, overwritten, shuffled or emptied, depending on the seed."""
    rng = random.Random(20)
    formats = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
    sources = [(name, encode(colours(index, (24, 30)), name)) for index, name in enumerate(formats)]
    for number in range(count):
        name, source = sources[number % len(sources)]
        content = bytearray(source)
        match rng.randrange(5):
            case 0:
                content = content[: rng.randrange(len(content))]
            case 1:
                for _ in range(rng.randrange(1, 40)):
                    content[rng.randrange(len(content))] = rng.randrange(256)
            case 2:
                begin = rng.randrange(len(content))
                content[begin : begin + rng.randrange(1, 400)] = b""
            case 3:
                begin = rng.randrange(len(content))
                content[begin:begin] = rng.randbytes(rng.randrange(1, 200))
            case 4:
                content[: rng.randrange(1, 64)] = rng.randbytes(rng.randrange(1, 64))
        yield f"damaged-{number}.{name.lower()}", bytes(content)


def test_damaged_files_are_read_or_listed_never_trained_on(images, capsys):
    """Training reads every file that passes the check. The error names all others, and no damage crashes the check."""
    for name, content in damaged(360):
        (images / "Katze" / name).write_bytes(content)
    paths = sorted((images / "Katze").glob("damaged-*"))
    bad = [paths[number] for number in check_images([str(path) for path in paths], images).faults]
    assert 150 < len(bad) < 360
    with pytest.raises(ValueError, match=f"{len(bad)} bad files") as error:
        load_data(str(images))
    assert all(path.name in str(error.value) for path in bad)
    loaded = load_data(str(images), on_bad_image="skip")
    assert loaded.train.count + loaded.test.count == 380 - len(bad)
    plan = plan_of(Recipe(batch_size=4, crop="area", padding=0), classes=2)
    steps = steps_per_epoch(loaded.train, plan.recipe)
    for batch, _ in drawn(training_batches(loaded.train, plan, ONE), steps):
        assert np.isfinite(batch).all()


def test_too_few_images_to_split_are_refused(images):
    for path in list((images / "狗").iterdir())[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="the only image of its class; two are needed"):
        load_data(str(images))
    shutil.copytree(images / "Katze", images / "Hund")
    loaded = load_data(str(images), on_bad_image="skip")
    assert loaded.class_names == ("Hund", "Katze") and loaded.train.count + loaded.test.count == 20
    for name in ("Hund", "Katze"):
        for path in list((images / name).iterdir())[2:]:
            path.unlink()
    loaded = load_data(str(images), on_bad_image="skip")
    assert loaded.train.count == loaded.test.count == 2, "one of each class"


def test_a_class_called_train_hides_no_other(images):
    (images / "狗").rename(images / "train")
    assert load_data(str(images)).class_names == ("Katze", "train")
    shutil.copytree(images / "Katze", images / "train" / "a" / "b")
    with pytest.raises(ValueError, match="has a folder 'train' with folders of images, and images in Katze beside it"):
        load_data(str(images))


def test_what_is_too_large_is_listed_not_read(images):
    path = images / "Katze" / "large.png"
    with open(path, "wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(ValueError, match="large.png: 536,870,913 bytes, more than"):
        load_data(str(images))


def test_contents_tell_changed_data_from_unchanged(images):
    before = load_data(str(images)).contents
    assert before == load_data(str(images)).contents
    assert before["Katze, to train on"].startswith("8 images of ") and len(before) == 5
    (images / "Katze" / "0.png").rename(images / "Katze" / "another.png")
    renamed = load_data(str(images)).contents
    assert renamed["list of files"] != before["list of files"]


def test_images_that_changed_after_the_check_are_named(images):
    loaded = load_data(str(images))
    assert loaded.recheck() == []
    (images / "Katze" / "1.png").unlink()
    (images / "Katze" / "2.png").write_bytes(b"nothing")
    (images / "Katze" / "3.png").write_bytes(encode(colours()))
    found = "\n".join(loaded.recheck())
    assert (
        "1.png: No such file" in found and "2.png: not an image" in found and "3.png: another size than before" in found
    )
    plan = plan_of(Recipe(batch_size=16), classes=2)
    with pytest.raises(ValueError, match="(?s)have changed since they were checked.*1.png.*same command"):
        with naming_changed_files(loaded):
            drawn(training_batches(loaded.train, plan, ONE), 1)


def test_one_class_is_refused(images):
    for path in (images / "狗").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="a folder in it for each class"):
        load_data(str(images), on_bad_image="skip")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no folder or data set 'nonsense'"):
        load_data("nonsense")
    with pytest.raises(ValueError, match="Closest: fashion_mnist"):
        load_data("Fashion-MNIST")
    with pytest.raises(ValueError, match="'error' or 'skip'"):
        load_data("digits", on_bad_image="ignore")


def test_a_mistyped_folder_is_told_which_ones_are_near(images):
    with pytest.raises(ValueError, match=f"Closest: {images}/"):
        load_data(f"{images}_")


def test_a_server_that_does_not_answer_is_named_at_once(tmp_path, monkeypatch):
    """Domains ending in .invalid never exist, and TFDS would try for minutes."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("cifar10", data_dir=tmp_path)
    (found,) = builder.url_infos.values()
    monkeypatch.setattr(type(builder), "url_infos", {"http://nowhere.invalid/images.tar.gz": found})
    with pytest.raises(OSError, match=r"cifar10 is not in .*nowhere.invalid.*load\('cifar10'\)"):
        load_data("cifar10", str(tmp_path))


def test_data_sets_to_download_by_hand_say_so(tmp_path):
    with pytest.raises(ValueError, match="(?s)must be downloaded by hand.*register on https://image-net.org"):
        load_data("imagenet2012", str(tmp_path))


def prepare(folder, height):
    """Writes a data set in the format of TFDS, with images of one height or of heights 6 to 8."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(height, height and 8, 3)),
            "label": tfds.features.ClassLabel(names=["a", "b"]),
        }
    )
    splits = {
        split: [{"image": np.full((height or 6 + n % 3, 8, 3), n, "uint8"), "label": n % 2} for n in range(count)]
        for split, count in (("train", 60), ("test", 20))
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=features,
        split_datasets={
            name: tf.data.Dataset.from_generator(lambda rows=rows: rows, output_signature=features.get_tensor_spec())
            for name, rows in splits.items()
        },
        data_dir=str(folder),
        disable_shuffling=True,
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("height", "limit"),
    [(None, sources.MEMORY_LIMIT), (None, 0), (6, sources.MEMORY_LIMIT)],
    ids=["encoded in memory", "streamed", "decoded in memory"],
)
def test_tfds(tmp_path, height, limit, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)
    prepare(tmp_path, height)
    loaded = load_data("tiny", str(tmp_path))
    assert loaded.class_names == ("a", "b") and loaded.image_shape == (height, height and 8, 3)
    assert (loaded.train.count, loaded.test.count) == (60, 20)
    plan = plan_of(Recipe(batch_size=20, padding=0), classes=2)
    alone = drawn(training_batches(loaded.train, plan, ONE), 6)
    resumed = drawn(training_batches(loaded.train, plan, ONE, first_step=2), 4)
    for (images, labels), (again, _) in zip(alone[2:], resumed, strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 2, labels.argmax(-1))
    epochs = [np.concatenate([images[:, 0, 0, 0] for images, _ in alone[i : i + 3]]) for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(60))
    assert not np.array_equal(*epochs)
