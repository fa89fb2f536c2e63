"""The stopwatch, the `benchmark` command, and the contests' order, statistics and charts."""

import dataclasses
import json
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

from keras_resdense import VARIANTS, count_parameters, create_model
from keras_resdense.__main__ import main
from keras_resdense.insight import benchmark, stopwatch
from tests.tiny import ROOT


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(VARIANTS, "tiny", dataclasses.replace(VARIANTS["resnet20"], depths=(1,), filters=(4,)))


@pytest.fixture(scope="module")
def contest():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import contest

        yield contest


def test_only_calls_after_the_warm_up_count(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(stopwatch, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    calls = []
    assert stopwatch.seconds(lambda: calls.append(len(calls)), 3) == [1, 2, 4]
    assert len(calls) == stopwatch.WARM_UP + 3


def test_steps_of_fit_are_timed_one_by_one_and_train():
    model = create_model("tiny", input_shape=(8, 8, 3))
    stopwatch.compile_model(model, keras.optimizers.SGD)
    before = model.get_weights()
    taken = stopwatch.fit_seconds(model, np.ones((2, 8, 8, 3), "float32"), np.array([1, 2]), 3)
    assert len(taken) == 3 and min(taken) > 0
    assert model.optimizer.iterations == stopwatch.WARM_UP + 3
    assert not np.allclose(before[0], model.get_weights()[0])


MEMORY = """
import runpy, sys

memory_mb = runpy.run_path(sys.argv[1])["memory_mb"]
before = memory_mb("VmRSS")
held = b"1" * 200_000_000
holding = memory_mb("VmRSS")
del held
print(before, holding, memory_mb("VmRSS"), memory_mb())
"""


def test_memory_is_in_megabytes():
    # In a process of its own: TensorFlow's threads give memory back at any time.
    command = [sys.executable, "-c", MEMORY, stopwatch.__file__]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, holding, after, most = map(float, printed.split())
    assert holding - before == pytest.approx(200, abs=5)
    assert after == pytest.approx(before, abs=5) and most == pytest.approx(holding, abs=5)


def test_the_command_prints_and_writes_what_it_measured(tmp_path, capsys):
    policy = keras.config.dtype_policy()
    path = tmp_path / "speed.json"
    words = "benchmark Tiny --image-size 8 --batch-size 3 --steps 4 --precision mixed_bfloat16 --json".split()
    assert main([*words, str(path)]) == 0
    assert keras.config.dtype_policy() == policy
    measured = json.loads(path.read_text())
    assert measured["parameters"] == count_parameters(create_model("tiny"))
    assert (measured["variant"], measured["image_size"], measured["batch_size"]) == ("tiny", 8, 3)
    printed = capsys.readouterr().out
    for timing in measured["timings"]:
        assert len(timing["seconds"]) == 4
        assert timing["images_per_second"] == pytest.approx(3 / np.median(timing["seconds"]))
        assert timing["peak_memory_mb"] > 0
        (line,) = (line for line in printed.splitlines() if line.startswith(timing["name"]))
        assert float(line[len("training step") :].split()[0]) == pytest.approx(1e3 * np.median(timing["seconds"]), 0.05)
    assert "mixed_bfloat16" in printed and "8 × 8 pixels, batches of 3" in printed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"variant": "tinny"}, "Closest: tiny"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"batch_size": -1}, "batch_size is -1; it must be at least 1"),
        ({"image_size": 4}, "at least 8 pixels"),
        ({"precision": "int8"}, "precision is 'int8'; it must be one of float32"),
    ],
)
def test_what_cannot_be_measured_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        benchmark.benchmark(**{"variant": "tiny"} | given)


def measurement(seconds, memory, gflops=None):
    rate = {} if gflops is None else {"gflops": gflops}
    return {"seconds": seconds, "memory_mb": memory, "versions": {"keras": "3"}, "kernels": 7, **rate}


def test_contestants_take_turns_and_failed_ones_drop_out(contest):
    case = contest.Case(network="resnet20", side=8, batch=2, steps=1, peers=("KerasHub", "timm"), outside=True)
    turns = []

    def run(name, task):
        turns.append((name, task))
        if name == "timm" and turns.count((name, task)) == 2:
            return {"error": "no memory"}
        return measurement([1.0], 1.0) | {"macs": 5}

    result = contest.compete(case, 3, run, "train")
    assert turns[0] == (contest.OURS, "write")
    names = [name for name, task in turns if task == "train"]
    once = [contest.MATRIX, contest.OURS, "KerasHub", "timm", contest.OUTSIDE]
    assert names == once + once + [name for name in once if name != "timm"]
    assert result["errors"] == {"timm": "no memory"} and len(result["contestants"]["KerasHub"]) == 3


def test_files_are_compared_with_files(contest):
    names = (contest.OURS, "ours, LiteRT", "keras.applications, LiteRT", "torchvision, compiled", "KerasHub")
    like = [contest.ours_like(name, names, contest.OURS) for name in names]
    assert like == [contest.OURS, contest.OURS, "ours, LiteRT", contest.OURS, contest.OURS]


def test_another_network_and_a_failure_of_ours_end_the_contest(contest):
    case = contest.Case(network="resnet20", side=8, batch=2, steps=1, peers=("KerasHub",))
    other = {"KerasHub": 8, contest.OURS: 7}
    with pytest.raises(RuntimeError, match="resnet20 of KerasHub has 8 weights, ours 7"):
        contest.compete(case, 1, lambda name, _: {"macs": 5, "kernels": other.get(name, 7)}, "train")
    with pytest.raises(RuntimeError, match="ours failed: broken"):
        contest.compete(case, 1, lambda *_: {"error": "broken"}, "train")


