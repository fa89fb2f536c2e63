"""Predictions for many images: order, bad images, and resumption."""

import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import keras_resdense
from keras_resdense import answers, runs
from keras_resdense.__main__ import main

COUNT = 150


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of three classes whose probabilities depend on the colour of an image."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 64)(inputs))
    keras.Model(inputs, keras.layers.Softmax()(outputs)).save(path)
    (path.parent / "labels.txt").write_text('red\n"green", they say\nblue\n')
    return path


@pytest.fixture
def photos(tmp_path):
    folder, random = tmp_path / "photos", np.random.default_rng(0)
    (folder / "deeper").mkdir(parents=True)
    for number in range(COUNT):
        colour = tuple(random.integers(0, 256, 3).tolist())
        place = folder / "deeper" if number % 7 == 0 else folder
        Image.new("RGB", (12 + number % 5, 10), colour).save(place / f"{number:03}.{('jpg', 'png')[number % 2]}")
    return folder


def one_by_one(model, files):
    run = keras.saving.load_model(model, compile=False)
    transform = keras_resdense.transform(model)
    return [run.predict_on_batch(transform(file))[0] for file in files]


def listed(folder):
    return sorted(Path(folder).rglob("*.*g"))


def test_batches_answer_as_single_images_do_in_the_order_of_the_files(model, photos):
    found = list(runs.predict(model, [photos], top=3))
    assert [path for path, _ in found] == listed(photos)
    names = ["red", '"green", they say', "blue"]
    for (_, best), expected in zip(found, one_by_one(model, listed(photos)), strict=True):
        assert [name for name, _ in best] == [names[n] for n in np.argsort(-expected)]
        np.testing.assert_allclose([share for _, share in best], np.sort(expected)[::-1], atol=1e-5)


def test_bad_files_are_left_out_or_stop_it(model, photos, capsys):
    (photos / "000bad.jpg").write_text("no image")
    (photos / "100bad.png").write_bytes((photos / "101.png").read_bytes()[:45])
    os.mkfifo(photos / "120pipe.jpg")
    with pytest.raises(ValueError, match="000bad.jpg: not an image"):
        list(runs.predict(model, [photos]))
    found = dict(runs.predict(model, [photos], on_bad_image="skip"))
    bad = {photos / name for name in ("000bad.jpg", "100bad.png", "120pipe.jpg")}
    assert list(found) == [path for path in listed(photos) if path not in bad]
    told = capsys.readouterr().err
    assert all(f"Left out {path}: " in told for path in bad) and "120pipe.jpg: not a regular file" in told
    with pytest.raises(ValueError, match="on_bad_image is 'stop'; it must be"):
        next(runs.predict(model, [photos], on_bad_image="stop"))


def test_files_are_read_no_further_ahead_than_some_batches(model, photos, monkeypatch):
    from keras_resdense.data import stream

    read_file, count = stream.read_file, []

    def read(path):
        # Threads of an earlier test that stopped in between may still read its files.
        if photos in Path(os.fsdecode(path)).parents:
            count.append(path)
        return read_file(path)

    monkeypatch.setattr(stream, "read_file", read)
    monkeypatch.setattr(runs, "BATCH", 4)
    found = runs.predict(model, [photos])
    next(found)
    time.sleep(0.5)
    assert len(count) < 40
    assert len(list(found)) == COUNT - 1 and len(count) == COUNT


