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
        if isinstance(layer, keras.layers.Layer) and layer.name != "head":
            settings["dtype"] = policy
        return type(layer).from_config(settings)

    copy = keras.models.clone_model(model, clone_function=copied)
    copy.set_weights(model.get_weights())
    return copy
