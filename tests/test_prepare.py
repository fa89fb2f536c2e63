"""Prepared data sets: equal to the folder's images, complete or absent, and resumed after an interruption."""

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_sample_image

import keras_resdense
from keras_resdense.__main__ import main
from keras_resdense.data import prepare as module, sources
from keras_resdense.data.batches import class_counts, training_batches
from keras_resdense.data.decoding import decode_image
from keras_resdense.data.plan import Plan
from keras_resdense.data.prepare import MANIFEST_FILE, PREPARING, prepare
from keras_resdense.data.sources import load_data
from keras_resdense.training.recipes import Recipe

PHOTO = Image.fromarray(load_sample_image("flower.jpg")).resize((120, 90))


def write(path, mode="RGB", seed=0, **options):
    left = seed % 40
    path.parent.mkdir(parents=True, exist_ok=True)
    PHOTO.crop((left, 0, left + 80, 60)).convert(mode).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of forty images of all kinds, in two classes."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for index, name in enumerate(("Katze", "狗")):
        for number in range(20):
            options = [{"quality": 90}, {"exif": turned}, {}, {"mode": "P"}, {"mode": "CMYK"}, {"mode": "LA"}]
            kinds = ("jpg", "jpg", "png", "png", "jpg", "png")
            write(
                tmp_path / "photos" / name / f"{number:02}.{kinds[number % 6]}",
                seed=number + 20 * index,
                **options[number % 6],
            )
    return tmp_path / "photos"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pixels(examples):
    """Returns the images and their classes, without order."""
    found = [examples.read(handle)[:2] for handle in examples.handles(None)]
    return sorted((int(label), tuple(image.shape), image.numpy().tobytes()) for image, label in found)


@pytest.mark.parametrize("limit", [2**32, 0], ids=["in memory", "streamed"])
def test_a_prepared_folder_holds_the_folder_s_images(folder, tmp_path, limit, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)
    before = contents(folder)
    made = prepare(folder, tmp_path / "data" / "photos")
    assert contents(folder) == before
    expected, found = load_data(str(folder)), load_data(str(made))
    assert found.class_names == expected.class_names and found.name == "photos"
    assert found.image_shape == (None, None, 3)
    for part in ("train", "test"):
        assert getattr(found, part).count == getattr(expected, part).count
        assert pixels(getattr(found, part)) == pixels(getattr(expected, part))
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["photos"]


def test_the_manifest_knows_every_file(folder, tmp_path):
    (folder / "狗" / "bad.jpg").write_text("no image")
    made = keras_resdense.prepare(folder, tmp_path / "made", on_bad_image="skip")
    manifest = json.loads((made / MANIFEST_FILE).read_text())
    files = {path.name: path.read_bytes() for path in made.iterdir() if path.name != MANIFEST_FILE}
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    assert manifest["images"] == {"train": 32, "validation": 8} and manifest["class_names"] == ["Katze", "狗"]
    assert [line.endswith("bad.jpg: not an image") for line in manifest["bad_images"]] == [True]
    assert len([name for name in files if "-train.tfrecord-" in name]) == 16


def test_plain_files_are_taken_over_and_others_become_png(folder, tmp_path):
    made = prepare(folder, tmp_path / "made")
    builder = tfds.builder_from_directory(made)
    decoders = {"image": tfds.decode.SkipDecoding()}
    stored = {
        bytes(example["image"])
        for split in ("train", "validation")
        for example in tfds.as_numpy(builder.as_dataset(split, decoders=decoders))
    }
    files = [path.read_bytes() for path in folder.rglob("*.*g")]
    plain = [content for content in files if content in stored]
    assert len(plain) == 2 * (4 + 3)  # of 20 files, four are plain JPEGs and three plain PNGs
    for content in stored - set(plain):
        assert content.startswith(b"\x89PNG")


@pytest.mark.parametrize("size", [30, 60, 500])
def test_only_larger_images_are_shrunk(folder, tmp_path, size):
    load = [load_data(str(place)) for place in (folder, prepare(folder, tmp_path / "made", image_size=size))]
    whole, shrunk = (pixels(data.train) for data in load)
    if size >= 60:
        assert whole == shrunk
        return
    assert {min(shape[:2]) for _, shape, _ in shrunk} == {30}
    assert {max(shape[:2]) for _, shape, _ in shrunk} == {40}
    means = [sorted(np.frombuffer(content, "uint8").mean() for _, _, content in part) for part in (whole, shrunk)]
    np.testing.assert_allclose(*means, atol=1.5)


