"""Which number type to compute in, and a network in that type.

bfloat16 has the range of float32 and 8 of its 24 bits of precision. Processors and graphics cards
that have instructions for it multiply matrices in it several times as fast.
"""

from fruitveg_tl.models.backbones import Backbone
from fruitveg_tl.training import inference
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.backend import keras


def training_precision(backbone: Backbone) -> str:
    """Return the dtype policy that a backbone is trained in on this machine."""
    return runtime.fast_precision(backbone.bfloat16)


def frozen_precision(backbone: Backbone) -> str:
    """Return the dtype policy in which training images go through the frozen part here."""
    if not backbone.frozen_bfloat16:
        return "float32"
    # In OpenVINO every backbone is faster in bfloat16 (benchmarks/engine.py).
    by_openvino = inference.engine() == inference.OPENVINO
    return runtime.fast_precision(by_openvino or backbone.bfloat16)


def in_precision(model: keras.Model, policy: str) -> keras.Model:
    """Return a copy of a network that computes in another number type; its weights stay float32.

    The layer called "head", a softmax, stays in float32: probabilities near 0 and 1 need it. Keras
    has no effect of a new dtype policy on layers that were called before, hence a copy.

    Args:
        model: a functional model.
        policy: "float32" or "mixed_bfloat16".

    Returns:
        a model with weights of its own, in the order of `model.get_weights()`.
    """

    def copied(layer: keras.Operation) -> keras.Operation:
        settings = layer.get_config()
        if not isinstance(layer, keras.layers.Layer):  # the preprocessing, in float32
            return type(layer).from_config(settings)
        if layer.name != "head":
            settings["dtype"] = policy
        return _class_of(layer, settings["dtype"]).from_config(settings)

    copy = keras.models.clone_model(model, clone_function=copied)
    copy.set_weights(model.get_weights())
    return copy


class PointwiseProduct(keras.layers.Conv2D):
    """A convolution of 1 × 1 pixels, computed as the product of matrices that it is.

    oneDNN computes the convolution as fast, but not its gradient by the kernel: as products a
    training step of ResNet50 took 8.8 ms an image instead of 10.3 in bfloat16 (Intel Xeon).
    """

    def convolution_op(self, inputs, kernel):
        """Return the product; Keras has this method to be overridden."""
        ops, (down, across) = keras.ops, self.strides
        inputs = inputs[:, ::down, ::across]
        _, height, width, channels = inputs.shape
        product = ops.matmul(ops.reshape(inputs, (-1, channels)), kernel[0, 0])
        return ops.reshape(product, (-1, height, width, self.filters))


def _class_of(layer: keras.layers.Layer, policy: str) -> type:
    pointwise = (
        type(layer) is keras.layers.Conv2D and layer.kernel_size == (1, 1) and layer.groups == 1
    )
    return PointwiseProduct if pointwise and policy == "mixed_bfloat16" else type(layer)
