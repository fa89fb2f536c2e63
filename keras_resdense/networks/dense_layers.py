"""Drop-in replacements for the layers of dense networks: the same numbers, faster or in less memory on TensorFlow."""

from __future__ import annotations

from typing import Any

import keras

from keras_resdense.networks import drop_ins
from keras_resdense.networks.drop_ins import saved_as

if keras.backend.backend() == "tensorflow":
    from keras_resdense.networks import dense_kernels as kernels
else:
    kernels = None


@saved_as("keras.layers.BatchNormalization")
class BatchNormalization(drop_ins.BatchNormalization):
    """Our batch norm, which reuses statistics of channels that other layers have computed."""

    def _normalise_batch(self, inputs: Any, scale: Any, offset: Any) -> tuple[Any, Any, Any]:
        return kernels.normalise_shared(inputs, scale, offset, self.epsilon)


@saved_as("keras.layers.Concatenate")
class Concatenate(keras.layers.Concatenate):
    """Keras's concatenation of channels. Batch norms after it reuse the statistics of its parts."""

    def call(self, inputs: Any) -> Any:
        outputs = super().call(inputs)
        if kernels:
            kernels.note_of(outputs).parts = tuple(inputs)
        return outputs


@saved_as("keras.layers.Activation")
class Activation(keras.layers.Activation):
    """Keras's activation, which tells the next convolution how its input was normalised."""

    def call(self, inputs: Any) -> Any:
        outputs = super().call(inputs)
        if kernels:
            kernels.note_of(outputs).rectified = kernels.note_of(inputs).normalised
        return outputs


@saved_as("keras.layers.Conv2D")
class RecomputingConv2D(keras.layers.Conv2D):
    """Keras's convolution without bias, which recomputes its input for the gradient in a dense block.

    A saved file keeps `recomputes` in each convolution's build configuration, which plain Keras ignores.

    Raises:
        ValueError: When it is built with a bias or an activation.
    """

    recomputes: bool = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if self.recomputes and (self.use_bias or self.activation is not keras.activations.linear):
            raise ValueError(
                f"{self.name} recomputes its input, which needs a convolution without bias and activation: pass "
                "use_bias=False and activation=None, or use keras.layers.Conv2D."
            )
        super().build(input_shape)

    def get_build_config(self) -> dict[str, Any]:
        return (super().get_build_config() or {}) | {"recomputes": self.recomputes}

    def build_from_config(self, config: dict[str, Any]) -> None:
        self.recomputes = config.get("recomputes", False)
        super().build_from_config(config)

    def call(self, inputs: Any) -> Any:
        if not (kernels and self.recomputes):
            return super().call(inputs)
        kernel = keras.ops.cast(self.kernel, self.compute_dtype)
        return kernels.convolve_recomputing(inputs, kernel, self.convolution_op)


#: What drops in for the classes that a file names.
DROP_INS: dict[str, type] = {
    kind.__name__: kind for kind in (BatchNormalization, Concatenate, Activation, RecomputingConv2D)
}
