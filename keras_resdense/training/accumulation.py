"""Gradient accumulation: trains on a large batch in the memory of one micro-batch.

Keras's own `gradient_accumulation_steps` does not run on several replicas, and counts micro-batches as steps in
schedules and moving averages. Here a step is one full batch.
"""

from __future__ import annotations

from typing import Any

import keras


class GradientAccumulation(keras.Model):
    """A functional model that splits each batch of training into micro-batches.

    It shares its layers and weights with the original model.

    Args:
        model: A functional model.
        parts: Number of micro-batches.
    """

    def __init__(self, model: keras.Model, parts: int):
        super().__init__(model.inputs, model.outputs[0], name=model.name)
        self.parts = parts

    def train_step(self, data: Any) -> Any:
        import tensorflow as tf

        gradients, predictions, waiting = None, [], []
        for images, classes in zip(*(tf.split(part, self.parts) for part in data[:2]), strict=True):
            # Without this, TensorFlow would compute all micro-batches at once and need the memory for them.
            with tf.control_dependencies(waiting), tf.GradientTape() as tape:
                outputs = self(tf.identity(images), training=True)
                loss = self.compute_loss(x=images, y=classes, y_pred=outputs)
                scaled = self.optimizer.scale_loss(loss / self.parts)
            waiting = tape.gradient(scaled, self.trainable_weights)
            gradients = waiting if gradients is None else [sum(pair) for pair in zip(gradients, waiting, strict=True)]
            predictions.append(outputs)
            # Keras divides the loss by the number of replicas, so that their gradients add up.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            self._loss_tracker.update_state(loss * replicas, sample_weight=tf.shape(images)[0])
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return self.compute_metrics(data[0], data[1], tf.concat(predictions, 0))
