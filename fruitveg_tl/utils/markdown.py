"""Names of classes and folders are text; in Markdown they must be written so that they stay it."""

import re

import pandas as pd

from fruitveg_tl.utils.errors import printable


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is: names of classes and folders hold anything."""
    return re.sub(r"[\\`*{}\[\]<>#$~^|@&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", printable(text))


def listed(values: pd.Series) -> str:
    """Name the entries of a series with their values, e.g. "kiwi (0.98), leek (0.50)"."""
    return ", ".join(f"{escaped(name)} ({value:.2f})" for name, value in values.items())
