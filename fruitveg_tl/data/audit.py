"""What is wrong with a set of images before any network sees it."""

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage, sparse
from sklearn.neighbors import NearestNeighbors

from fruitveg_tl.config import RESPLIT, SPLITS
from fruitveg_tl.data.dataset import Images

HASH_BITS = 64
NEAR = 4  # bits of 64; what differs by more is, in what was looked at, another image


def duplicates(dataset: Images, pixels: np.ndarray) -> pd.DataFrame:
    """Find images that the set holds twice.

    Exact: the same bytes (SHA-256). Near: perceptual hashes (pHash by ImageHash: the signs of the
    64 lowest cosine frequencies of the grey image) that differ in at most `NEAR` bits, which
    survives scaling, recompression and a change of light. A near pair need not be one image: look.

    Args:
        dataset: the images.
        pixels: `dataset.pixels(size)`, at least 32 pixels wide.

    Returns:
        one row per pair: first and second (rows of the index, first < second), bits (by which
        the hashes differ), exact, first_split, second_split, same_label; closest first.
    """
    hashes = np.stack([imagehash.phash(Image.fromarray(p)).hash.ravel() for p in pixels])
    # Slightly above NEAR: the distance is a fraction of the bits, computed in floating point.
    search = NearestNeighbors(radius=(NEAR + 0.5) / HASH_BITS, metric="hamming").fit(hashes)
    distances, neighbours = search.radius_neighbors(hashes)
    first = np.repeat(np.arange(len(hashes)), [len(near) for near in neighbours])
    second, bits = np.concatenate(neighbours), np.concatenate(distances) * HASH_BITS
    once = first < second
    first, second, bits = first[once], second[once], np.rint(bits[once]).astype(int)
    index = dataset.index
    column = {name: index[name].to_numpy() for name in ("sha256", "split", "label")}
    pairs = pd.DataFrame(
        {
            "first": first,
            "second": second,
            "bits": bits,
            "exact": column["sha256"][first] == column["sha256"][second],
            "first_split": column["split"][first],
            "second_split": column["split"][second],
            "same_label": column["label"][first] == column["label"][second],
        }
    )
    order = ["exact", "bits", "first", "second"]
    return pairs.sort_values(order, ascending=[False, True, True, True], ignore_index=True)


def leaked_test_rows(pairs: pd.DataFrame) -> np.ndarray:
    """Return the rows of test images that also appear, exactly or nearly, in train or val.

    Args:
        pairs: from `duplicates`.
    """
    first, second = pairs["first_split"], pairs["second_split"]
    elsewhere = ("train", "val")
    found = [
        pairs.loc[(first == "test") & second.isin(elsewhere), "first"],
        pairs.loc[(second == "test") & first.isin(elsewhere), "second"],
    ]
    return np.unique(np.concatenate(found).astype(int))


def summary(dataset: Images, pairs: pd.DataFrame) -> pd.Series:
    """Count what a set holds, and what of it is there twice.

    Args:
        dataset: the images as published.
        pairs: from `duplicates`.
    """
    index = dataset.index
    content = {split: index.loc[index["split"] == split, "sha256"] for split in SPLITS}
    return pd.Series(
        {
            "classes": len(dataset.classes),
            "images": len(index),
            "distinct contents": index["sha256"].nunique(),
            **{f"images in {split}": len(found) for split, found in content.items()},
            "test images also in train": content["test"].isin(content["train"]).sum(),
            "test images that repeat another one": content["test"].duplicated().sum(),
            "validation images also in test": content["val"].isin(content["test"]).sum(),
            "contents under two labels": len(_under_two_labels(index)),
            "near pairs": (~pairs["exact"]).sum(),
            "near pairs under two labels": (~pairs["exact"] & ~pairs["same_label"]).sum(),
        }
    )


def _under_two_labels(index: pd.DataFrame) -> pd.Series:
    """Return the labels of every content that has more than one."""
    labels = index.groupby("sha256")["label"].unique()
    return labels[labels.map(len) > 1]


def duplicate_groups(pairs: pd.DataFrame, count: int) -> np.ndarray:
    """Return the group of every image: two belong to one if a chain of pairs joins them.

    Args:
        pairs: from `duplicates`: the edges of a graph whose connected components are the groups.
        count: number of images.
    """
    edges = sparse.coo_array(
        (np.ones(len(pairs)), (pairs["first"].astype(int), pairs["second"].astype(int))),
        shape=(count, count),
    )
    return sparse.csgraph.connected_components(edges, directed=False)[1]


def exact_leaks(dataset: Images) -> str | None:
    """Say in one line which images are in two splits, byte for byte, or have two labels.

    Returns:
        the line, with counts; None if there are none.
    """
    images = dataset.index[["split", "label", "sha256"]]
    elsewhere = images[images["split"].isin(("train", "val"))]
    tested = images[images["split"] == "test"]
    leaked = int(tested["sha256"].isin(elsewhere["sha256"]).sum())
    doubtful = _under_two_labels(images)
    parts = []
    if leaked:
        parts.append(
            f"{leaked:,} of {len(tested):,} test images are also in train or val: "
            f"{RESPLIT} creates new splits that keep duplicates together"
        )
    if len(doubtful):
        pairs = sorted({" and ".join(sorted(labels)) for labels in doubtful})
        parts.append(f"{len(doubtful):,} images have two labels ({', '.join(pairs)})")
    return f"{dataset.name}: {'; '.join(parts)}" if parts else None


def few_test_images(dataset: Images) -> str | None:
    """Say in one line which classes have one or two test images; None if none has."""
    counts = dataset.index.loc[dataset.rows("test"), "label"].value_counts()
    few = sorted(counts.index[counts < 3])
    if not few:
        return None
    names = ", ".join(few[:5]) + (", …" if len(few) > 5 else "")
    return (
        f"{dataset.name}: {len(few)} of {len(dataset.classes)} classes have one or two test images "
        f"({names}): their precision, recall and F1 are mostly chance"
    )


def quality(pixels: np.ndarray) -> pd.DataFrame:
    """Measure each image, in the order of the index.

    Args:
        pixels: uint8 (n, size, size, 3).

    Returns:
        brightness: mean of the grey image, 0 to 255; contrast: its standard deviation;
        saturation: mean of HSV saturation, 0 to 1; sharpness: variance of its Laplacian, low in a
        blurred image (Pech-Pacheco et al. 2000).
    """
    rows = []
    for image in pixels:
        grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
        high, low = image.max(-1).astype(np.float32), image.min(-1)
        rows.append(
            {
                "brightness": grey.mean(),
                "contrast": grey.std(),
                "saturation": ((high - low) / np.maximum(high, 1)).mean(),
                "sharpness": ndimage.laplace(grey).var(),
            }
        )
    return pd.DataFrame(rows).astype(float)
