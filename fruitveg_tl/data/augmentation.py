"""Seeded random augmentation, by Keras layers, before any preprocessing."""

from fruitveg_tl.utils.backend import keras


def augmenter(seed: int) -> keras.Sequential:
    """Return the study's augmentation; call it with `training=True`.

    Horizontal flip, rotation, shift, zoom (mostly in), brightness, contrast, saturation and a
    little hue: what changes between images of the same fruit in two shops. No vertical flip:
    light comes from above.

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
            layers.RandomRotation(0.1, seed=seed + 1, **edge),
            layers.RandomTranslation(0.15, 0.15, seed=seed + 2, **edge),
            layers.RandomZoom((-0.5, 0.15), seed=seed + 3, **edge),
            # Of saturation 0.5 is neutral; hue stays close, for a lime is not a lemon.
            layers.RandomColorJitter((0, 255), 0.2, 0.3, (0.4, 0.6), 0.015, seed=seed + 4),
        ],
        name="augmentation",
    )
