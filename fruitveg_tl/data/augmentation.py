"""Seeded random augmentation, before any preprocessing."""

import math

from fruitveg_tl.utils.backend import keras

# Ranges of the random parameters; cache names depend on them.
RANGES = {
    "turn": (-0.1, 0.1),  # of a full turn
    "shift": (-0.15, 0.15),  # of the side, across and down
    "zoom": (0.5, 1.15),  # visible fraction of the side; drawn log-uniformly
    "brightness": (-0.2, 0.2),  # added, of the range
    "contrast": (0.7, 1.3),  # about the mean of the image
    "saturation": (2 / 3, 3 / 2),  # drawn log-uniformly
    "hue": (-0.015, 0.015),  # of the colour circle: a lime is not a lemon
}
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in brightness (ITU-R BT.601)


def augmenter(seed: int) -> keras.layers.Layer:
    """Return the study's augmentation with this seed; call it with `training=True`."""
    return _Augmentation(seed)


class _Augmentation(keras.layers.Layer):
    """One affine transform and one colour matrix per image, from `RANGES`.

    RGB (n, size, size, 3) in 0..255 becomes float32 of the same shape and range. The same seed and
    the same sequence of batches give the same result. No vertical flip: light comes from above. A
    chain of Keras layers takes four times as long, and blurs by resampling three times.
    """

    def __init__(self, seed: int):
        super().__init__(name="augmentation", trainable=False)
        self.seed = keras.random.SeedGenerator(seed)

    def call(self, images, training=False):
        images = keras.ops.cast(images, "float32")
        return self._recoloured(self._moved(images)) if training else images

    def _moved(self, images):
        """Rotate, shift, scale and mirror each image about its centre."""
        ops = keras.ops
        side = ops.cast(ops.shape(images)[1], "float32")
        angle = 2 * math.pi * self._drawn(images, "turn")
        scale = self._drawn(images, "zoom", log=True)
        mirror = ops.sign(keras.random.uniform(ops.shape(angle), -1, 1, seed=self.seed))
        across, down = (side * self._drawn(images, "shift") for _ in range(2))
        # The result at (x, y) is the image at (a x + b y + c, d x + e y + f).
        a, b = scale * ops.cos(angle) * mirror, -scale * ops.sin(angle)
        d, e = scale * ops.sin(angle) * mirror, scale * ops.cos(angle)
        centre, none = (side - 1) / 2, ops.zeros_like(a)
        c, f = centre * (1 - a - b) + across, centre * (1 - d - e) + down
        places = ops.stack([a, b, c, d, e, f, none, none], axis=1)
        return ops.image.affine_transform(images, places, "bilinear", "reflect")

    def _recoloured(self, images):
        """Change the colours of each image by one matrix and one shift."""
        ops = keras.ops
        grey = ops.tile(ops.reshape(ops.convert_to_tensor(LUMA), (1, 1, 3)), (1, 3, 1))
        saturation = self._drawn(images, "saturation", log=True)[:, None, None]
        colours = ops.matmul(
            _hue_rotation(2 * math.pi * self._drawn(images, "hue")),
            saturation * ops.eye(3)[None] + (1 - saturation) * grey,
        )
        contrast = self._drawn(images, "contrast")[:, None, None]
        pixels = ops.reshape(images, (ops.shape(images)[0], -1, 3))
        mean = ops.mean(pixels, axis=(1, 2), keepdims=True)
        added = 255 * self._drawn(images, "brightness")[:, None, None]
        changed = ops.matmul(pixels, ops.transpose(contrast * colours, (0, 2, 1)))
        changed = changed + (1 - contrast) * mean + added
        return ops.reshape(ops.clip(changed, 0, 255), ops.shape(images))

    def _drawn(self, images, name: str, log: bool = False):
        """Draw a number from its range for each image, uniformly or log-uniformly."""
        low, high = map(math.log, RANGES[name]) if log else RANGES[name]
        shape = (keras.ops.shape(images)[0],)
        number = keras.random.uniform(shape, low, high, seed=self.seed)
        return keras.ops.exp(number) if log else number


def _hue_rotation(angle):
    """Return matrices (n, 3, 3) that rotate colours about the grey axis (Rodrigues 1840)."""
    ops = keras.ops
    cos, sin = ops.cos(angle), ops.sin(angle) / math.sqrt(3)
    rest = (1 - cos) / 3
    on, right, left = cos + rest, rest - sin, rest + sin
    rows = [[on, right, left], [left, on, right], [right, left, on]]
    return ops.stack([ops.stack(row, axis=1) for row in rows], axis=1)
