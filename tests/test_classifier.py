"""A trained network in a program: every kind of image, many threads, no TensorFlow."""

import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer

import keras
import numpy as np
import pytest
from conftest import PROJECT, load_run, process_environment, save_image
from PIL import Image

from fruitveg_tl import Classifier
from fruitveg_tl.export import FORMATS, export
from fruitveg_tl.models.compiled import CONFIDENCE
from fruitveg_tl.training.inference import OPENVINO, save_openvino
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.storage import record_hashes


@pytest.fixture
def folder(finished, monkeypatch):
    """A run whose network tells the strongest channel; what it is sure of is 0.6 and more."""
    monkeypatch.setenv("FRUITVEG_ENGINE", OPENVINO)
    layers = [keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*layers, keras.layers.Dense(3, "softmax", name="head")])
    model.set_weights([np.eye(3) / 30, np.zeros(3)])
    model.save(finished / "model.keras")
    record_hashes(finished / "model.keras", *save_openvino(model, finished))
    known = {"min_confidence": 0.6, "coverage": 0.9, "precision": 0.95, "images": 9}
    (finished / CONFIDENCE).write_text(json.dumps(known))
    return finished


@pytest.fixture
def photos(tmp_path):
    """Nine images; the class of number i is i % 3."""
    return [save_image(tmp_path / "photos" / f"{i}.png", i % 3, i) for i in range(9)]


def test_an_image_may_be_a_path_bytes_a_picture_or_an_array(folder, photos):
    classify = Classifier.load(folder)
    assert classify.classes == ["apple", "banana", "cherry"]
    expected = classify(photos)
    assert [answer.label for answer in expected] == classify.classes * 3
    first = expected[0]
    assert list(first.top) == sorted(first.top, key=first.top.get, reverse=True)
    assert first.probability == first.top["apple"] and first.problem is None
    picture = Image.open(photos[0])
    for same in (str(photos[0]), photos[0].read_bytes(), picture, np.asarray(picture)):
        assert classify(same) == first
    assert len(classify(photos[0], k=2).top) == 2


def test_what_is_wrong_with_an_image_stands_in_its_place(folder, photos, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    bad = [tmp_path / "text.jpg", b"", np.zeros((4, 4)), np.zeros((4, 4, 3)), tmp_path / "gone.jpg"]
    classify = Classifier.load(folder)
    mixed = [bad[0], photos[1], *bad[1:3], *photos * 8, *bad[3:]]
    answers = classify(mixed)
    for image, answer in zip(mixed, answers, strict=True):
        wrong = any(image is one for one in bad)
        assert (answer.label is None and not answer.top) == wrong == bool(answer.problem)
    assert "text.jpg: not an image" in answers[0].problem
    assert "the image: the file is empty" in answers[2].problem
    assert "uint8" in answers[3].problem and "gone.jpg" in answers[-1].problem
    with pytest.raises(TypeError, match="int: give a path"):
        classify(3)


def test_below_its_threshold_it_is_not_sure(folder, photos):
    classify = Classifier.load(folder)
    assert (classify.min_confidence, classify.coverage) == (0.6, 0.9)
    grey = np.full((40, 40, 3), 100, np.uint8)
    answer = classify(grey)
    assert answer.label is None and answer.probability == pytest.approx(1 / 3) and answer.top
    assert Classifier.load(folder, min_confidence=0.3)(grey).label == "apple"
    assert Classifier.load(folder, min_confidence=1.0)(photos[0]).label is None


def test_eight_threads_get_their_own_answers(folder, photos):
    classify = Classifier.load(folder)
    contents = [photo.read_bytes() for photo in photos]
    expected = [classify(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: classify(contents[i % 9]), range(400)))
    assert found == [expected[i % 9] for i in range(400)]


def test_it_needs_neither_tensorflow_nor_pandas(folder, photos):
    code = (
        "import sys; from fruitveg_tl import Classifier;"
        f"print(Classifier.load({str(folder)!r})({str(photos[1])!r}).label);"
        "print([x for x in ('tensorflow', 'keras', 'pandas', 'matplotlib') if x in sys.modules])"
    )
    environment = process_environment(folder.parents[2]) | {"FRUITVEG_ENGINE": ""}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split("\n")[:2] == ["banana", "[]"]


def test_keras_answers_where_the_file_of_openvino_is_missing(folder, photos):
    by_openvino = Classifier.load(folder)(photos)
    (folder / "model.xml").unlink()
    for one, other in zip(by_openvino, Classifier.load(folder)(photos), strict=True):
        assert one.top == pytest.approx(other.top, abs=1e-5)


@pytest.mark.reliability("foreign or damaged networks, refused")
@pytest.mark.parametrize("name", ["model.xml", "model.bin", "model.keras.sha256"])
def test_a_changed_file_is_refused(folder, name, tried):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"model\.(xml|bin): not the file whose hash"):
        Classifier.load(folder)
    tried(1)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_exported_folder_answers_alike(folder, photos, tmp_path, kind, monkeypatch):
    expected = Classifier.load(folder)(photos)
    file, _ = export(load_run(folder), kind, tmp_path / "exported")
    shutil.rmtree(folder)
    classify = Classifier.load(file.parent)
    assert classify.min_confidence == 0.6
    for one, other in zip(expected, classify(photos), strict=True):
        assert one.label == other.label and one.top == pytest.approx(other.top, abs=1e-3)


def test_a_folder_without_a_network_is_named(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=f"{place}: neither a run nor an exported network"):
            Classifier.load(place)


def test_the_service_of_the_readme_answers_eight_clients_at_once(folder, photos, monkeypatch):
    text = (PROJECT / "fruitveg_tl" / "README.md").read_text()
    (code,) = (x for x in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "http.server" in x)
    started, waiting = [], threading.Event()

    def serve(server):
        started.append(server)
        waiting.set()
        _serve_forever(server)

    _serve_forever = ThreadingHTTPServer.serve_forever
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", serve)
    code = code.replace("data/runs/RUN", str(folder)).replace("8000", "0")
    threading.Thread(target=exec, args=(code, {}), daemon=True).start()
    assert waiting.wait(60)
    (server,) = started
    address = f"http://127.0.0.1:{server.server_port}"

    def ask(i):
        content = photos[i % 9].read_bytes() if i % 4 else b"no image"
        try:
            with urllib.request.urlopen(address, content) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(200)))
    server.shutdown()
    for i, (status, answer) in enumerate(answers):
        if i % 4:
            assert (status, answer["label"]) == (200, ["apple", "banana", "cherry"][i % 3])
        else:
            assert status == 400 and "not an image" in answer["problem"]
