"""Keras is imported quietly, whatever the machine's own settings say."""

import json
import os
import subprocess
import sys

import pytest

REPORT = (
    "from fruitveg_tl.utils.backend import keras\n"
    "import numpy as np\n"
    "keras.layers.Dense(1)(np.zeros((1, 2)))\n"
    "print(keras.config.floatx(), keras.config.image_data_format())"
)


def imported(tmp_path, **settings):
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    return subprocess.run(
        [sys.executable, "-c", REPORT],
        env=environment | {"KERAS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "settings", [{}, {"floatx": "float16"}, {"image_data_format": "channels_first"}]
)
def test_the_settings_are_this_projects_own_and_nothing_is_written(tmp_path, settings):
    done = imported(tmp_path, **settings)
    assert done.stdout.split() == ["float32", "channels_last"]
    assert done.stderr == ""


def test_an_absent_backend_is_named_in_one_line(tmp_path):
    done = imported(tmp_path, backend="theano")
    assert done.returncode and "set KERAS_BACKEND=tensorflow" in done.stderr.splitlines()[-1]
