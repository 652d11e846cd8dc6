"""Images to pixels: decoded once into one uint8 array on disk, then memory-mapped."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from fruitveg_tl.data.preprocess import check_depth, load_image
from fruitveg_tl.utils.errors import InputError, first_line, printable
from fruitveg_tl.utils.progress import progress
from fruitveg_tl.utils.storage import new_array, new_file, own_folder

# What cameras and web pages give. An animation is several images, so no GIF.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "MPO")
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
            (Pillow's limit, 179 million pixels), an animation, of another kind than `FORMATS`, or
            of a depth that `preprocess.check_depth` refuses.
    """
    with _named(path), Image.open(path) as image:
        if image.format not in FORMATS:
            raise _Refused(f"its content is {image.format}, not an image in {', '.join(FORMATS)}")
        # A camera's MPO holds several views of one moment, of which the first is the image.
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise _Refused("it holds several images")
        try:
            check_depth(image)
        except ValueError as error:
            raise _Refused(str(error)) from None
        return image.width, image.height, image.mode


def decode(path: Path, size: int, crop: float = 1.0) -> np.ndarray:
    """Decode one image to a square of RGB pixels, see `preprocess.load_image`.

    Args:
        path: the image file.
        size: side of the result in pixels.
        crop: fraction of the shorter side that the square shows.

    Returns:
        uint8 array of shape (size, size, 3), RGB, 0 to 255.

    Raises:
        InputError: if `check_header` refuses the file, or it cannot be decoded to its last pixel.
    """
    check_header(path)
    with _named(path):
        return load_image(path, size, crop)


class _Refused(ValueError):
    """Says what an image is that is sound, and of no kind that is taken."""


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what goes wrong with an image file into one line with its name and the way out."""
    fix, convert = "replace or delete it", "save it as JPEG or PNG with 8 bits a channel"
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{printable(path)}: the file is empty; {fix}, then run again")
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{printable(path)}: not enough memory to decode it") from None
    except UnidentifiedImageError:
        kind = _kind_by_its_first_bytes(path)
        advice = f"its content is {kind}; {convert}, or {fix}" if kind else f"not an image; {fix}"
        raise InputError(f"{printable(path)}: {advice}, then run again") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{printable(path)}: over {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels; scale "
            "it down, then run again"
        ) from None
    except Exception as error:  # Pillow's readers raise nearly anything for damaged content
        text = first_line(error)
        if isinstance(error, OSError) and error.errno:  # the system's: of the file, not its content
            problem = f"cannot be opened ({error.strerror}); correct that"
        elif isinstance(error, _Refused):
            problem = f"{text}; {convert}, or delete it"
        else:
            problem = f"damaged or truncated ({text}); {fix}"
        raise InputError(f"{printable(path)}: {problem}, then run again") from None


def _kind_by_its_first_bytes(path: Path) -> str | None:
    """Name what Pillow could not open, if it is an image all the same."""
    with path.open("rb") as file:
        start = file.read(12)
    if start[4:8] == b"ftyp":
        return "HEIC"  # a phone's
    damaged = "damaged, or of an unusual depth"
    if start[:3] == b"\xff\xd8\xff":
        return f"a JPEG, {damaged}"
    return f"a TIFF, {damaged}" if start[:3] in (b"II*", b"MM\0", b"II+") else None


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
        own_folder(file.parent)
        with new_file(file) as temporary:
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
