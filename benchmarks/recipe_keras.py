"""The usual recipe in Keras: the guide's (keras.io/guides/transfer_learning), written plainly.

`image_dataset_from_directory`, augmentation and preprocessing as layers, the frozen base called
with `training=False`, `fit` for the head, then the same layers unfrozen as in this package and
`fit` at a low rate. Every epoch sends every image through the whole network.
"""

import time
from pathlib import Path

import keras
from harness import start

from fruitveg_tl.models import backbones, weights

SIZE = 224


def train(root: str, backbone: str, epochs: int) -> dict[str, list[float]]:
    """Train so many epochs in each phase; return seconds of each epoch and of the evaluation."""
    entry = backbones.BACKBONES[backbone]
    keras.utils.set_random_seed(0)
    parts = {
        split: keras.utils.image_dataset_from_directory(
            Path(root) / split,
            image_size=(SIZE, SIZE),
            crop_to_aspect_ratio=True,
            shuffle=split == "train",
            seed=0,
            verbose=False,
        )
        for split in ("train", "validation", "test")
    }
    base = entry.constructor(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
    base.set_weights(weights.resolve(entry).values)
    base.trainable = False
    inputs = keras.Input((SIZE, SIZE, 3))
    x = entry.preprocess_input(_augmentation()(inputs))
    x = keras.layers.GlobalAveragePooling2D()(base(x, training=False))
    classes = len(parts["train"].class_names)
    outputs = keras.layers.Dense(classes, "softmax")(keras.layers.Dropout(0.2)(x))
    model = keras.Model(inputs, outputs)
    names = [layer.name for layer in base.layers]
    phases = {"head": (1e-3, len(names)), "fine-tuning": (1e-5, names.index(entry.boundary) + 1)}
    seconds = {}
    for phase, (rate, boundary) in phases.items():
        base.trainable = boundary < len(names)
        for position, layer in enumerate(base.layers):
            norm = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = position >= boundary and not norm
        model.compile(
            keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        clock = _Clock()
        model.fit(
            parts["train"],
            validation_data=parts["validation"],
            epochs=epochs,
            verbose=0,
            callbacks=[clock],
        )
        seconds[phase] = clock.seconds
    begin = time.perf_counter()
    model.evaluate(parts["test"], verbose=0)
    return seconds | {"test": [time.perf_counter() - begin]}


def _augmentation() -> keras.Sequential:
    """What this package does to images in one step, by Keras' layers."""
    layers, edge = keras.layers, {"fill_mode": "reflect"}
    return keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(0.1, **edge),
            layers.RandomTranslation(0.15, 0.15, **edge),
            layers.RandomZoom((-0.5, 0.15), **edge),
            layers.RandomColorJitter((0, 255), 0.2, 0.3, (0.4, 0.6), 0.015),
        ]
    )


class _Clock(keras.callbacks.Callback):
    """Notes how long each epoch takes, its validation included."""

    def on_train_begin(self, logs=None) -> None:
        self.seconds, self.last = [], time.perf_counter()

    def on_epoch_end(self, epoch, logs=None) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


if __name__ == "__main__":
    start(lambda: None, train)
