"""Images to pixels: decoded once into one uint8 array on disk, then memory-mapped."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fruitveg_tl.utils.errors import InputError, printable
from fruitveg_tl.utils.progress import progress
from fruitveg_tl.utils.storage import atomic_path, new_array

# What cameras and web pages give. An animation is several images, so no GIF.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "MPO")
DEPTHS = (8, 10, 12, 14, 16)  # bits of a grey value
# What image files are called, also those of kinds that are refused.
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, kind in Image.registered_extensions().items()
    if kind in (*FORMATS, "GIF", "AVIF")
) | {".heic", ".heif"}
WORKERS = 4

T = TypeVar("T")


def check_header(path: Path) -> tuple[int, int, str]:
    """Return (width, height, mode) of an image file without decoding its pixels.

    Raises:
        InputError: if the file is missing, empty, not an image, too large to be an image
            (Pillow's limit, 179 million pixels), an animation, or of another kind than `FORMATS`.
    """
    fix = "replace or delete it, then run again"
    convert = "convert it (to JPEG or PNG) or delete it, then run again"
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{printable(path)}: the file is empty; {fix}")
        with Image.open(path) as image:
            if image.format not in FORMATS:
                raise InputError(
                    f"{printable(path)}: its content is {image.format}, not an image in "
                    f"{', '.join(FORMATS)}; {convert}"
                )
            # A camera's MPO holds several views of one moment, of which the first is the image.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise InputError(f"{printable(path)}: it holds several images; {convert}")
            return image.width, image.height, image.mode
    except InputError:
        raise
    except UnidentifiedImageError:
        if path.open("rb").read(12)[4:8] == b"ftyp":  # a phone's HEIC or HEIF
            raise InputError(f"{printable(path)}: its content is HEIC; {convert}") from None
        raise InputError(f"{printable(path)}: not an image; {fix}") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{printable(path)}: over {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels; scale "
            "it down, then run again"
        ) from None
    except Exception as error:  # Pillow's readers raise nearly anything for damaged content
        raise InputError(f"{printable(path)}: cannot be read ({_reason(error)}); {fix}") from None


def decode(path: Path, size: int, crop: float = 1.0) -> np.ndarray:
    """Decode one image to a square of RGB pixels.

    The EXIF orientation is applied, transparency is laid on white, palette, grey and CMYK become
    RGB; then the shorter side is scaled to `size` and the centre is cropped, so that the aspect
    ratio is kept (the usual evaluation crop; never a squeeze).

    Args:
        path: the image file.
        size: side of the result in pixels.
        crop: fraction of the shorter side that the square shows.

    Returns:
        uint8 array of shape (size, size, 3), RGB, 0 to 255.

    Raises:
        InputError: if the file cannot be decoded to its last pixel.
    """
    check_header(path)
    try:
        with Image.open(path) as image:
            # A JPEG is read at the coarsest scale that still has the pixels the square shows.
            image.draft("RGB", (math.ceil(size / crop),) * 2)
            upright = _to_rgb(ImageOps.exif_transpose(image))
            edge = (1 - crop) / 2
            square = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC, bleed=edge)
            return np.asarray(square)
    except _UnknownDepth as error:
        raise InputError(
            f"{printable(path)}: {error}; save it with 8 bits a channel (as JPEG or PNG) or delete "
            "it, then run again"
        ) from None
    except Exception as error:  # as in check_header
        raise InputError(
            f"{printable(path)}: damaged or truncated ({_reason(error)}); "
            "replace or delete it, then run again"
        ) from None


def _reason(error: Exception) -> str:
    # Without the path, which Pillow and the system may repeat.
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.splitlines() or [type(error).__name__])[0]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Scale grey values of another depth to uint8; Pillow would clip them at 255.

    Whole numbers are taken for the smallest of the usual depths that holds the largest of them
    (scientific cameras store 12 bits in 16); fractions for 0 to 1, or else for 0 to 255.

    Raises:
        _UnknownDepth: if the values fit none of these.
    """
    low, high = grey.min(), grey.max()
    if grey.dtype.kind == "f" and high <= 1:
        most = 1
    else:
        most = next((2**bits - 1 for bits in DEPTHS if high < 2**bits), None)
    if most is None or not low >= 0:
        raise _UnknownDepth(f"grey values from {low} to {high} ({grey.dtype})")
    return np.rint(grey.astype(np.float64) * 255 / most).astype(np.uint8)


class _UnknownDepth(ValueError):
    """Pixels whose range says nothing of what is black and what is white."""


def map_files(function: Callable[[Path], T], paths: Sequence[Path], what: str) -> list[T]:
    """Apply `function` to every path on a few threads, with a progress bar, keeping the order.

    Raises:
        InputError: with the lines of all files that failed (the first 20), not just the first.
    """
    problems = []

    def guarded(path: Path) -> T | None:
        try:
            return function(path)
        except InputError as error:
            problems.append(str(error))
            return None

    with ThreadPoolExecutor(WORKERS) as pool:
        results = list(progress(what, len(paths), pool.map(guarded, paths)))
    if problems:
        more = [f"… and {len(problems) - 20} more files"] if len(problems) > 20 else []
        raise InputError("\n".join(sorted(problems)[:20] + more))
    return results


def pixel_array(paths: Sequence[Path], size: int, file: Path, crop: float = 1.0) -> np.ndarray:
    """Return all images as one memory-mapped array, decoding them on the first call.

    Args:
        paths: the images, in the order of the index.
        size: side of every square in pixels.
        file: where the array lives; its name must identify the images, `size` and
            `crop`.
        crop: see `decode`.

    Returns:
        read-only uint8 array of shape (len(paths), size, size, 3), RGB.

    Raises:
        InputError: naming every file that cannot be decoded; nothing is left on disk then.
    """
    if not file.exists():
        with atomic_path(file) as temporary:
            _decode_all(paths, size, temporary, crop)
    return np.load(file, mmap_mode="r")


def _decode_all(paths: Sequence[Path], size: int, file: Path, crop: float) -> None:
    # A function of its own: Windows renames no file that is still mapped.
    pixels = new_array(file, np.uint8, (len(paths), size, size, 3))
    rows = {path: row for row, path in enumerate(paths)}

    def fill(path: Path) -> None:
        pixels[rows[path]] = decode(path, size, crop)

    map_files(fill, paths, "decode images")
    pixels.flush()
