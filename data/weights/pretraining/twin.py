"""A `keras.applications` network as a PyTorch module with the same function, and back.

On a processor PyTorch trains these networks two to six times as fast as TensorFlow, most of all in
bfloat16. The twin is made from the Keras graph itself, so that it is the same architecture to the
last padding, and what it has learnt goes back into an unchanged Keras model.
"""

import keras
import numpy as np
import torch
from torch import nn
from torch.nn import functional

FOLDED = 1e-3  # epsilon of the BatchNorm that a network without one is trained with


class Twin(nn.Module):
    """A functional Keras model's layers in PyTorch; (n, 3, h, w) in, channels first.

    Args:
        model: without top; made of the layers that VGG16, ResNet50 and MobileNetV2 are made of.
        normalised: put BatchNorm behind every convolution that has none before its activation, as
            VGG16 needs for training in few steps; `hand_back` folds it away.

    Raises:
        TypeError: if a layer is of another kind.
    """

    def __init__(self, model: keras.Model, normalised: bool = False):
        super().__init__()
        self.graph, self.layers = [], nn.ModuleDict()
        for layer in model.layers:
            if isinstance(layer, keras.layers.InputLayer):
                self.first = layer.name
                continue
            sources = [source._keras_history[0].name for source in _inputs(layer)]
            self.graph.append((layer.name, sources))
            self.layers[layer.name] = _twin(layer, normalised)

    def forward(self, x: torch.Tensor, names: list[str]) -> list[torch.Tensor]:
        """Return the outputs of the named layers."""
        found = {self.first: x}
        for name, sources in self.graph:
            values = [found[source] for source in sources]
            layer = self.layers[name]
            found[name] = sum(values) if isinstance(layer, Added) else layer(*values)
        return [found[name] for name in names]

    @torch.no_grad()
    def estimate_batch_norm_statistics(self, x: torch.Tensor) -> None:
        """Let what `normalised` added take over the statistics of images, (n, 3, h, w).

        Untouched it would rescale every channel in the first training step, and undo what the
        weights know; with estimated statistics it predicts in training mode as the Keras model
        does.
        """

        def take_over(norm, inputs):
            variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
            norm.weight.copy_((variance + FOLDED).sqrt())
            norm.bias.add_(mean)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

        added = [parts[1] for parts in self.layers.values() if isinstance(parts, Normalised)]
        hooks = [norm.register_forward_pre_hook(take_over) for norm in added]
        self.eval()(x, [self.graph[-1][0]])
        for hook in hooks:
            hook.remove()

    def hand_back(self, model: keras.Model) -> None:
        """Give the Keras model the twin's weights, folding what `normalised` added."""
        for name, _ in self.graph:
            values = _values(self.layers[name])
            if values:
                model.get_layer(name).set_weights(values)


class Added(nn.Module):
    """Stands for a sum of layers."""


class Normalised(nn.Sequential):
    """A convolution, the BatchNorm put behind it, and its activation."""


class SamePadded(nn.Module):
    """A convolution with TensorFlow's "same" padding: one more pixel below and to the right."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution = convolution

    def forward(self, x):
        """Pad and convolve."""
        pads = []
        for length, kernel, stride in zip(
            x.shape[:1:-1], self.convolution.kernel_size, self.convolution.stride, strict=True
        ):
            extra = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            pads += [extra // 2, extra - extra // 2]
        return self.convolution(functional.pad(x, pads) if any(pads) else x)


def _inputs(layer: keras.Layer) -> list:
    inputs = layer.input
    return inputs if isinstance(inputs, list) else [inputs]


def _twin(layer: keras.Layer, normalised: bool) -> nn.Module:
    kinds = keras.layers
    if isinstance(layer, (kinds.DepthwiseConv2D, kinds.Conv2D)):
        return _convolution(layer, normalised)
    if isinstance(layer, kinds.BatchNormalization):
        norm = nn.BatchNorm2d(layer.gamma.shape[0], layer.epsilon)
        for ours, theirs in zip(_state(norm), layer.get_weights(), strict=True):
            ours.data.copy_(torch.from_numpy(theirs))
        return norm
    if isinstance(layer, kinds.ZeroPadding2D):
        (top, bottom), (left, right) = layer.padding
        return nn.ZeroPad2d((left, right, top, bottom))
    if isinstance(layer, kinds.MaxPooling2D):
        return nn.MaxPool2d(layer.pool_size, layer.strides)
    if isinstance(layer, kinds.Add):
        return Added()
    if isinstance(layer, (kinds.ReLU, kinds.Activation)):  # in these networks all of them are ReLU
        return nn.ReLU6() if getattr(layer, "max_value", None) else nn.ReLU()
    raise TypeError(f"{layer.name}: no twin for a layer of this kind")


def _convolution(layer, normalised: bool) -> nn.Module:
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    kernel = layer.kernel.shape
    channels = kernel[2] if depthwise else kernel[3]
    fold = normalised and layer.activation is keras.activations.relu
    convolution = nn.Conv2d(
        kernel[2],
        channels,
        kernel[:2],
        layer.strides,
        groups=channels if depthwise else 1,
        bias=layer.use_bias and not fold,
    )
    values = layer.get_weights()
    convolution.weight.data.copy_(torch.from_numpy(_turned(values[0], depthwise)))
    if convolution.bias is not None:
        convolution.bias.data.copy_(torch.from_numpy(values[1]))
    if layer.padding == "same" and kernel[0] > 1:
        if layer.strides == (1, 1):
            convolution.padding = (kernel[0] // 2, kernel[1] // 2)
        else:
            convolution = SamePadded(convolution)
    if layer.activation is not keras.activations.relu:
        return convolution
    if not fold:
        return nn.Sequential(convolution, nn.ReLU())
    norm = nn.BatchNorm2d(channels, FOLDED)  # adds the bias, and nothing else so far
    norm.bias.data.copy_(torch.from_numpy(values[1]))
    norm.running_var.fill_(1 - FOLDED)
    return Normalised(convolution, norm, nn.ReLU())


def _turned(kernel: np.ndarray, depthwise: bool) -> np.ndarray:
    """Turn a kernel from Keras' order of axes to PyTorch's."""
    return np.ascontiguousarray(kernel.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1)))


def _values(layer: nn.Module) -> list[np.ndarray]:
    """Return a layer's weights as its Keras layer wants them."""
    parts = [part for part in layer.modules() if isinstance(part, (nn.Conv2d, nn.BatchNorm2d))]
    if not parts:
        return []
    first = parts[0]
    if isinstance(first, nn.BatchNorm2d):
        return [_array(value) for value in _state(first)]
    depthwise = first.groups > 1
    kernel = _array(first.weight).transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    if len(parts) > 1:
        gamma, beta, mean, variance = _values(parts[1])
        factor = gamma / np.sqrt(variance + FOLDED)
        return [kernel * factor, beta - mean * factor]
    return [kernel] + ([_array(first.bias)] if first.bias is not None else [])


def _state(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