def parsed(format, text):
    if format == "csv":
        rows = csv.DictReader(io.StringIO(text))
        return [(row["image"], row["rank"], row["class"], row["probability"]) for row in rows]
    return json.loads(text) if format == "json" else [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("format", ["csv", "json", "jsonl"])
def test_formats_on_standard_output_and_in_a_file_are_alike(model, photos, tmp_path, capsys, format):
    command = ["predict", str(model), str(photos), "--format", format, "--top", "2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert main([*command, "--output", str(tmp_path / "answers")]) == 0
    assert (tmp_path / "answers").read_text() == printed
    assert len(parsed(format, printed)) == COUNT * (2 if format == "csv" else 1)
    assert main([*command, "--output", str(tmp_path / "answers")]) == 1
    assert "exists: choose another file, or resume it with --resume" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [0, 3, 40, 700, 2001, 2050, -25, -1, None])
@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_answers_go_on_wherever_they_were_cut(model, photos, tmp_path, format, cut, capsys):
    output = tmp_path / "answers"
    command = ["predict", str(model), str(photos), "--format", format, "--output", str(output)]
    assert main(command) == 0
    whole = output.read_bytes()
    output.write_bytes(whole[:cut])
    assert main([*command, "--resume"]) == 0
    assert output.read_bytes() == whole


def test_what_cannot_be_gone_on_with_is_left_as_it_is(model, photos, tmp_path, capsys):
    def failing(*words):
        assert main(["predict", str(model), str(photos), *words]) == 1
        return capsys.readouterr().err

    output = tmp_path / "answers"
    assert "add --output" in failing("--resume")
    output.write_text("a diary\n")
    assert "use csv, jsonl" in failing("--resume", "--output", str(output))
    for format in ("csv", "jsonl"):
        assert "does not hold answers of this format" in failing(
            "--resume", "--output", str(output), "--format", format
        )
    assert output.read_text() == "a diary\n"
    output.write_text('{"image": "elsewhere.jpg", "classes": {}}\n')
    assert "elsewhere.jpg occurs 0 times among the images" in failing(
        "--resume", "--output", str(output), "--format", "jsonl"
    )
    assert not (tmp_path / "none").exists()
    assert "There is no" in failing("no-such-photo.jpg", "--output", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_names_of_files_need_not_be_text(model, tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff, one\ntwo.png")
    for path in (odd, tmp_path / "z.png", tmp_path / "zz.png"):
        Image.new("RGB", (9, 9), "red").save(path)
    for format in ("csv", "jsonl"):
        output = tmp_path / f"answers.{format}"
        command = ["predict", str(model), str(tmp_path), "--format", format, "--output", str(output)]
        assert main(command) == 0
        whole = output.read_bytes()
        output.write_bytes(whole[:-5])
        assert main([*command, "--resume"]) == 0
        assert output.read_bytes() == whole


@pytest.mark.sweep
def test_a_killed_prediction_goes_on(model, photos, tmp_path):
    output = tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "keras_resdense", "predict", str(model), str(photos), "--format", "jsonl"]
    command += ["--output", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (output.exists() and output.stat().st_size):
        time.sleep(0.002)
    process.kill()
    process.wait()
    subprocess.run([*command, "--resume"], check=True, stderr=subprocess.DEVNULL)
    assert [json.loads(line)["image"] for line in output.read_text().splitlines()] == list(map(str, listed(photos)))


def test_no_answers_are_valid_files():
    def written(name):
        text = io.StringIO()
        answers.write([], answers.FORMATS[name], text)
        return text.getvalue()

    assert json.loads(written("json")) == [] and written("jsonl") == written("text") == ""
    assert written("csv") == "image,rank,class,probability\n"


def test_parquet_holds_the_rows_of_csv(model, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(answers, "ROW_GROUP", 64)
    odd = photos / os.fsdecode(b"\xff.png")
    Image.new("RGB", (9, 9), "red").save(odd)
    command = ["predict", str(model), str(photos), "--top", "2", "--format"]
    assert main([*command, "csv", "--output", str(tmp_path / "csv")]) == 0
    assert main([*command, "parquet", "--output", str(tmp_path / "answers.parquet")]) == 0
    with open(tmp_path / "csv", encoding="utf-8", errors="backslashreplace") as file:
        expected = list(csv.DictReader(file))
    file = pyarrow.parquet.ParquetFile(tmp_path / "answers.parquet")
    found = file.read().to_pylist()
    assert file.num_row_groups == 3
    assert [(row["image"], row["rank"], row["class"]) for row in found] == [
        (row["image"], int(row["rank"]), row["class"]) for row in expected
    ]
    for row, other in zip(found, expected, strict=True):
        assert row["probability"] == pytest.approx(float(other["probability"]), abs=1e-6)


def test_parquet_needs_a_file_and_leaves_none_half_written(model, photos, tmp_path, capsys):
    command = ["predict", str(model), str(photos), "--format", "parquet"]
    assert main(command) == 1
    assert "parquet is not a text format: add --output" in capsys.readouterr().err
    (photos / "999bad.jpg").write_text("no image")
    assert main([*command, "--output", str(tmp_path / "answers")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
