"""Two workers train through random failures. Each round must end with the weights of an undisturbed training.

`python -m pytest -m sweep tests/test_chaos.py`; repeat the round of a seed with `-k "[7]"`.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from keras_resdense.__main__ import main
from keras_resdense.data.sources import load_data
from keras_resdense.training import train
from tests.test_scale import cluster, task
from tests.tiny import COMMAND, ROOT, install, newest_step, outcome

pytestmark = pytest.mark.sweep
ROUNDS = 20
EPOCHS, STEPS = 4, 5
#: Seconds after which a training without progress hangs: longer than any worker is stopped for, and the connection's
#: end is noticed.
HANGS = 400
#: What errors say of each kind of trouble; a worker that is killed says nothing.
CLEAR = {
    "kill": (),
    "stop": (),
    "full disk": ("cannot be written",),
    "image removed": ("Images have changed since they were checked", "No such file", "have changed since the run"),
}


class Training:
    """Two worker processes of one command, each with a log of its own."""

    def __init__(self, folder, name):
        self.folder, self.run = folder, folder / name
        self.described = cluster(2)
        self.processes = {index: self.start(index) for index in range(2)}

    def start(self, index):
        command = [sys.executable, "-m", "tests.test_chaos", *COMMAND, "--batch-size", "12", "--image-size", "8"]
        command += ["--data", str(self.folder / "photos"), "--recipe", "digits", "--epochs", str(EPOCHS)]
        command += ["--folder", str(self.folder), "--name", self.run.name]
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = os.environ | {"PYTHONPATH": paths} | task(self.described, index)
        with open(self.log(index), "a") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def log(self, index):
        return self.folder / f"{self.run.name}-{index}"

    def said(self, index):
        return self.log(index).read_text()

    def begin_again(self, allowed):
        """Restarts workers that ended with an error, which must be an allowed one."""
        for index, process in self.processes.items():
            if process.poll():
                if process.returncode != -signal.SIGKILL:
                    told = self.said(index)
                    assert process.returncode == 1 and "Traceback" not in told, told[-3000:]
                    assert any(text in told for text in (*allowed, "Another worker has stopped")), told[-3000:]
                self.processes[index] = self.start(index)

    def wait(self, happened, allowed=()):
        """Waits until something has happened, and restarts workers meanwhile."""
        progress, since = None, time.monotonic()
        while not happened():
            self.begin_again(allowed)
            now = newest_step(self.run), [self.log(index).stat().st_size for index in self.processes]
            if now != progress:
                progress, since = now, time.monotonic()
            assert time.monotonic() - since < HANGS, f"no progress: {self.said(0)[-1500:]}\n{self.said(1)[-1500:]}"
            time.sleep(0.1)

    def ended(self):
        return all(process.poll() == 0 for process in self.processes.values())

    def step_of(self, step):
        """Returns whether a step has been reached, or the training is over."""
        return lambda: newest_step(self.run) >= step or self.ended()


@contextlib.contextmanager
def training(folder, name):
    made = Training(folder, name)
    try:
        yield made
    finally:
        for process in made.processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory):
    """Returns a folder of photos, and the result of an undisturbed training on them."""
    folder, values = tmp_path_factory.mktemp("chaos"), np.random.default_rng(0)
    for number in range(75):
        path = folder / "photos" / ("cat", "dog", "emu")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.integers(0, 255, (8, 8, 3), "uint8")).save(path)
    with training(folder, "peaceful") as made:
        made.wait(made.ended)
    return folder, outcome(folder / "peaceful")


def disturb(made, kind, moments):
    """Disturbs a training, and ends the disturbance once it has been noticed."""
    index = moments.randrange(2)
    process = made.processes[index]
    if kind == "kill":
        process.kill()
        process.wait()
    elif kind == "stop":
        process.send_signal(signal.SIGSTOP)
        time.sleep(moments.choice((1, 20, 120)))
        process.send_signal(signal.SIGCONT)
    elif kind == "full disk":
        chief = made.processes[0]
        with contextlib.suppress(ProcessLookupError):  # it may just have ended
            _, hard = resource.prlimit(chief.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(chief.pid, resource.RLIMIT_FSIZE, (made.log(0).stat().st_size + 2000, hard))
        made.wait(lambda: chief.poll() is not None, CLEAR[kind])
    else:
        photo = moments.choice(sorted((made.folder / "photos").rglob("*.png")))
        with contextlib.ExitStack() as back:
            hidden = made.folder / photo.name
            shutil.move(photo, hidden)
            back.callback(shutil.move, hidden, photo)
            time.sleep(moments.uniform(0, 10))


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_whatever_happens_a_training_ends_right(peaceful, seed):
    folder, expected = peaceful
    moments = random.Random(seed)
    kinds = [moments.choice(sorted(CLEAR)) for _ in range(moments.randint(1, 3))]
    steps = sorted(moments.choices(range(EPOCHS * STEPS - 1), k=len(kinds)))
    allowed = [text for kind in kinds for text in CLEAR[kind]]
    with training(folder, f"round{seed}") as made:
        for kind, step in zip(kinds, steps, strict=True):
            made.wait(made.step_of(step), allowed)
            if made.ended():
                break
            disturb(made, kind, moments)
        made.wait(made.ended, allowed)
    found = outcome(folder / f"round{seed}")
    assert len(found[1]) == EPOCHS
    for name, values in expected[0].items():
        np.testing.assert_allclose(found[0][name], values, atol=1e-5, err_msg=f"{kinds} at {steps}")


if __name__ == "__main__":
    install()
    train.load_data = load_data
    sys.exit(main())
