"""The rule by which both sides of a comparison make the same weights and images.

A golden file holds what PyTorch computed, never the weights it computed with:
those follow from each tensor's PyTorch name and shape, so a test recomputes
them in whatever framework it checks.
"""

import math
import zlib

import numpy as np


def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Makes the values of one tensor of a PyTorch state dict.

    The scales keep activations finite and logits varied in networks of any
    depth, and no tensor takes the value it would have by default, so one that
    is left unset or is set in another's place shows in the logits.

    Args:
        name: The tensor's name in the state dict, as `layer1.0.bn1.weight`.
        shape: Its shape in PyTorch's layout: (out, in / groups, height, width)
            for a convolution's kernel and (out, in) for a dense layer's.

    Returns:
        A float32 array of that shape.

    Raises:
        ValueError: The rule does not cover such a tensor.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    fan_in = math.prod(shape[1:])
    match len(shape), name.rpartition(".")[-1]:
        case 4, "weight":
            values = rng.normal(0.0, math.sqrt(2 / fan_in), shape)
        case 2, "weight":
            values = rng.normal(0.0, math.sqrt(1 / fan_in), shape)
        case 1, "weight":
            values = rng.uniform(0.3, 0.9, shape)
        case 1, "bias" | "running_mean":
            values = rng.normal(0.0, 0.1, shape)
        case 1, "running_var":
            values = rng.uniform(0.5, 1.5, shape)
        case _:
            raise ValueError(f"no rule for tensor {name!r} of shape {shape}")
    return values.astype(np.float32)


def image(size: int, channels: int = 3) -> np.ndarray:
    """Makes a batch of one square image of noise, channels last.

    Args:
        size: Height and width, which also seed the noise.
        channels: The number of channels.

    Returns:
        A float32 array of shape (1, size, size, channels).
    """
    rng = np.random.default_rng(size)
    return rng.normal(size=(1, size, size, channels)).astype(np.float32)
