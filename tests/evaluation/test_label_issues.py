from types import SimpleNamespace

import numpy as np
import pandas as pd

from fruitveg_tl.config import FINETUNED
from fruitveg_tl.evaluation.label_issues import least_likely_labels


def fold(paths, targets, probabilities):
    labels = np.array(["fig", "kiwi"])[list(targets)]
    return SimpleNamespace(
        classes=["fig", "kiwi"],
        targets=np.array(targets),
        test=pd.DataFrame({"path": paths, "label": labels}),
        probabilities={FINETUNED: np.array(probabilities)},
    )


def test_images_are_ordered_by_the_mean_probability_of_their_label():
    one = [
        fold(["a", "b"], [0, 1], [[0.9, 0.1], [0.8, 0.2]]),
        fold(["c"], [1], [[0.4, 0.6]]),
    ]
    other = [
        fold(["a", "b"], [0, 1], [[0.7, 0.3], [0.6, 0.4]]),
        fold(["c"], [1], [[0.2, 0.8]]),
    ]
    found = least_likely_labels({"one": one, "other": other})
    assert found["path"].tolist() == ["b", "c", "a"]
    assert found["label"].tolist() == ["kiwi", "kiwi", "fig"]
    assert found["predicted"].tolist() == ["fig", "kiwi", "fig"]
    np.testing.assert_allclose(found["probability"], [0.3, 0.7, 0.8])
