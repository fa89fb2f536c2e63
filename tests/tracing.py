"""The TensorFlow graph of a training step's gradients."""

import tensorflow as tf


def operations(model, shape):
    """Returns the operations of a step of gradients for images of a shape."""

    @tf.function
    def compute(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=True))
        return tape.gradient(loss, [weight.value for weight in model.trainable_weights])

    return compute.get_concrete_function(tf.TensorSpec(shape)).graph.get_operations()
