"""Seeded random augmentation, by Keras layers, before any preprocessing."""

import keras


def augmenter(seed: int) -> keras.Sequential:
    """Return the study's augmentation; call it with `training=True`.

    Horizontal flip, rotation, zoom, shift, brightness and contrast: what changes between two
    photographs of the same fruit in a shop. No vertical flip: light comes from above.

    Args:
        seed: the same seed gives the same transformations for the same sequence of batches.

    Returns:
        a model from RGB (n, size, size, 3) in 0..255 to float32 of the same shape and range.
    """
    layers = keras.layers
    edge = {"fill_mode": "reflect"}
    return keras.Sequential(
        [
            layers.RandomFlip("horizontal", seed=seed),
            layers.RandomRotation(0.08, seed=seed + 1, **edge),
            layers.RandomZoom((-0.35, 0.1), seed=seed + 2, **edge),
            layers.RandomTranslation(0.1, 0.1, seed=seed + 3, **edge),
            layers.RandomBrightness(0.2, value_range=(0, 255), seed=seed + 4),
            layers.RandomContrast(0.2, value_range=(0, 255), seed=seed + 5),
        ],
        name="augmentation",
    )
