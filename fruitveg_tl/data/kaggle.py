"""The Kaggle set «Fruits and Vegetables Image Recognition»: its source, its classes."""

from pathlib import Path

import kagglehub
import pandas as pd

from fruitveg_tl.config import TEST, TRAIN, VAL
from fruitveg_tl.utils.errors import InputError, first_line

KAGGLE_HANDLE = "kritikseth/fruit-and-vegetable-image-recognition"

IMAGES = {TRAIN: 3115, VAL: 351, TEST: 359}  # of the whole set

# Test accuracies of public notebooks on the set, from the brief of this study.
PUBLIC = pd.DataFrame(
    {
        "network": ["MobileNetV2", "ResNet50", "ResNet50, duplicates removed"],
        "public accuracy": ["0.94 to 0.97", "0.936", "0.917"],
    }
)

# Class of the Kaggle set (fruits-veges) to coarse class of grocery. Limes, leeks and others appear
# in only one of them; "sweetpotato" is not Potato, and "chilli pepper" is not grocery's Pepper.
FRUITS_VEGES_TO_GROCERY = {
    "apple": "Apple",
    "banana": "Banana",
    "beetroot": "Red-Beet",
    "bell pepper": "Pepper",
    "cabbage": "Cabbage",
    "capsicum": "Pepper",
    "carrot": "Carrots",
    "cucumber": "Cucumber",
    "eggplant": "Aubergine",
    "garlic": "Garlic",
    "ginger": "Ginger",
    "kiwi": "Kiwi",
    "lemon": "Lemon",
    "mango": "Mango",
    "onion": "Onion",
    "orange": "Orange",
    "pear": "Pear",
    "pineapple": "Pineapple",
    "pomegranate": "Pomegranate",
    "potato": "Potato",
    "tomato": "Tomato",
}


def fetch() -> Path:
    """Download the data set with kagglehub; return the folder of train, validation and test.

    Raises InputError, which suggests a manual download, if Kaggle cannot be reached.
    """
    try:
        return Path(kagglehub.dataset_download(KAGGLE_HANDLE))
    except Exception as error:  # kagglehub, requests and zipfile raise their own kinds
        raise InputError(
            f"fruits-veges: the download of {KAGGLE_HANDLE} from Kaggle failed "
            f"({first_line(error)}); fetch it in a browser, unpack it and set FRUITVEG_DATA to "
            "the folder that holds train/, validation/ and test/"
        ) from None
