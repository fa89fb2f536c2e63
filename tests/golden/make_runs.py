"""Made the runs in `runs/`, with the package as it was before its modules moved into rooms (commit 494c9fd).

A later version must go on reading them: `complete` is a finished run, `interrupted` the same training stopped after its
second epoch. They cannot be made anew with today's version, for what they prove is that it reads yesterday's:

    git worktree add /tmp/before 494c9fd
    cd /tmp/before && python PATH/tests/golden/make_runs.py FOLDER
"""

import dataclasses
import os
import signal
import sys

import keras
from keras_resdense.recipes import Recipe, Settings

from keras_resdense import training, zoo

RECIPE, SETTINGS = (
    Recipe(model="tiny", epochs=3, batch_size=128, flip=True, warmup_epochs=1),
    Settings(deterministic=True),
)


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    zoo.VARIANTS["tiny"] = dataclasses.replace(zoo.VARIANTS["resnet20"], depths=(1, 1), filters=(4, 8))
    training.FORMATS = ("keras", "tflite")
    training.train(RECIPE, SETTINGS, folder=sys.argv[1], name="complete")
    callbacks = training._callbacks
    training._callbacks = lambda *known: [*callbacks(*known), Stop()]
    training.train(RECIPE, SETTINGS, folder=sys.argv[1], name="interrupted")
