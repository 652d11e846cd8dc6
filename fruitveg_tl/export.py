"""Export of a trained network to other formats, with its metadata and a check."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fruitveg_tl.data import preprocess
from fruitveg_tl.models.compiled import CONFIDENCE
from fruitveg_tl.studies import Run
from fruitveg_tl.utils.backend import keras
from fruitveg_tl.utils.errors import InputError, first_line, printable
from fruitveg_tl.utils.storage import new_folder

TOLERANCE = 1e-3  # of a probability
IMAGES = 8  # random images in the check


@dataclass(frozen=True)
class Format:
    """A format to export to.

    Attributes:
        file: name of the file or folder.
        keras_name: the format's name in `keras.Model.export`.
        package: the package that writes it; None if Keras and TensorFlow suffice.
        runtime: the package that reads it for the check.
        reader: returns a file's function from images to probabilities.
    """

    file: str
    keras_name: str
    package: str | None
    runtime: str
    reader: Callable[[Path], Callable[[np.ndarray], np.ndarray]]


def _onnx(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _remove_unused_inputs(file: Path) -> None:
    """Remove the second input that tf2onnx leaves after constant folding."""
    import onnx

    network = onnx.load(file)
    used = {name for node in network.graph.node for name in node.input}
    inputs = [x for x in network.graph.input if x.name in used]
    del network.graph.input[:]
    network.graph.input.extend(inputs)
    onnx.save(network, file)


def _litert(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    signature = tf.lite.Interpreter(str(file)).get_signature_runner()
    (name,), (output,) = signature.get_input_details(), signature.get_output_details()
    return lambda images: np.concatenate([signature(**{name: x[None]})[output] for x in images])


def _saved_model(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(file))
    return lambda images: loaded.serve(images).numpy()


def _openvino(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(file), "CPU", options)
    return lambda images: compiled(images)[0]


FORMATS = {
    "onnx": Format("model.onnx", "onnx", "tf2onnx", "onnxruntime", _onnx),
    "litert": Format("model.tflite", "litert", None, "tensorflow", _litert),
    "saved_model": Format("saved_model", "tf_saved_model", None, "tensorflow", _saved_model),
    "openvino": Format("model.xml", "openvino", "openvino", "openvino", _openvino),
}


def export(run: Run, name: str, folder: Path) -> tuple[Path, float]:
    """Write a run's network in another of `FORMATS` and compare the two.

    Also writes `classes.json` (the classes in output order), `input.json` (the input format) and
    `preprocess.py` (which converts an image file to that format). `folder` must be new; it is
    created in one atomic step. Returns the network's file, and the largest difference in
    probability on `IMAGES` random images. Raises InputError if the folder exists, a package is
    missing, the network cannot be converted, or the two differ by more than `TOLERANCE`.
    """
    wanted = FORMATS[name]
    if folder.exists():
        raise InputError(f"{printable(folder)}: it exists; give a new folder")
    for package in (wanted.package, wanted.runtime):
        _refuse_missing(f"export to {name}", package)
    model, size = run.load_model(), run.config.size
    images = np.random.default_rng(0).uniform(0, 255, (IMAGES, size, size, 3)).astype(np.float32)
    own = keras.ops.convert_to_numpy(model(images, training=False))
    with new_folder(folder) as temporary:
        file = temporary / wanted.file
        try:
            model.export(str(file), format=wanted.keras_name, verbose=False)
        except Exception as error:  # each converter has its own kinds
            raise InputError(f"export to {name} failed: {first_line(error)}") from None
        if name == "onnx":
            _remove_unused_inputs(file)
        difference = float(np.abs(wanted.reader(file)(images) - own).max())
        if not difference <= TOLERANCE:
            raise InputError(f"export to {name}: its probabilities differ by {difference:.1e}")
        shutil.copyfile(preprocess.__file__, temporary / "preprocess.py")
        (temporary / "classes.json").write_text(json.dumps(run.classes, ensure_ascii=False))
        if (confidence := run.folder / CONFIDENCE).exists():
            shutil.copyfile(confidence, temporary / CONFIDENCE)
        (temporary / "input.json").write_text(json.dumps(_input(run, name), indent=1))
    return folder / wanted.file, difference


def reader(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return an exported network as a function: float32 RGB (n, size, size, 3) to probabilities.

    Raises FileNotFoundError if the folder holds none, InputError if a package is missing.
    """
    for name, wanted in FORMATS.items():
        if (folder / wanted.file).exists():
            _refuse_missing(name, wanted.runtime)
            return wanted.reader(folder / wanted.file)
    raise FileNotFoundError(2, "no network", str(folder / "model"))


def _refuse_missing(name: str, package: str | None) -> None:
    if package and importlib.util.find_spec(package) is None:
        raise InputError(f"{name} needs {package}: pip install {package}")


def _input(run: Run, name: str) -> dict:
    size, crop = run.config.size, run.config.crop
    about = {
        "shape": ["n", size, size, 3],
        "dtype": "float32",
        "values": "RGB, 0 to 255; the network holds its backbone's preprocessing",
        "size": size,
        "crop": crop,
        "preprocessing": "preprocess.load_image(file, size, crop), in the file beside this one",
    }
    if name == "openvino":
        about["precision"] = (
            'compile the network with {"INFERENCE_PRECISION_HINT": "f32"}: on processors that have '
            "bfloat16 OpenVINO computes in that by default, and answers differ"
        )
    return about