def test_statistics_table_and_chart(contest):
    case = contest.Case(network="resnet20", side=8, batch=10, steps=3, peers=("KerasHub", "timm"))
    contests = [
        dataclasses.asdict(case)
        | {"task": "train", "machine": stopwatch.machine(), "macs": 1e9, "file_mb": {}}
        | {"errors": {"timm": "no memory"} if "timm" in met else {}, "contestants": met}
        for met in (
            {
                contest.MATRIX: [measurement([], 0.0, 60)],
                contest.OURS: [measurement([1, 2, 9], 90.0)],
                "KerasHub": [measurement([4, 4, 4], 1.0)],
                "timm": [measurement([1, 1, 1], 1.0)],
            },
            {
                contest.MATRIX: [measurement([], 0.0, gflops) for gflops in (120, 60)],
                contest.OURS: [measurement([seconds] * 3, 90.0) for seconds in (1, 2)],
                "KerasHub": [measurement([seconds] * 3, memory) for seconds, memory in ((4, 5.0), (5, 3.0))],
            },
        )
    ]
    # A matrix product's rate allows 10 images a second.
    text = contest.report(contests[0])
    assert "| ours | 5.00 | 5.00–5.00 | 1.00 | 50% | 90 |" in text and "| timm | failed: no memory |" in text
    assert "| KerasHub | 2.50 | 2.50–2.50 | 2.00 | 25% | 1 |" in text
    assert "| KerasHub | 2.25 | 2.00–2.50 | 3.25 | 16% | 4 |" in contest.report(contests[1])
    assert contest.ratio(contests, contest.OURS, "KerasHub") == 2.5
    assert contest.ratio(contests, contest.OURS, "timm") is None
    assert contest.conditions(contests).endswith("Rounds: 3. Versions: keras 3.")
    (panel,) = contest.draw(contests).axes
    assert [bar.get_width() for bar in panel.patches] == [5, 2.5]


def test_time_to_accuracy_is_that_of_the_first_epoch_at_the_goal(contest):
    import time_to_accuracy

    def row(contestant, seed, *points):
        facts = {"epochs": len(points), "machine": stopwatch.machine(), "versions": {"keras": "3"}}
        return {"contestant": contestant, "seed": seed, "points": points} | facts

    rows = [
        row("ours", 1, (2.0, 0.9), (4.0, 0.94), (6.0, 0.93)),
        row("ours", 0, (1.0, 0.94), (2.0, 0.95), (3.0, 0.95)),
        row("plain Keras", 0, (4.0, 0.9), (8.0, 0.95)),
        row("PyTorch", 0, (4.0, 0.9), (8.0, 0.9399)),
    ]
    text = time_to_accuracy.tables(rows)["time_to_accuracy"]
    assert "| ours | 3 | 90 | 95.00 / 93.00 | 1.0 / 4.0 |  |" in text
    # The medians are 8 and 2.5 minutes, and the goal is four times as long.
    assert "| plain Keras | 2 | 240 | 95.00 | 8.0 | **3.20** |" in text
    assert "| PyTorch | 2 | 240 | 93.99 | never |  |" in text
    (axes,) = time_to_accuracy.draw(rows).axes
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[2, 4, 6], [1, 2, 3]]


def test_peers_of_the_time_to_accuracy_learn_from_moved_and_flipped_images(contest):
    import learners

    count, side, border = 256, learners.SIDE, learners.PADDING
    images = np.arange(1, 1 + count * side**2, dtype="float32").reshape(count, side, side, 1)
    padded = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
    seen, flips, places = [], 0, set()
    for some, classes in learners.epoch(images, np.arange(count), np.random.default_rng(0)):
        for image, number in zip(some, classes, strict=True):
            flipped = image[14, 13] > image[14, 14]
            image = image[:, ::-1] if flipped else image
            row, column = np.argwhere(padded[number, ..., 0] == image[14, 14, 0])[0] - 14
            np.testing.assert_array_equal(image, padded[number, row : row + side, column : column + side])
            flips, places = flips + flipped, places | {(row, column)}
            seen.append(number)
    assert sorted(seen) == list(range(count)) and 96 < flips < 160 and len(places) > 60


def test_pages_hold_what_was_measured(contest):
    import pages
    import run_all

    texts = run_all.texts()
    blocks = [block for page in pages.PAGES for block in pages.BLOCK.findall(page.read_text(encoding="utf-8"))]
    assert set(texts) <= {name for name, _ in blocks}
    for name, text in blocks:
        assert text == texts.get(name, text), f"{name}: run benchmarks/run_all.py --tables"


def test_all_benchmarks_run_though_one_fails(contest, tmp_path, monkeypatch, capsys):
    import run_all

    for name, code in {"good": "import sys; print(sys.argv[1:])", "bad": "raise SystemExit(3)"}.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    commands = (("bad", 1, "bad.py"), ("bad", 0, "good.py"), ("good", 2, "good.py {peers}"))
    monkeypatch.setattr(run_all, "COMMANDS", commands)
    monkeypatch.setattr(run_all, "NAMES", ("bad", "good"))
    monkeypatch.setattr(run_all, "write_pages", lambda: print("written"))
    monkeypatch.setattr(sys, "argv", ["run_all.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"Failed: bad \(see their logs\). Again: run_all.py .* bad$"):
        run_all.main()
    assert (tmp_path / "good.log").read_text() == f"[{str(tmp_path)!r}]\n"
    assert (tmp_path / "bad.log").read_text() == ""
    printed = capsys.readouterr().out
    assert "1 of 2: bad, about 1 min (0 min passed, about 3 min left)" in printed and printed.endswith("written\n")