def stop_after(monkeypatch, count, error):
    """Stops a preparation after some shards, and returns the written ones."""
    written, write_shard = [], module.write_shard

    def stopping(shard):
        if not shard.done.exists():
            if len(written) == count:
                raise error
            written.append(Path(shard.path).name)
        return write_shard(shard)

    monkeypatch.setattr(module, "write_shard", stopping)
    monkeypatch.setattr(
        module, "ThreadPoolExecutor", lambda: __import__("concurrent.futures").futures.ThreadPoolExecutor(1)
    )
    return written


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
def test_what_was_stopped_goes_on_where_it_was(folder, tmp_path, monkeypatch, error):
    expected = contents(prepare(folder, tmp_path / "expected"))
    with monkeypatch.context() as patch:
        first = stop_after(patch, 5, error)
        with pytest.raises(type(error)):
            prepare(folder, tmp_path / "made")
    assert not (tmp_path / "made").exists() and len(first) == 5
    second = stop_after(monkeypatch, 100, None)
    made = prepare(folder, tmp_path / "made")
    assert len(second) == 24 - 5 and not set(first) & set(second)
    found = contents(made)
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in found if ".tfrecord-" in name)


FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))"
#: Kills itself after five files, as the system does where memory runs out.
KILLED = """
import os, signal
from keras_resdense.data import prepare as module
write_shard, written = module.write_shard, []
def killing(shard):
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(write_shard(shard))
    return written[-1]
module.write_shard = killing
"""


@pytest.mark.sweep
@pytest.mark.parametrize(("trouble", "code"), [(FULL_DISK, 1), (KILLED, -9)])
def test_a_preparation_survives_a_full_disk_and_sigkill(trouble, code, folder, tmp_path):
    expected, given = contents(prepare(folder, tmp_path / "expected")), contents(folder)
    command = f"import sys; from keras_resdense.__main__ import main\n{trouble}\nsys.exit(main(sys.argv[1:]))"
    arguments = ["prepare", str(folder), "--to", str(tmp_path / "made")]
    done = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-2000:]
    assert not (tmp_path / "made").exists() and contents(folder) == given
    if code == 1:
        assert re.search(r"made.* cannot be written", done.stderr) and "Traceback" not in done.stderr
    main(arguments)
    made = contents(tmp_path / "made")
    assert made.keys() == expected.keys()
    assert all(made[name] == expected[name] for name in made if ".tfrecord-" in name)


def test_other_images_or_options_begin_anew(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, tmp_path / "made")
    write(folder / "Katze" / "new.jpg", seed=9)
    second = stop_after(monkeypatch, 100, None)
    prepare(folder, tmp_path / "made")
    assert len(second) == 25
    assert sum(json.loads((tmp_path / "made" / MANIFEST_FILE).read_text())["images"].values()) == 41


def hold(path, ready, done):
    from keras_resdense.files import locked

    path.mkdir()
    with locked(path, ""):
        ready.set()
        done.wait(60)


