"""Pre-train a backbone on Tiny ImageNet, for machines that no weight server can be reached from.

The pupil is an unchanged `keras.applications` architecture. It learns from the labels and from an
ImageNet network: from the 1000 class probabilities and from the feature map that they are read
from, at its end and at the boundary where this study freezes it (FitNets: Romero et al. 2015).
The teacher sees the same augmented views (consistent teaching, Beyer et al. 2022) or, where
computing is dear, every image once (`--fixed`).

    python data/weights/pretraining/pretrain.py resnet50 \
        --images ../shared/data/tiny-imagenet \
        --teacher ../shared/weights/mobilenet_v2_imagenet_top.weights.h5 \
        --state ~/pretraining --epochs 90 --minutes 9

needs `pip install torch==2.13.0` beside the package. It goes on from its last checkpoint until the
epochs or the minutes are over; give the same command again until it says that it is done. On a
processor: `--fixed --mixup 0 --batch 128 --sides 48 48 48 64` and few epochs. `--start FILE` goes
on from weights that an earlier recipe bundled. `--limit 200` is a rehearsal.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"  # the augmentation then runs where the images are

import argparse
import io
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from twin import Twin

from fruitveg_tl.data.augmentation import augmenter
from fruitveg_tl.models import backbones, quantisation, weights
from fruitveg_tl.utils import runtime
from fruitveg_tl.utils.storage import new_array, new_file, sha256_file, write_json

SIDE = 64  # pixels of a Tiny ImageNet image
TEACHER_SIDE = 128  # below, MobileNetV2 recognises little
HIGHEST = 6  # of the teacher's last feature map, which ends with ReLU6
HELD_OUT = 50  # every 50th image: 2 %
ROUNDS = 8  # an epoch's parts; each ends with a checkpoint
RATE = 2e-3  # at a batch of 512
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LICENCE = (
    "images: ImageNet's terms, non-commercial research and education; "
    "teacher: Keras' MobileNetV2, Apache-2.0"
)


class Teacher(nn.Module):
    """The ImageNet network: raw RGB to its last feature map, and that map's mean to classes."""

    def __init__(self, file: Path):
        super().__init__()
        shape = (TEACHER_SIDE, TEACHER_SIDE, 3)
        whole = keras.applications.MobileNetV2(weights=str(file), input_shape=shape)
        self.last = "out_relu"
        self.trunk = Twin(keras.Model(whole.input, whole.get_layer(self.last).output)).eval()
        kernel, bias = whole.layers[-1].get_weights()
        self.top = nn.Linear(*kernel.shape)
        self.top.weight.data, self.top.bias.data = torch.tensor(kernel.T), torch.tensor(bias)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the map (n, 1280, 4, 4) of raw RGB (n, h, w, 3)."""
        size = (TEACHER_SIDE, TEACHER_SIDE)
        shown = functional.interpolate(channels_first(pixels), size, mode="bilinear")
        with torch.autocast(DEVICE, torch.bfloat16):
            return self.trunk(shown / 127.5 - 1, [self.last])[0].float()


class Pupil(nn.Module):
    """A backbone with a head for the labels and two that imitate the teacher's feature map."""

    def __init__(self, backbone, body: keras.Model, classes: int, features: int):
        super().__init__()
        self.backbone = backbone
        # VGG16 has no BatchNorm and does not learn in so few steps without.
        self.body = Twin(body, normalised=True)
        self.names = [backbone.boundary, body.layers[-1].name]
        widths = [body.get_layer(name).output.shape[-1] for name in self.names]
        self.imitating = nn.ModuleList([nn.Conv2d(width, features, 1) for width in widths])
        self.labels = nn.Linear(widths[-1], classes)

    def forward(self, pixels: torch.Tensor, side: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return both imitated maps and the labels' logits for raw RGB (n, h, w, 3)."""
        with torch.autocast(DEVICE, torch.bfloat16):
            maps = self.body(self.prepared(pixels, side), self.names)
        maps = [found.float() for found in maps]
        imitated = [head(found) for head, found in zip(self.imitating, maps, strict=True)]
        return imitated, self.labels(maps[-1].mean((2, 3)))

    def prepared(self, pixels: torch.Tensor, side: int) -> torch.Tensor:
        """Return raw RGB (n, h, w, 3) as the body takes it, (n, 3, side, side)."""
        x = channels_first(pixels)
        if x.shape[-1] != side:
            x = functional.interpolate(x, (side, side), mode="bilinear", antialias=True)
        return self.backbone.preprocess_input(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def new_body(backbone) -> keras.Model:
    """Return the backbone without top, as training from nothing starts."""
    body = backbone.constructor(weights=None, include_top=False)
    if backbone.key == "resnet50":  # every block starts as the identity (Goyal et al. 2017)
        for layer in body.layers:
            if layer.name.endswith("_3_bn"):
                layer.gamma.assign(keras.ops.zeros_like(layer.gamma))
    return body


def channels_first(pixels: torch.Tensor) -> torch.Tensor:
    """Return (n, h, w, 3) as float (n, 3, h, w), channels last in memory."""
    return pixels.float().permute(0, 3, 1, 2)


def images(folder: Path, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return all images (n, 64, 64, 3), uint8, memory-mapped, and their labels (n,)."""
    files = [dict(np.load(file)) for file in sorted(folder.glob("tiny_imagenet_train_*.npz"))]
    if not cache.exists():
        parts = [
            part["webp"][start:stop].tobytes()
            for part in files
            for start, stop in zip(part["offsets"], part["offsets"][1:], strict=False)
        ]
        with ThreadPoolExecutor() as pool, new_file(cache) as temporary:
            array = new_array(temporary, np.uint8, (len(parts), SIDE, SIDE, 3))
            for i, image in enumerate(pool.map(lambda b: Image.open(io.BytesIO(b)), parts)):
                array[i] = image.convert("RGB")
            array.flush()
    return np.load(cache, mmap_mode="r"), np.concatenate([part["labels"] for part in files])


def teach(teacher: Teacher, pixels: np.ndarray, cache: Path) -> np.ndarray:
    """Return the teacher's map of every image, (n, 4, 4, 1280), 8 bits for 0..6."""
    if not cache.exists():
        with new_file(cache) as temporary:
            side = TEACHER_SIDE // 32
            array = new_array(temporary, np.uint8, (len(pixels), side, side, 1280))
            for start in range(0, len(pixels), 256):
                found = teacher(torch.tensor(pixels[start : start + 256]))
                rounded = (found * (255 / HIGHEST)).round().permute(0, 2, 3, 1)
                array[start : start + 256] = rounded.byte().numpy()
            array.flush()
    return np.load(cache, mmap_mode="r")


def loss_of(pupil, teacher, pixels, seen, labels, lam, side) -> torch.Tensor:
    """Mean of label loss and cross-entropy with the teacher, plus the maps' distances."""
    imitated, logits = pupil(pixels, side)
    mixed = lam * functional.cross_entropy(logits, labels)
    mixed = mixed + (1 - lam) * functional.cross_entropy(logits, labels.flip(0))
    probabilities = teacher.top(seen.mean((2, 3))).softmax(1)
    taught = functional.cross_entropy(teacher.top(imitated[-1].mean((2, 3))), probabilities)
    distances = 0
    for found in imitated:
        same_size = functional.adaptive_avg_pool2d(seen, found.shape[2:])
        distances += 1 - functional.cosine_similarity(found, same_size).mean()
    return (mixed + taught) / 2 + distances


class Views:
    """Augmented batches of one round, and what the teacher says of them.

    Every random number depends on the seed and the round alone, not on where training resumed.
    """

    def __init__(self, options, number: int, pixels, labels, known, teacher):
        self.options, self.pixels, self.labels = options, pixels, labels
        self.known, self.teacher = known, teacher
        self.rng = np.random.default_rng([options.seed, number])
        self.augment = None if options.fixed else augmenter(int(self.rng.integers(2**31)))

    def __call__(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """Return pixels (n, 64, 64, 3), the teacher's maps, labels and mixup's lam."""
        pixels = torch.from_numpy(self.pixels[rows]).to(DEVICE).float()
        labels = torch.from_numpy(self.labels[rows].astype(np.int64)).to(DEVICE)
        alpha = self.options.mixup
        lam = float(self.rng.beta(alpha, alpha)) if alpha else 1.0
        if self.augment:
            pixels = self.blend(self.augment(pixels, training=True), lam)
            return pixels, self.teacher(pixels), labels, lam
        seen = torch.from_numpy(self.known[rows]).to(DEVICE).float() * (HIGHEST / 255)
        mirrored = torch.from_numpy(self.rng.random((len(rows), 1, 1, 1)) < 0.5).to(DEVICE)
        pixels = torch.where(mirrored, pixels.flip(2), pixels)
        seen = torch.where(mirrored, seen.flip(2), seen).permute(0, 3, 1, 2)
        return self.blend(pixels, lam), self.blend(seen, lam), labels, lam

    @staticmethod
    def blend(values: torch.Tensor, lam: float) -> torch.Tensor:
        """Return mixup's blend of a batch with itself in reverse order (Zhang et al. 2018)."""
        return values if lam == 1 else lam * values + (1 - lam) * values.flip(0)


class Training:
    """Everything that a checkpoint holds."""

    def __init__(self, pupil: Pupil, options, steps: int):
        self.pupil = pupil.to(DEVICE, memory_format=torch.channels_last)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.pupil,
            # The last twentieth counts.
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(1 - 20 / max(steps, 40)),
            use_buffers=True,
        )
        kernels = [p for p in pupil.parameters() if p.ndim > 1]
        rest = [p for p in pupil.parameters() if p.ndim == 1]
        rate = RATE * math.sqrt(options.batch / 512)
        self.optimizer = torch.optim.AdamW(
            [{"params": kernels, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], rate
        )
        warm = max(1, steps // 20)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
        )
        self.history: list[dict] = []

    def parts(self) -> dict:
        """Return what has a state."""
        names = ("pupil", "average", "optimizer", "schedule")
        return {name: getattr(self, name) for name in names}

    def save(self, checkpoint: Path) -> None:
        """Store everything, in one piece."""
        with new_file(checkpoint) as temporary:
            state = {name: part.state_dict() for name, part in self.parts().items()}
            torch.save(state | {"history": self.history}, temporary)

    def load(self, checkpoint: Path) -> None:
        """Take up what `save` stored."""
        state = torch.load(checkpoint, map_location=DEVICE, weights_only=True)
        self.history = state.pop("history")
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def round(self, views: Views, teacher: Teacher, batches: np.ndarray, side: int) -> float:
        """Train on some batches, rows (steps, batch); return the mean loss."""
        self.pupil.train()
        total = 0.0
        for rows in batches:
            pixels, seen, labels, lam = views(rows)
            loss = loss_of(self.pupil, teacher, pixels, seen, labels, lam, side)
            loss.backward()
            nn.utils.clip_grad_norm_(self.pupil.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            self.average.update_parameters(self.pupil)
            total += float(loss.detach())
        return total / len(batches)


@torch.no_grad()
def accuracy(pupil: Pupil, pixels: np.ndarray, labels: np.ndarray, side: int) -> float:
    """Return the top-1 accuracy."""
    pupil.eval()
    right = 0
    for start in range(0, len(labels), 256):
        _, logits = pupil(torch.from_numpy(pixels[start : start + 256]).to(DEVICE), side)
        found = logits.argmax(1).cpu().numpy()
        right += int((found == labels[start : start + 256]).sum())
    return right / len(labels)


def finish(training: Training, body: keras.Model, options, about: dict, measure) -> None:
    """Store the rounded backbone and its card: what it learnt from, how, and how well."""
    pupil = training.average.module
    before = measure(pupil)
    pupil.body.hand_back(body)
    file = options.state / weights.bundled_file(pupil.backbone).name
    quantisation.save(file, body.get_weights())
    body.set_weights(quantisation.load(file))
    pupil.body = Twin(body).to(DEVICE, memory_format=torch.channels_last)
    names = ("epochs", "batch", "sides", "mixup", "fixed", "seed")
    card = {
        "backbone": pupil.backbone.name,
        "licence": LICENCE,
        "teacher": {"file": options.teacher.name, "sha256": sha256_file(options.teacher)},
        "recipe": {name: getattr(options, name) for name in names},
        "seconds": sum(record["seconds"] for record in training.history),
        "held_out_accuracy": before,
        "held_out_accuracy_rounded": measure(pupil),
        "sha256": sha256_file(file),
        "environment": runtime.environment() | {"torch": torch.__version__},
    } | about
    write_json(file.with_suffix(".json"), card)
    print(json.dumps(card, indent=1))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--batch", type=int, default=512)
    # Progressive resolution (Touvron et al. 2019), one part of the rounds each.
    parser.add_argument("--sides", type=int, nargs="+", default=[48, 64, 64, 96])
    parser.add_argument("--mixup", type=float, default=0.2)
    parser.add_argument("--fixed", action="store_true", help="ask the teacher only once")
    parser.add_argument("--start", type=Path, help="stored weights, with their card, to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="use this many images only")
    return parser.parse_args()


def main() -> None:
    """Train until the time or the epochs are over; at the end store the rounded backbone."""
    options = arguments()
    end = time.monotonic() + 60 * options.minutes
    options.state.mkdir(parents=True, exist_ok=True)
    pixels, labels = images(options.images, options.state / "tiny-imagenet.npy")
    rows = np.random.default_rng(options.seed).permutation(len(labels))[: options.limit]
    held_out, train = rows[::HELD_OUT], np.delete(rows, np.s_[::HELD_OUT])
    steps = len(train) // options.batch // ROUNDS
    rounds = options.epochs * ROUNDS

    keras.utils.set_random_seed(options.seed)
    teacher = Teacher(options.teacher).to(DEVICE, memory_format=torch.channels_last)
    known = options.fixed and teach(teacher, pixels, options.state / "teacher.npy")
    backbone = backbones.backbone_by_name(options.backbone)
    body, former = new_body(backbone), None
    if options.start:
        body.set_weights(quantisation.load(options.start))
        former = json.loads(options.start.with_suffix(".json").read_text())
    pupil = Pupil(backbone, body, int(labels.max()) + 1, teacher.top.in_features)
    if options.start:
        sample = torch.from_numpy(pixels[np.sort(train[:512])])
        pupil.body.estimate_batch_norm_statistics(pupil.prepared(sample, options.sides[0]))
    training = Training(pupil, options, rounds * steps)
    checkpoint = options.state / f"{backbone.key}.pt"
    if checkpoint.exists():
        training.load(checkpoint)

    while len(training.history) < rounds and time.monotonic() < end:
        begun, number = time.monotonic(), len(training.history)
        side = options.sides[number * len(options.sides) // rounds]
        epoch, part = divmod(number, ROUNDS)
        order = np.random.default_rng([options.seed, epoch]).permutation(train)
        batches = order[: ROUNDS * steps * options.batch].reshape(ROUNDS, steps, -1)[part]
        views = Views(options, number, pixels, labels, known, teacher)
        record = {"round": number, "side": side}
        record["loss"] = training.round(views, teacher, batches, side)
        record["seconds"] = time.monotonic() - begun
        record["accuracy"] = accuracy(pupil, pixels[held_out], labels[held_out], side)
        training.history.append(record)
        print(json.dumps(record), flush=True)
        training.save(checkpoint)
    if len(training.history) < rounds:
        print(f"{len(training.history)} of {rounds} rounds; give the same command again to go on")
        return
    used = (
        f"Tiny ImageNet, {len(train):,} images of {labels.max() + 1} ImageNet classes, "
        f"{SIDE} x {SIDE} pixels; {len(held_out):,} more held out"
    )

    def measure(pupil: Pupil) -> float:
        return accuracy(pupil, pixels[held_out], labels[held_out], options.sides[-1])

    finish(training, body, options, {"images": used, "start": former}, measure)


if __name__ == "__main__":
    main()
