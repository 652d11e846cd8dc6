"""One run on two devices gives what it gives on one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK, command, load_run, process_environment, write_images

from fruitveg_tl.training.data_parallel import data_parallel
from fruitveg_tl.utils.errors import InputError

# Two devices of one processor, which has to be said before TensorFlow begins.
TWO_DEVICES = """
import sys, tensorflow as tf
(processor,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
exec(sys.argv.pop(1))
"""
# In float32: bfloat16 rounds the gradients of half a batch too coarsely to compare.
RUN = """
from fruitveg_tl import cli
from fruitveg_tl.utils import runtime
runtime.fast_precision = lambda gains: "float32"
sys.exit(cli.main(sys.argv[1:]))
"""
SPLIT = """
import keras, numpy
from fruitveg_tl.training.data_parallel import data_parallel, predict_on_batch, split
with data_parallel(2):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
for count in (4, 5):
    (parts,) = split(model, numpy.arange(count)[:, None])
    print([len(part) for part in getattr(parts, "values", [parts])])
    print(predict_on_batch(model, numpy.arange(count)[:, None]).ravel())
"""


def two_devices(script: str, *arguments: str, home: Path) -> str:
    """Run Python code where TensorFlow sees two devices; return what it prints."""
    process = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, script, *arguments],
        env=process_environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_device_takes_its_share_or_where_that_is_not_even_the_whole_batch(tmp_path):
    printed = two_devices(SPLIT, home=tmp_path).split("\n")
    assert printed[:4] == ["[2, 2]", "[0. 1. 2. 3.]", "[5]", "[0. 1. 2. 3. 4.]"]


def test_two_devices_give_the_loss_curve_and_the_predictions_of_one(tmp_path):
    classes = [f"class {number}" for number in range(9)]  # for three batches of an epoch
    images = write_images(tmp_path / "images", classes)
    wanted = ["run", "--dataset", str(images), "--backbones", "vgg16", *QUICK]
    runs = []
    for devices in (1, 2):
        home = tmp_path / str(devices)
        two_devices(RUN, *wanted, "--devices", str(devices), home=home)
        (folder,) = (home / "data" / "runs").glob("[!.]*")
        runs.append(load_run(folder))
        assert runs[-1].row["devices"] == devices
    one, two = runs
    pd.testing.assert_frame_equal(one.history, two.history, rtol=1e-4)
    for stage, probabilities in one.probabilities.items():
        np.testing.assert_allclose(probabilities, two.probabilities[stage], atol=1e-3)


def test_more_devices_than_there_are_is_an_error_that_lists_them(images, tmp_path):
    wanted = ["run", "--dataset", str(images), "--backbones", "vgg16", *QUICK]
    done = command(*wanted, "--devices", "99", home=tmp_path)
    assert done.returncode == 2
    assert "99 devices asked for; TensorFlow sees" in done.stderr
    with pytest.raises(InputError, match="0 devices"), data_parallel(0):
        pass
