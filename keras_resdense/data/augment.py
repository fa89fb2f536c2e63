"""Augmentation by Keras's layers, whose chances hang on the place of an image, not on the machine."""

from __future__ import annotations

import functools

import keras

from keras_resdense.data.plan import Plan

#: Seeds that an image or a group has in an epoch.
DRAWS = 2**10


class _KeyedSeeds(keras.random.SeedGenerator):
    """Counts seeds up from a key, for layers that ask for one after another; TensorFlow scrambles them."""

    def __init__(self):
        super().__init__(seed=0)
        self.key, self.draws = None, 0

    def restart(self, key) -> None:
        self.key, self.draws = key, 0

    def next(self, ordered=True):
        import tensorflow as tf

        self.draws += 1
        return self.key + tf.constant([0, self.draws], tf.int64)


def place_key(seed: int, epoch, number):
    """Returns a key of its own, with room for `DRAWS` seeds, for what has this number in an epoch."""
    import tensorflow as tf

    return tf.stack([epoch * 2**32 + seed, number * DRAWS])


def augmentation_alone(plan: Plan):
    """Returns a function from an image of any size and a key to an image of the network's size."""

    recipe, seeds, layers = plan.recipe, _KeyedSeeds(), []
    if recipe.rand_augment:
        # It would choose the same operations for all images of a group.
        layers.append(keras.layers.RandAugment(value_range=(0, 255), num_ops=2, factor=recipe.rand_augment / 10))
        layers[0].generator = seeds

    def augment(image, key):
        seeds.restart(key)
        image = _CROPS[recipe.crop](image, plan.size, seeds)
        for layer in layers:
            image = layer(image[None], training=True)[0]
        return image

    return augment


def augmentation_together(plan: Plan):
    """Returns a function from a group of images, their classes and a key to augmented images and targets."""
    import tensorflow as tf

    recipe, (height, width), seeds = plan.recipe, plan.size, _KeyedSeeds()
    layers, mixing = [], []
    if recipe.padding:
        # A crop of a padded image is a move; half a pixel more gives all whole moves the same chance.
        moves = [(recipe.padding + 0.5) / side for side in (height, width)]
        layers.append(keras.layers.RandomTranslation(*moves, fill_mode="constant", interpolation="nearest"))
    if recipe.flip:
        layers.append(keras.layers.RandomFlip("horizontal"))
    if recipe.erasing:
        layers.append(keras.layers.RandomErasing(factor=1.0, scale=(0.02, 0.33), value_range=(0, 255)))
    if recipe.mixup:
        mixing.append(keras.layers.MixUp(alpha=recipe.mixup))
    if recipe.cutmix:
        mixing.append(keras.layers.CutMix(factor=(recipe.cutmix, recipe.cutmix)))
    for layer in (*layers, *mixing):
        layer.generator = seeds

    def augment(images, labels, key):
        seeds.restart(key)
        for layer in layers:
            images = layer(images, training=True)
        if mixing:
            images, labels = _mixed(mixing, images, labels, seeds)
        if recipe.loss == "binary":
            # 2110.00476: all classes seen in an image count as present; its authors' timm asks for 0.2 of it.
            labels = tf.cast(labels > 0.2, tf.float32)
        return images, labels * (1 - recipe.label_smoothing) + recipe.label_smoothing / plan.classes

    return augment


def _mixed(layers: list, images, labels, seeds: _KeyedSeeds):
    """Mixes the images of a group by one of the layers, chosen by chance."""
    import tensorflow as tf

    def mix(layer):
        mixed = layer({"images": images, "labels": labels}, training=True)
        return mixed["images"], mixed["labels"]

    branches = [functools.partial(mix, layer) for layer in layers]
    chosen = tf.random.stateless_uniform((), seeds.next(), maxval=len(branches), dtype=tf.int32)
    return tf.switch_case(chosen, branches)


def _crop_none(image, size, seeds):
    """The whole image; it loses its proportions where they are not the network's."""
    return resized(image, size)


def _crop_scale(image, size, seeds):
    """A crop at a random place after resizing the shorter side to 256/224–480/224 of the size (1512.03385, 3.4)."""
    import tensorflow as tf

    scale = tf.random.stateless_uniform((), seeds.next(), 256 / 224, 480 / 224)
    image = shorter_side_resized(image, size, scale)
    return tf.image.stateless_random_crop(image, (*size, image.shape[-1]), seeds.next())


def _crop_area(image, size, seeds):
    """A crop of 8–100 % of the area and 3/4–4/3 of the proportions (1409.4842, section 6), resized."""
    import tensorflow as tf

    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros((1, 0, 4)),
        seeds.next(),
        min_object_covered=0.0,
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        use_image_if_no_bounding_boxes=True,
    )
    piece = tf.ensure_shape(tf.slice(image, begin, extent), (None, None, image.shape[-1]))
    return resized(piece, size)


_CROPS = {"none": _crop_none, "scale": _crop_scale, "area": _crop_area}


def resized(image, size):
    import tensorflow as tf

    if tuple(image.shape[-3:-1]) == tuple(size):
        return tf.cast(image, tf.float32)
    channels = image.shape[-1]
    return tf.ensure_shape(tf.image.resize(image, size, antialias=True), (*image.shape[:-3], *size, channels))


def shorter_side_resized(image, size, scale):
    """Resizes, keeping proportions, so that the image just covers `scale` times the size."""
    import tensorflow as tf

    old, new = tf.cast(tf.shape(image)[:2], tf.float32), tf.cast(size, tf.float32) * scale
    target = tf.maximum(tf.round(old * tf.reduce_max(new / old)), tf.cast(size, tf.float32))
    return tf.ensure_shape(
        tf.image.resize(image, tf.cast(target, tf.int32), antialias=True), (None, None, image.shape[-1])
    )
