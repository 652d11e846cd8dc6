import numpy as np
import pandas as pd
from PIL import Image

from fruitveg_tl.config import PATHS
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import build_network
from fruitveg_tl.reporting import plots


def test_contact_sheet_shows_every_class_and_is_saved_the_same_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITVEG_HOME", str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    labels = ["pear", "apple", "kiwi"] * 3
    files = []
    for name in ("one", "two"):
        figure = plots.contact_sheet(pixels, labels, columns=3)
        shown = [axis.get_title(loc="left") for axis in figure.axes if axis.images]
        assert sorted(shown) == ["apple", "kiwi", "pear"]
        files.append(plots.save_figure(figure, name).read_bytes())
    assert files[0] == files[1]
    with Image.open(PATHS.runs / "figures" / "one.jpg") as image:
        assert image.format == "JPEG" and image.width < 2000


def test_a_figure_without_images_is_a_png(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITVEG_HOME", str(tmp_path))
    matrix = plots.confusion_matrix(np.eye(2, dtype=int), ["kiwi", "pear"])
    with Image.open(plots.save_figure(matrix, "matrix")) as image:
        assert image.format == "PNG"


def test_confusion_matrix_leaves_out_numbers_of_few_images_of_a_class():
    axis = plots.confusion_matrix(np.array([[99, 1], [2, 98]]), ["kiwi", "pear"]).axes[0]
    assert [text.get_text() for text in axis.texts] == ["99", "", "2", "98"]


def test_confusion_matrix_names_rows_and_columns_and_writes_images():
    axis = plots.confusion_matrix(np.array([[3, 0], [1, 2]]), ["kiwi", "pear"]).axes[0]
    assert [text.get_text() for text in axis.texts] == ["3", "", "1", "2"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["kiwi", "pear"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true class")


def test_learning_curves_join_both_phases_and_mark_the_second():
    stages = ["linear probe"] * 3 + ["fine-tuned"] * 2
    columns = ("loss", "val_loss", "accuracy", "val_accuracy")
    history = pd.DataFrame({"stage": stages} | dict.fromkeys(columns, range(5)))
    history["epoch"] = [0, 1, 2, 0, 1]
    axis = plots.learning_curves(history).axes[0]
    training, validation, mark = axis.lines
    assert training.get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert training.get_linestyle() != validation.get_linestyle()
    assert mark.get_xdata() == [3.5, 3.5]
    assert [text.get_text() for text in axis.texts] == ["linear probe", "fine-tuned"]
    first, second = (text.get_position()[1] for text in axis.texts)
    assert first < second  # side by side they may not fit


def test_drawing_shows_what_is_trained():
    network = build_network(BACKBONES["vgg16"], 3, 32)
    axis = plots.frozen_and_trained(network.model, network.frozen).axes[0]
    trained = [bar.get_facecolor()[:3] == plots.COLOURS[0] for bar in axis.patches]
    assert trained == [False] * 10 + [True] * 4  # blocks 1 to 4; block 5 and the head


def test_heat_darkens_what_did_not_count():
    white = np.full((1, 2, 2, 3), 255, np.uint8)
    shown = plots.heat(white, np.array([[[0.0, 1.0], [0.5, 1.0]]]))
    assert shown[0, 0, 1].tolist() == [1, 1, 1] and shown[0, 0, 0, 0] < shown[0, 1, 0, 0] < 1


def test_no_image_is_no_error():
    assert plots.image_grid([], []).axes


def test_dots_draw_every_number_there_is_by_row_and_column():
    table = pd.DataFrame({"A": [0.2, 0.5], "none": [0.4, None]}, index=["scratch", "transfer"])
    figure = plots.dots(table, "accuracy")
    axis = figure.axes[0]
    assert [line.get_xdata()[0] for line in axis.lines] == [0.2, 0.4]
    assert axis.lines[0].get_marker() != axis.lines[1].get_marker()
    assert [text.get_text() for text in axis.get_yticklabels()] == ["scratch", "transfer"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["A", "none"]


def test_bands_draw_every_curve_with_its_range_and_name():
    table = pd.DataFrame({"mean": [0.2, 0.5], "low": [0.1, 0.4], "high": [0.3, 0.6]}, index=[1, 20])
    figure = plots.bands({"transfer": table, "scratch": table / 2}, "images", "accuracy", True)
    axis = figure.axes[0]
    assert [line.get_ydata().tolist() for line in axis.lines] == [[0.2, 0.5], [0.1, 0.25]]
    assert axis.lines[0].get_linestyle() != axis.lines[1].get_linestyle()
    assert [text.get_text() for text in figure.legends[0].texts] == ["transfer", "scratch"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "20"]
    assert len(axis.collections) == 2 and axis.get_xscale() == "log"
