"""Image file to network input; `run` and `export` copy this file next to every network."""

import math

import numpy as np
from PIL import Image, ImageOps


def load_image(file, size: int, crop: float = 1.0) -> np.ndarray:
    """Return an image, given as a path or an open file, by `to_pixels`."""
    with Image.open(file) as image:
        return to_pixels(image, size, crop)


def to_pixels(image: Image.Image, size: int, crop: float = 1.0) -> np.ndarray:
    """Return an image as uint8 RGB (size, size, 3); ValueError if `check_depth` refuses it.

    Applies EXIF orientation, puts transparency on white, and scales the centre square (`crop` of
    the shorter side) by bicubic interpolation.
    """
    check_depth(image)
    image.draft("RGB", (math.ceil(size / crop),) * 2)  # decodes a large JPEG at a coarser scale
    upright = _to_rgb(ImageOps.exif_transpose(image))
    bleed = (1 - crop) / 2
    return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC, bleed))


def check_depth(image: Image.Image) -> None:
    """Raise a ValueError for TIFFs whose value of white is unknown: over 8 bits or not unsigned."""
    tags = getattr(image, "tag_v2", {})  # of TIFF: bits per sample, sample format (1 is unsigned)
    bits, kind = max(tags.get(258, (1,))), max(tags.get(339, (1,)))
    if bits > 8 or kind != 1:
        raise ValueError(f"{bits} bits a channel{', floating-point' if kind == 3 else ''}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] == "I":  # a 16-bit grey PNG, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
