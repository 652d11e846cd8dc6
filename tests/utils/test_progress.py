import io
import os
import re

import pytest

from fruitveg_tl.utils import progress as module
from fruitveg_tl.utils.progress import note, progress


def test_in_a_log_every_phase_is_one_line(capsys):
    assert list(progress("decode", 3, iter("abc"))) == list("abc")
    err = capsys.readouterr().err
    assert re.fullmatch(r"decode: 3 of 3 files, in \d\d:\d\d\n", err)


def test_a_long_phase_says_every_minute_where_it_is(monkeypatch):
    clock = [0.0]
    log = io.StringIO()
    monkeypatch.setattr(module.sys, "stderr", log)
    bar = progress("training", 10, unit="epochs", initial=2)
    bar._time = lambda: clock[0]
    bar.start_t = bar.last_print_t = 0.0
    for _ in range(8):
        clock[0] += 40
        bar.update()
    bar.close()
    bar.close()  # closing twice says nothing twice
    lines = log.getvalue().splitlines()
    assert lines == [
        "training: 4 of 10 epochs, about 04:00 to go",
        "training: 6 of 10 epochs, about 02:40 to go",
        "training: 8 of 10 epochs, about 01:20 to go",
        "training: 10 of 10 epochs, about 00:00 to go",
        "training: 10 of 10 epochs, in 05:20",
    ]


def test_a_kernel_of_the_report_writes_to_its_parent(monkeypatch, capsys):
    reading, writing = os.pipe()
    monkeypatch.setenv("FRUITVEG_PROGRESS", str(writing))
    with progress("probe", 1) as bar:
        bar.update()
    note("between")
    module._stream(writing).close()
    os.close(writing)
    module._stream.cache_clear()
    with os.fdopen(reading) as stream:
        assert re.fullmatch(r"probe: 1 of 1 files, in \d\d:\d\d\nbetween\n", stream.read())
    assert capsys.readouterr().err == ""


def test_what_fails_half_way_says_how_far_it_came(capsys):
    with pytest.raises(ValueError), progress("decode", 3) as bar:
        bar.update()
        raise ValueError
    assert "decode: 1 of 3 files" in capsys.readouterr().err
