"""The share of a training step that is spent waiting for data.

    python benchmarks/input_pipeline.py [--recipe fast] [--data digits --image-size 32] [--rounds 5] [--steps 40]

The same compiled step is run on the batches of a recipe's pipeline and on one batch that lies in memory, in
turns. The difference is what the pipeline costs: waiting for it, and the cores that it takes from the step.
"""

import argparse
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable

from keras_resdense.data.batches import pixel_statistics, training_batches
from keras_resdense.data.plan import Plan
from keras_resdense.data.sources import load_data
from keras_resdense.training import optimisation, recipes
from keras_resdense.training.classifier import build_classifier, network
from keras_resdense.training.devices import strategy

#: Steps of a round that are not timed: they use up what was prefetched while the other source had its turn.
UNTIMED = 10


def milliseconds(act: Callable[[], object], count: int) -> float:
    """Returns the mean time of some calls, after `UNTIMED` others."""
    for _ in range(UNTIMED):
        act()
    start = time.perf_counter()
    for _ in range(count):
        act()
    return 1000 * (time.perf_counter() - start) / count


def main() -> None:
    import tensorflow as tf

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="fast", choices=recipes.RECIPES, help="default %(default)s")
    parser.add_argument("--data", help="default the recipe's")
    parser.add_argument("--image-size", type=int, help="default the recipe's, or the data set's own")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--steps", type=int, default=40, help="of a round; default %(default)s")
    options = parser.parse_args()
    recipe = recipes.get_recipe(options.recipe)
    recipe = dataclasses.replace(
        recipe, data=options.data or recipe.data, image_size=options.image_size or recipe.image_size
    )

    data, devices = load_data(recipe.data), strategy("none")
    size = (recipe.image_size,) * 2 if recipe.image_size else data.image_shape[:2]
    plan = Plan(recipe=recipe, size=size, classes=len(data.class_names))
    batches = training_batches(data.train, plan, devices)
    with devices.scope():
        normalisation = pixel_statistics(data.train, plan.contract(data.image_shape[2]))
        model = build_classifier(network(recipe), plan, normalisation, data.image_shape[2])
        optimisation._compile(model, optimisation._phases(recipe)[-1], recipe, recipes.Settings(), options.steps)
    model.fit(batches, steps_per_epoch=1, shuffle=False, verbose=0)
    step, streamed = model.train_function, iter(batches)
    repeated = iter(tf.data.Dataset.from_tensors(next(streamed)).repeat())
    rounds = [
        (
            milliseconds(lambda: step(streamed), options.steps),
            milliseconds(lambda: step(repeated), options.steps),
            milliseconds(lambda: next(streamed), options.steps),
        )
        for _ in range(options.rounds + 1)
    ][1:]
    waiting, with_pipeline, without, alone = (
        statistics.median(column)
        for column in zip(*((1 - without / used, used, without, alone) for used, without, alone in rounds), strict=True)
    )
    print(
        f"{recipe.model} on {recipe.data}, {size[0]} × {size[1]} pixels, batch {recipe.batch_size}; medians of"
        f" {options.rounds} rounds of {options.steps} steps; {platform.machine()}, {os.cpu_count()} cores, TensorFlow"
        f" {tf.__version__}\nstep with the pipeline  {with_pipeline:7.1f} ms\nstep without           {without:7.1f} ms"
        f"\npipeline alone         {alone:7.1f} ms\nshare of the step spent on data {waiting:.1%}"
    )


if __name__ == "__main__":
    main()
