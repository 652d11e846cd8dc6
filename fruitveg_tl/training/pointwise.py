"""Pointwise convolutions as matrix products, for training in bfloat16 on a processor.

A convolution of 1 × 1 pixels is a product of two matrices. oneDNN computes it as fast either way,
but not its gradient by the kernel: with ResNet50 that takes most of a training step, and as a
product a step takes a quarter less (benchmarks/onednn.py). In float32 nothing is gained.
"""

from fruitveg_tl.utils.backend import keras


def with_products(model: keras.Model) -> keras.Model:
    """Return a model that computes the same, its pointwise convolutions as products.

    Args:
        model: a functional model. Where there is nothing to gain it is returned itself, else a
            copy with weights of its own, in the same order.
    """
    if not any(map(_gains, model.layers)):
        return model
    copy = keras.models.clone_model(model, clone_function=_copied)
    copy.set_weights(model.get_weights())
    return copy


class _Pointwise(keras.layers.Conv2D):
    """A convolution of 1 × 1 pixels."""

    def convolution_op(self, inputs, kernel):
        """Return the product; Keras has this method to be overridden."""
        ops, (down, across) = keras.ops, self.strides
        inputs = inputs[:, ::down, ::across]
        _, height, width, channels = inputs.shape
        product = ops.matmul(ops.reshape(inputs, (-1, channels)), kernel[0, 0])
        return ops.reshape(product, (-1, height, width, self.filters))


def _copied(layer: keras.layers.Layer) -> keras.layers.Layer:
    kind = _Pointwise if _gains(layer) else type(layer)
    return kind.from_config(layer.get_config())


def _gains(layer: keras.layers.Layer) -> bool:
    return (
        type(layer) is keras.layers.Conv2D
        and layer.kernel_size == (1, 1)
        and layer.groups == 1
        and layer.compute_dtype == "bfloat16"
    )
