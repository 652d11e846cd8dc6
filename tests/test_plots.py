import numpy as np
from PIL import Image

from fruitveg_tl import plots


def test_contact_sheet_shows_every_class_and_is_saved_the_same_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FIGURES_DIR", tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    labels = ["pear", "apple", "kiwi"] * 3
    files = []
    for name in ("one", "two"):
        figure = plots.contact_sheet(pixels, labels, columns=3)
        shown = [axis.get_title(loc="left") for axis in figure.axes if axis.images]
        assert sorted(shown) == ["apple", "kiwi", "pear"]
        files.append(plots.save_figure(figure, name).read_bytes())
    assert files[0] == files[1]
    with Image.open(tmp_path / "one.png") as image:
        assert image.width < 2000
