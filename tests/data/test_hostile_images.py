"""Every odd file either works or is named in one line with the way out: never a traceback."""

import io
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from conftest import problems, save_image, unprivileged
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fruitveg_tl import cli
from fruitveg_tl.data import registry
from fruitveg_tl.data.images import FORMATS, check_header, decode
from fruitveg_tl.utils.errors import InputError

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def bomb(side: int) -> bytes:
    """A PNG of side² white pixels in a few hundred kilobytes."""
    pack = zlib.compressobj(9)
    data = b"".join(pack.compress(bytes(1 + side // 8)) for _ in range(side)) + pack.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(IMAGE, "JPEG", exif=exif)


JPEG, PNG = encoded(IMAGE, "JPEG"), encoded(IMAGE, "PNG")

# name of the file, its content
GOOD = {
    "palette PNG": ("a.png", encoded(IMAGE.convert("P"), "PNG")),
    "16-bit PNG": ("a.png", encoded(Image.new("I;16", (40, 40), 999), "PNG")),
    "PNG with alpha": ("a.png", encoded(IMAGE.convert("RGBA"), "PNG")),
    "1-bit PNG": ("a.png", encoded(IMAGE.convert("1"), "PNG")),
    "CMYK JPEG": ("a.jpg", encoded(IMAGE.convert("CMYK"), "JPEG")),
    "grey JPEG": ("a.jpg", encoded(IMAGE.convert("L"), "JPEG")),
    "turned JPEG": ("a.jpg", turned()),
    "one pixel": ("a.png", encoded(Image.new("RGB", (1, 1)), "PNG")),
    "a thin line": ("a.png", encoded(Image.new("RGB", (1, 3000)), "PNG")),
    "PNG named .jpg": ("a.jpg", PNG),
    "no ending": ("image", JPEG),
    "name with spaces": ("a red apple.jpg", JPEG),
    "name with quotes": ("\"a\" 'b'.jpg", JPEG),
    "name in Unicode": ("яблоко 🍎.jpg", JPEG),
    "name with a newline": ("a\nb.jpg", JPEG),
    "name with a comma": ("a,b.jpg", JPEG),
    "name like an option": ("--help.jpg", JPEG),
    "large": ("a.png", bomb(9000)),
}
BAD = {
    "truncated JPEG": ("x.jpg", JPEG[:-300]),
    "truncated PNG": ("x.png", PNG[: len(PNG) // 2]),
    "header alone": ("x.jpg", JPEG[:200]),
    "no bytes": ("x.jpg", b""),
    "text": ("x.jpg", b"Dear diary"),
    "HTML": ("x.jpg", b"<html><body>404 Not Found</body></html>"),
    "zip": ("x.jpg", b"PK\x03\x04" + bytes(100)),
    "animated GIF": ("x.gif", animation("GIF")),
    "animated WebP": ("x.webp", animation("WEBP")),
    "animated PNG": ("x.png", animation("PNG")),
    "GIF named .jpg": ("x.jpg", encoded(IMAGE, "GIF")),
    "decompression bomb": ("x.png", bomb(20_000)),
    "newline in a bad name": ("x\ny.jpg", b""),
    "a name that is not UTF-8": (b"x\xff.jpg", JPEG),
}


def put(images, name: str | bytes, content: bytes) -> bytes:
    file = os.fsencode(images / "train" / "apple") + b"/" + os.fsencode(name)
    with open(file, "wb") as target:  # noqa: PTH123 (names that are not UTF-8)
        target.write(content)
    return file


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.reliability("odd images that work")
def test_odd_images_work(images, home, kind):
    file = os.fsdecode(put(images, *GOOD[kind]))
    dataset = registry.load(str(images))
    assert len(dataset.index) == 46
    pixels = dataset.pixels(32)
    row = dataset.index["path"].tolist().index(os.path.relpath(file, images))
    np.testing.assert_array_equal(pixels[row], decode(images / file, 32))


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.reliability("bad images, each named in one line")
def test_bad_images_are_named_in_one_line(images, home, capsys, kind):
    put(images, *BAD[kind])
    assert refused(images, capsys).startswith("error: ")


def refused(images, capsys) -> str:
    """Run, and return the one line on standard error."""
    arguments = ["--dataset", str(images), "--backbones", "vgg16", "--weights", "random"]
    code = cli.main(["run", *arguments, "--size", "32"])
    errors = problems(capsys.readouterr().err)
    assert code == 2 and len(errors) == 1, errors
    assert str(images) in errors[0]
    return errors[0]


def dangling(file, images):
    file.symlink_to(images / "nowhere.jpg")


def loop(file, images):
    file.symlink_to(file)


def pipe(file, images):
    os.mkfifo(file)


@pytest.mark.parametrize("make", [dangling, loop, pipe], ids=lambda make: make.__name__)
@pytest.mark.reliability("bad images, each named in one line")
def test_what_is_no_file_is_named_and_never_waited_for(images, home, capsys, make):
    make(images / "train" / "apple" / "x.jpg", images)
    assert "x.jpg" in refused(images, capsys)


@pytest.mark.reliability("bad images, each named in one line")
def test_a_image_that_may_not_be_read(open_folder):
    file = save_image(open_folder / "x.jpg", 0, 0)
    file.chmod(0)
    with unprivileged(), pytest.raises(InputError, match=r"x\.jpg: cannot be opened \(Permission"):
        check_header(file)


@pytest.mark.reliability("odd images that work")
def test_links_to_images_and_loops_of_folders(images, home):
    folder = images / "train" / "apple"
    (folder / "linked.jpg").symlink_to(folder / "0.jpg")
    (folder / "again").symlink_to(images / "train", target_is_directory=True)
    assert len(registry.load(str(images)).index) == 46


def empty_class(root):
    for split in ("train", "validation", "test"):
        (root / split / "durian").mkdir()


def one_class(root):
    for split in ("train", "validation", "test"):
        for name in ("banana", "cherry"):
            shutil.rmtree(root / split / name)


def class_in_one_split(root):
    shutil.copytree(root / "train" / "apple", root / "train" / "durian")


def no_validation(root):
    shutil.rmtree(root / "validation")


def one_of_each(root):
    for split in ("validation", "test"):
        shutil.rmtree(root / split)
    for folder in (root / "train").iterdir():
        folder.rename(root / folder.name)
        for file in sorted((root / folder.name).iterdir())[1:]:
            file.unlink()
    (root / "train").rmdir()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (empty_class, "no image of 'durian'"),
        (one_class, "only one class, 'apple'"),
        (class_in_one_split, "'durian' has no images in"),
        (no_validation, "no folder for val"),
        (one_of_each, "too few images"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.reliability("odd sets of classes")
def test_sets_that_cannot_be_studied(images, home, make, named):
    make(images)
    with pytest.raises(InputError, match=named):
        registry.load(str(images))


@pytest.mark.reliability("odd sets of classes")
def test_a_thousand_classes_of_one_image_in_each_split(tmp_path, home):
    for split in ("train", "val", "test"):
        for number in range(1000):
            folder = tmp_path / "many" / split / f"class {number:04d}"
            folder.mkdir(parents=True)
            (folder / "a.jpg").write_bytes(JPEG)
    dataset = registry.load(str(tmp_path / "many"))
    assert len(dataset.classes) == 1000 and dataset.targets.max() == 999
    assert dataset.pixels(32).shape == (3000, 32, 32, 3)


CHANGES = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "double"]), st.integers(0), st.binary()),
    min_size=1,
    max_size=4,
)
EXAMPLES = 60


def mutated(content: bytes, changes) -> bytes:
    for change, place, value in changes:
        at = place % max(1, len(content))
        if change == "set":
            content = content[:at] + value + content[at + len(value) :]
        elif change == "cut":
            content = content[:at]
        elif change == "insert":
            content = content[:at] + value + content[at:]
        else:
            content = content[:at] + content[at : at + 64] + content[at:]
    return content


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "MPO"])
@pytest.mark.reliability("images with mutated bytes")
def test_mutated_bytes_never_give_more_than_an_input_error(tmp_path, kind, tried):
    whole, file = encoded(IMAGE, kind), tmp_path / "x"

    @given(CHANGES)
    @settings(max_examples=EXAMPLES, derandomize=True)
    def one(changes):
        file.write_bytes(mutated(whole, changes))
        try:
            assert decode(file, 32).shape == (32, 32, 3)
        except InputError as error:
            assert str(file) in str(error) and "\n" not in str(error)

    one()
    tried(EXAMPLES)