@pytest.mark.sweep
def test_two_preparations_of_one_data_set_are_refused(folder, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Event(), spawn.Event()
    other = spawn.Process(target=hold, args=(tmp_path / f"{PREPARING}made", ready, done))
    other.start()
    assert ready.wait(60)
    with pytest.raises(ValueError, match="Another process prepares"):
        prepare(folder, tmp_path / "made")
    done.set()
    other.join()
    prepare(folder, tmp_path / "made")
    with pytest.raises(ValueError, match="exists: choose another folder"):
        prepare(folder, tmp_path / "made")


def test_bad_images_stop_it_before_anything_is_written(folder, tmp_path):
    (folder / "狗" / "bad.jpg").write_text("no image")
    with pytest.raises(ValueError, match="bad.jpg: not an image"):
        prepare(folder, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_an_image_that_changes_meanwhile_is_named(folder, tmp_path, monkeypatch):
    find, changed = module.find_images, []

    def find_and_change(*arguments):
        found = find(*arguments)
        changed.append(found.train.paths[3])
        Path(changed[0]).write_bytes(b"something else")
        return found

    monkeypatch.setattr(module, "find_images", find_and_change)
    with pytest.raises(ValueError, match="has changed since it was checked") as error:
        prepare(folder, tmp_path / "made")
    assert changed[0] in str(error.value)


def test_a_data_set_that_is_not_whole_is_refused(folder, tmp_path):
    made = prepare(folder, tmp_path / "made")
    shards = sorted(made.glob("*.tfrecord-*"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:100])
    with pytest.raises(ValueError, match=f"2 files, such as {shards[0].name}, {shards[1].name}, differ"):
        load_data(str(made))


def test_the_command_prepares_and_the_result_can_be_decoded(folder, tmp_path, capsys):
    assert main(["prepare", str(folder), "--to", str(tmp_path / "made"), "--image-size", "32"]) == 0
    assert "is ready: keras-resdense train --data" in capsys.readouterr().out
    data = load_data(str(tmp_path / "made"))
    for handle in data.train.handles(None):
        example = data.train.open(handle)
        image = example.part(None).numpy()
        np.testing.assert_array_equal(example.part(np.array([1, 2, 9, 11], "int32")), image[1:10, 2:13])


def test_beam_that_is_not_installed_is_told_before_images_are_read(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.setattr("keras_resdense.data.prepare.find_images", None)
    with pytest.raises(ValueError, match="needs apache_beam: pip install apache_beam"):
        prepare(folder, tmp_path / "made", beam=[])


@pytest.mark.sweep
def test_beam_writes_the_same_shards(folder, tmp_path):
    pytest.importorskip("apache_beam")
    one, other = prepare(folder, tmp_path / "one"), prepare(folder, tmp_path / "other", beam=["--runner=DirectRunner"])
    assert {name: content for name, content in contents(one).items() if ".tfrecord-" in name} == {
        name: content for name, content in contents(other).items() if ".tfrecord-" in name
    }


def test_records_hold_images_that_other_readers_decode(folder, tmp_path):
    builder = tfds.builder_from_directory(prepare(folder, tmp_path / "made"))
    for example in tfds.as_numpy(builder.as_dataset("validation", decoders={"image": tfds.decode.SkipDecoding()})):
        image = np.asarray(Image.open(io.BytesIO(example["image"])).convert("RGB"))
        np.testing.assert_array_equal(image, decode_image(bytes(example["image"])))
    assert os.path.exists(builder.data_dir)


class Workers:
    """The pipelines of some workers, each with one replica."""

    def __init__(self, count):
        self.num_replicas_in_sync = count

    def distribute_datasets_from_function(self, share):
        count = self.num_replicas_in_sync
        return [share(tf.distribute.InputContext(count, worker, count)) for worker in range(count)]


def steps_of(examples, workers, count, first_step=0, same_order=False, **options):
    """Returns the images' bytes and the classes of each step and worker."""
    recipe = Recipe(batch_size=8, padding=0, crop="none", **options)
    plan = Plan(recipe=recipe, size=(60, 80), classes=2)
    parts = training_batches(examples, plan, Workers(workers), first_step, same_order)
    drawn = [list(part.take(count).as_numpy_iterator()) for part in parts]
    return [[(images, labels) for images, labels in step] for step in zip(*drawn, strict=True)]


def names_of(step):
    return [image.tobytes() for images, _ in step for image in images]


@pytest.fixture
def streamed(folder, tmp_path, monkeypatch):
    """Thirty-two images, two in each of sixteen files."""
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    made = prepare(folder, tmp_path / "made", image_size=0)
    return load_data(str(made)).train


@pytest.mark.parametrize("workers", [2, 4])
def test_each_worker_reads_its_own_files_and_all_images_are_seen(streamed, workers):
    epochs = [steps_of(streamed, workers, 4, first_step=4 * epoch) for epoch in range(2)]
    whole = sorted(sum((names_of(step) for step in steps_of(streamed, 1, 4)), []))
    for epoch in epochs:
        by_worker = [{image.tobytes() for step in epoch for image in step[worker][0]} for worker in range(workers)]
        assert sorted(sum((names_of(step) for step in epoch), [])) == whole
        assert sum(map(len, by_worker)) == len(set().union(*by_worker)) == 32
    assert names_of(epochs[0][0]) != names_of(epochs[1][0])
    first = [{image.tobytes() for step in epoch for image in step[0][0]} for epoch in epochs]
    assert first[0] != first[1]


def test_sharded_batches_are_the_same_after_a_resumption(streamed):
    options = {"flip": True, "repeats": 2}
    alone, resumed = steps_of(streamed, 2, 7, **options), steps_of(streamed, 2, 4, first_step=3, **options)
    for expected, found in zip(alone[3:], resumed, strict=True):
        for (images, labels), (others, other_labels) in zip(expected, found, strict=True):
            np.testing.assert_array_equal(images, others)
            np.testing.assert_array_equal(labels, other_labels)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_same_order_for_any_number_of_workers_is_an_option(streamed, workers):
    one, many = steps_of(streamed, 1, 6, flip=True), steps_of(streamed, workers, 6, same_order=True, flip=True)
    assert [names_of(step) for step in one] == [names_of(step) for step in many]
    assert [names_of(step) for step in one] != [names_of(step) for step in steps_of(streamed, workers, 6, flip=True)]


def test_a_worker_reads_no_file_of_another(streamed):
    key = tf.constant([0, 0], tf.int64)
    parts = [set(streamed.worker_handles(key, worker, 4).as_numpy_iterator()) for worker in range(4)]
    assert [len(part) for part in parts] == [8, 8, 8, 8] and len(set().union(*parts)) == 32


def test_classes_are_counted_without_reading_the_images(folder, streamed):
    for examples in (streamed, load_data(str(folder)).train):
        unread = dataclasses.replace(examples, handles=None, open=None)
        assert class_counts(unread, 3).tolist() == [16, 16, 0]
