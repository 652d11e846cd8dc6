"""Audit of a data set: duplicates, leaks, doubtful labels and image quality."""

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage, sparse
from sklearn.neighbors import NearestNeighbors

from fruitveg_tl.config import RESPLIT, SPLITS, TEST, TRAIN, VAL
from fruitveg_tl.data.dataset import Images

HASH_BITS = 64
NEAR = 4  # bits of 64; of the pairs inspected, those that differ by more show different images


def duplicates(dataset: Images, pixels: np.ndarray) -> pd.DataFrame:
    """Find exact and near duplicates.

    Exact duplicates have the same bytes (SHA-256). The perceptual hashes (ImageHash's pHash, 64
    bits) of near duplicates differ in at most `NEAR` bits: pHash tolerates scaling, recompression
    and changes of light. A near pair may show two different images.

    `pixels` are `dataset.pixels(size)`, at least 32 pixels wide. Returns one row per pair, closest
    first: first and second (rows of the index, first < second), bits (in which the hashes differ),
    exact, first_split, second_split, same_label.
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
    """Return the rows of test images that also appear, exactly or nearly, in train or val."""
    first, second = pairs["first_split"], pairs["second_split"]
    elsewhere = (TRAIN, VAL)
    found = [
        pairs.loc[(first == TEST) & second.isin(elsewhere), "first"],
        pairs.loc[(second == TEST) & first.isin(elsewhere), "second"],
    ]
    return np.unique(np.concatenate(found).astype(int))


def summary(dataset: Images, pairs: pd.DataFrame) -> pd.Series:
    """Count the classes, images and duplicates (`pairs`) of a data set as published."""
    index = dataset.index
    content = {split: index.loc[index["split"] == split, "sha256"] for split in SPLITS}
    return pd.Series(
        {
            "classes": len(dataset.classes),
            "images": len(index),
            "distinct contents": index["sha256"].nunique(),
            **{f"images in {split}": len(found) for split, found in content.items()},
            "test images also in train": content[TEST].isin(content[TRAIN]).sum(),
            "test images that repeat another one": content[TEST].duplicated().sum(),
            "validation images also in test": content[VAL].isin(content[TEST]).sum(),
            "contents under two labels": len(_under_two_labels(index)),
            "near pairs": (~pairs["exact"]).sum(),
            "near pairs under two labels": (~pairs["exact"] & ~pairs["same_label"]).sum(),
        }
    )


def _under_two_labels(index: pd.DataFrame) -> pd.Series:
    """Return the labels of each content hash that has more than one."""
    labels = index.groupby("sha256")["label"].unique()
    return labels[labels.map(len) > 1]


def duplicate_groups(pairs: pd.DataFrame, count: int) -> np.ndarray:
    """Return the group of each of `count` images: its connected part of the graph of `pairs`."""
    edges = sparse.coo_array(
        (np.ones(len(pairs)), (pairs["first"].astype(int), pairs["second"].astype(int))),
        shape=(count, count),
    )
    return sparse.csgraph.connected_components(edges, directed=False)[1]


def exact_leaks(dataset: Images) -> str | None:
    """Describe in one line the exact duplicates across splits or labels; None if there are none."""
    images = dataset.index[["split", "label", "sha256"]]
    elsewhere = images[images["split"].isin((TRAIN, VAL))]
    tested = images[images["split"] == TEST]
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
    """Name in one line the classes with one or two test images; None if there are none."""
    counts = dataset.index.loc[dataset.rows(TEST), "label"].value_counts()
    few = sorted(counts.index[counts < 3])
    if not few:
        return None
    names = ", ".join(few[:5]) + (", …" if len(few) > 5 else "")
    return (
        f"{dataset.name}: {len(few)} of {len(dataset.classes)} classes have one or two test images "
        f"({names}): their precision, recall and F1 are mostly chance"
    )


def quality(pixels: np.ndarray) -> pd.DataFrame:
    """Measure the quality of each image in `pixels`, uint8 (n, size, size, 3).

    Brightness is the mean of the grey image, 0 to 255; contrast is its standard deviation.
    Saturation is the mean of HSV saturation, 0 to 1. Sharpness is the variance of the grey image's
    Laplacian, low in a blurred image (Pech-Pacheco et al. 2000).
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
