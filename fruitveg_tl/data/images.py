"""Images to pixels: decoded once into one uint8 array on disk, then memory-mapped."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from fruitveg_tl.data.preprocess import check_depth, load_image
from fruitveg_tl.utils.errors import InputError, first_line, printable
from fruitveg_tl.utils.progress import progress
from fruitveg_tl.utils.storage import new_array, new_file, own_folder

# Formats of cameras and web pages. No GIF: it may be an animation.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "MPO")
# Suffixes of image files, refused formats included.
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, kind in Image.registered_extensions().items()
    if kind in (*FORMATS, "GIF", "AVIF")
) | {".heic", ".heif"}
WORKERS = 4

T = TypeVar("T")
Source = Path | bytes  # an image file, or its content


def check_header(source: Source) -> tuple[int, int, str]:
    """Return (width, height, mode) of an image without decoding its pixels.

    Raises InputError if it is missing, empty, not in `FORMATS`, an animation, over 179 million
    pixels, or of a depth that `preprocess.check_depth` refuses.
    """
    with _named(source), Image.open(_opened(source)) as image:
        if image.format not in FORMATS:
            raise _Refused(f"its content is {image.format}, not an image in {', '.join(FORMATS)}")
        # An MPO holds several views of one scene; the first is the image.
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise _Refused("it holds several images")
        try:
            check_depth(image)
        except ValueError as error:
            raise _Refused(str(error)) from None
        return image.width, image.height, image.mode


def decode(source: Source, size: int, crop: float = 1.0) -> np.ndarray:
    """Decode one image by `load_image` to uint8 (size, size, 3), or raise InputError saying why."""
    check_header(source)
    with _named(source):
        return load_image(_opened(source), size, crop)


def _opened(source: Source) -> Path | BytesIO:
    return BytesIO(source) if isinstance(source, bytes) else source


class _Refused(ValueError):
    """An intact image of an unsupported kind."""


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Turn every error of an image file into one line with its name and a remedy."""
    fix, convert = "replace or delete it", "save it as JPEG or PNG with 8 bits a channel"
    in_memory = isinstance(source, bytes)
    name = "the image" if in_memory else printable(source)
    try:
        if not (len(source) if in_memory else source.stat().st_size):
            raise InputError(f"{name}: the file is empty; {fix}, then run again")
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{name}: not enough memory to decode it") from None
    except UnidentifiedImageError:
        kind = _kind_by_its_first_bytes(source)
        advice = f"its content is {kind}; {convert}, or {fix}" if kind else f"not an image; {fix}"
        raise InputError(f"{name}: {advice}, then run again") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{name}: over {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels; scale "
            "it down, then run again"
        ) from None
    except Exception as error:  # Pillow raises many kinds for damaged content
        text = first_line(error)
        if isinstance(error, OSError) and error.errno:  # the system's: of the file, not its content
            problem = f"cannot be opened ({error.strerror}); correct that"
        elif isinstance(error, _Refused):
            problem = f"{text}; {convert}, or delete it"
        else:
            problem = f"damaged or truncated ({text}); {fix}"
        raise InputError(f"{name}: {problem}, then run again") from None


def _kind_by_its_first_bytes(source: Source) -> str | None:
    """Name the format of an image that Pillow cannot open; None if it is not an image."""
    if isinstance(source, bytes):
        start = source[:12]
    else:
        with source.open("rb") as file:
            start = file.read(12)
    if start[4:8] == b"ftyp":
        return "HEIC"  # a phone's
    damaged = "damaged, or of an unusual depth"
    if start[:3] == b"\xff\xd8\xff":
        return f"a JPEG, {damaged}"
    return f"a TIFF, {damaged}" if start[:3] in (b"II*", b"MM\0", b"II+") else None


def map_files(function: Callable[[Path], T], paths: Sequence[Path], what: str) -> list[T]:
    """Apply `function` to every path in `WORKERS` threads, with a progress bar, in order.

    Raises InputError if any file fails, with one line for each of the first 20.
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
    """Return all images as one read-only memory map, uint8 (len(paths), size, size, 3), RGB.

    The first call decodes them. The name of `file` must identify the images, `size` and `crop`.
    Raises InputError, and stores nothing, if an image cannot be decoded.
    """
    if not file.exists():
        own_folder(file.parent)
        with new_file(file) as temporary:
            _decode_all(paths, size, temporary, crop)
    return np.load(file, mmap_mode="r")


def _decode_all(paths: Sequence[Path], size: int, file: Path, crop: float) -> None:
    # A separate function: Windows cannot rename a file that is still mapped.
    pixels = new_array(file, np.uint8, (len(paths), size, size, 3))
    rows = {path: row for row, path in enumerate(paths)}

    def fill(path: Path) -> None:
        pixels[rows[path]] = decode(path, size, crop)

    map_files(fill, paths, "decode images")
    pixels.flush()
