"""From an image file to the pixels that a network takes; copied beside every saved network."""

import math

import numpy as np
from PIL import Image, ImageOps


def load_image(file, size: int, crop: float = 1.0) -> np.ndarray:
    """Return an image, given by its path or as an open file, as uint8 RGB (size, size, 3).

    EXIF orientation is applied, transparency is laid on white, and the centre square that is
    `crop` of the shorter side is scaled by bicubic interpolation.

    Raises:
        ValueError: if it has more than 8 bits a channel and is no PNG; see `check_depth`.
    """
    with Image.open(file) as image:
        check_depth(image)
        image.draft("RGB", (math.ceil(size / crop),) * 2)  # decodes a large JPEG at a coarser scale
        upright = _to_rgb(ImageOps.exif_transpose(image))
        bleed = (1 - crop) / 2
        return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC, bleed))


def check_depth(image: Image.Image) -> None:
    """Raise a ValueError that names a depth of which the file does not say what is white."""
    tags = getattr(image, "tag_v2", {})  # of TIFF: bits per sample, sample format (1 is unsigned)
    bits, kind = max(tags.get(258, (1,))), max(tags.get(339, (1,)))
    if bits > 8 or kind != 1:
        raise ValueError(f"{bits} bits a channel{', floating-point' if kind == 3 else ''}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] == "I":  # a grey PNG of 16 bits, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
