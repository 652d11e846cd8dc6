"""Pre-train a backbone on Tiny ImageNet, for machines that no weight server can be reached from.

The pupil learns from the labels and from an ImageNet network: its pooled features and the 1000
class probabilities that follow from them, on the same augmented views (consistent teaching, Beyer
et al. 2022) or, where computing is dear, once for each photograph (`--fixed`). It is an unchanged
`keras.applications` architecture, so its weights load wherever Keras' own do.

    KERAS_BACKEND=jax python benchmarks/pretrain.py resnet50 \
        --photographs shared/data/tiny-imagenet \
        --teacher shared/weights/mobilenet_v2_imagenet_top.weights.h5 \
        --state /tmp/resnet50 --epochs 90 --minutes 9

goes on from the last checkpoint below `--state` until the epochs or the minutes are over; give the
same command again until it says that it is done. On a processor PyTorch trains two to three times
as fast as TensorFlow: `KERAS_BACKEND=torch`, `--fixed --mixup 0 --batch 64 --sides 32 32 32 48` and
few epochs (the teacher's features first, under TensorFlow: `--minutes 0`). `--limit 200` is a
rehearsal.
"""

import argparse
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from fruitveg_tl import backbones, quantised, runtime
from fruitveg_tl.augment import augmenter
from fruitveg_tl.storage import atomic_path, sha256_file, write_json

SIDE = 64  # pixels of a Tiny ImageNet photograph
TEACHER_SIDE = 128  # below, MobileNetV2 recognises little
HELD_OUT = 50  # every 50th photograph: 2 %
# Progressive resolution (Touvron et al. 2019): the pupil's input for each tenth of the rounds.
SIDES = (48, 48, 48, 64, 64, 64, 64, 64, 64, 96)
ROUNDS = 4  # an epoch's parts; each ends with a checkpoint
RATE = 2e-3  # at a batch of 512
LICENCE = (
    "photographs: ImageNet's terms, non-commercial research and education; "
    "teacher: Keras' MobileNetV2, Apache-2.0"
)
EPSILON = 1e-3  # of the BatchNorm that VGG16 is trained with


def photographs(folder: Path, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return all photographs (n, 64, 64, 3), uint8, memory-mapped, and their labels (n,)."""
    files = [dict(np.load(file)) for file in sorted(folder.glob("tiny_imagenet_train_*.npz"))]
    if not cache.exists():
        parts = [
            part["webp"][start:stop].tobytes()
            for part in files
            for start, stop in zip(part["offsets"], part["offsets"][1:], strict=False)
        ]
        with ThreadPoolExecutor() as pool, atomic_path(cache) as temporary:
            decoded = pool.map(
                lambda b: np.asarray(Image.open(io.BytesIO(b)).convert("RGB")), parts
            )
            array = np.lib.format.open_memmap(
                temporary, "w+", np.uint8, (len(parts), SIDE, SIDE, 3)
            )
            for i, pixels in enumerate(decoded):
                array[i] = pixels
            array.flush()
    return np.load(cache, mmap_mode="r"), np.concatenate([part["labels"] for part in files])


def teach(trunk: keras.Model, pixels: np.ndarray, cache: Path) -> np.ndarray:
    """Return the teacher's pooled features of all photographs, (n, 1280), float16."""
    if not cache.exists():
        with atomic_path(cache) as temporary:
            shape = (len(pixels), trunk.output_shape[-1])
            array = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            for start in range(0, len(pixels), 128):
                part = keras.ops.cast(pixels[start : start + 128], "float32")
                array[start : start + 128] = keras.ops.convert_to_numpy(see(trunk, part))
            array.flush()
    return np.load(cache, mmap_mode="r")


def see(trunk: keras.Model, pixels):
    """Return the teacher's pooled features of raw RGB, without a gradient."""
    shown = keras.ops.image.resize(pixels, (TEACHER_SIDE, TEACHER_SIDE))
    shown = keras.applications.mobilenet_v2.preprocess_input(shown)
    return keras.ops.stop_gradient(trunk(shown, training=False))


class Pupil(keras.Model):
    """A backbone with two heads, one for the labels and one that imitates the teacher's features.

    Maps raw RGB (n, 64, 64, 3), for training with the teacher's features of the same photographs
    unless they are to be computed, to the logits of the labels; while training, to all that
    `compute_loss` needs.
    """

    def __init__(self, backbone, trunk: keras.Model, top: keras.Model, classes, options):
        super().__init__()
        self.backbone = backbone
        self.body = new_body(backbone)
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.labels = keras.layers.Dense(classes, dtype="float32")
        self.imitated = keras.layers.Dense(trunk.output_shape[-1], dtype="float32")
        self.trunk, self.top = trunk, top
        seed = options.seed
        self.augment = augmenter(seed) if options.augmentation == "full" else light_augmenter(seed)
        # Keras declares these layers unfit for compiling on account of TensorFlow's XLA alone.
        for layer in self.augment.layers:
            layer.supports_jit = keras.backend.backend() == "jax"
        self.random = keras.random.SeedGenerator(seed)
        self.seed, self.mixup = seed, options.mixup
        self.side = SIDE

    def begin(self, number: int) -> None:
        """Seed a round's random numbers: they must not depend on where training was resumed."""
        found = (getattr(layer, "generator", None) for layer in self.augment._flatten_layers())
        for i, generator in enumerate([self.random, *filter(None, found)]):
            generator.state.assign(np.array([1000 * number + i, self.seed], "uint32"))

    def call(self, inputs, training=False):
        """See the class."""
        pixels, *known = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        pixels = keras.ops.cast(pixels, "float32")
        if not training:
            return self.labels(self.features(pixels, training=False))
        if known:  # small photographs are augmented sooner
            pixels = keras.ops.image.resize(pixels, (self.side, self.side))
        pixels = self.augment(pixels, training=True)
        share = 1.0
        if self.mixup:
            share = keras.random.beta((), self.mixup, self.mixup, seed=self.random)
        pixels = blend(share, pixels)
        if known:
            seen = blend(share, keras.ops.cast(known[0], "float32"))
        else:
            seen = see(self.trunk, pixels)
        features = self.features(pixels, training=True)
        return {
            "labels": self.labels(features),
            "imitated": self.imitated(features),
            "seen": keras.ops.cast(seen, "float32"),
            "share": share * keras.ops.ones((keras.ops.shape(pixels)[0],)),
        }

    def features(self, pixels, training: bool):
        """Return pooled features of raw RGB at the present side."""
        pixels = keras.ops.image.resize(pixels, (self.side, self.side))
        return self.pool(self.body(self.backbone.preprocess_input(pixels), training=training))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Mean of label loss, cross-entropy with the teacher's answers, and distance from it."""
        loss = keras.losses.sparse_categorical_crossentropy
        if not training:
            return keras.ops.mean(loss(y, y_pred, from_logits=True))
        share, imitated, seen = y_pred["share"], y_pred["imitated"], y_pred["seen"]
        mixed = share * loss(y, y_pred["labels"], from_logits=True)
        mixed = mixed + (1 - share) * loss(keras.ops.flip(y, 0), y_pred["labels"], from_logits=True)
        taught = keras.losses.categorical_crossentropy(self.top(seen), self.top(imitated))
        distance = 1 + keras.losses.cosine_similarity(seen, imitated)
        return keras.ops.mean((mixed + taught) / 2 + distance)


def new_body(backbone) -> keras.Model:
    """Return the backbone without top, as it starts.

    VGG16 trains with BatchNorm behind every convolution, which `plain_weights` folds away.
    """
    body = backbone.constructor(weights=None, include_top=False)
    if backbone.key == "vgg16":
        body = keras.models.clone_model(body, clone_function=normalised)
    for layer in body._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            # MobileNetV2's 0.999 is too slow for few epochs.
            layer.momentum = 0.99
            if backbone.key == "resnet50" and layer.name.endswith("_3_bn"):
                # Every block starts as the identity (Goyal et al. 2017).
                layer.gamma.assign(keras.ops.zeros_like(layer.gamma))
    return body


def light_augmenter(seed: int) -> keras.Sequential:
    """Return flips and shifts alone: with few epochs there is little to overfit to."""
    shift = keras.layers.RandomTranslation(0.1, 0.1, fill_mode="reflect", seed=seed + 1)
    return keras.Sequential([keras.layers.RandomFlip("horizontal", seed=seed), shift])


def normalised(layer: keras.Layer) -> keras.Layer:
    """Return a copy of a layer; of a convolution, one with BatchNorm before its activation."""
    copy = type(layer).from_config(layer.get_config())
    if not isinstance(layer, keras.layers.Conv2D):
        return copy
    copy.use_bias, copy.activation = False, keras.activations.linear
    norm = keras.layers.BatchNormalization(epsilon=EPSILON)
    return keras.Sequential([copy, norm, keras.layers.ReLU()], name=layer.name)


def plain_weights(body: keras.Model) -> list[np.ndarray]:
    """Return the weights in the order of the unchanged architecture, VGG16's BatchNorm folded."""
    values = []
    for layer in body.layers:
        if isinstance(layer, keras.Sequential):
            kernel, gamma, beta, mean, variance = layer.get_weights()
            factor = gamma / np.sqrt(variance + EPSILON)
            values += [kernel * factor, beta - mean * factor]
        else:
            values += layer.get_weights()
    return values


def set_plain_weights(body: keras.Model, values: list[np.ndarray]) -> None:
    """Undo `plain_weights`: the same function, with a BatchNorm that adds the bias alone."""
    values = iter(values)
    for layer in body.layers:
        if isinstance(layer, keras.Sequential):
            kernel, bias = next(values), next(values)
            ones, zeros = np.ones_like(bias), np.zeros_like(bias)
            layer.set_weights([kernel, ones, bias, zeros, ones - EPSILON])
        else:
            layer.set_weights([next(values) for _ in layer.weights])


def blend(share, values):
    """Return mixup's blend of a batch with itself in reverse order (Zhang et al. 2018)."""
    return share * values + (1 - share) * keras.ops.flip(values, 0)


def build(options: argparse.Namespace, classes: int, steps: int) -> Pupil:
    """Return the compiled pupil."""
    backbone = backbones.backbone_by_name(options.backbone)
    keras.utils.set_random_seed(options.seed)
    with runtime.dtype_policy(runtime.frozen_precision()):
        teacher = keras.applications.MobileNetV2(
            weights=options.teacher, input_shape=(TEACHER_SIDE, TEACHER_SIDE, 3)
        )
        teacher.trainable = False
        pooled, answers = teacher.layers[-2].output, teacher.layers[-1]
        trunk, top = keras.Model(teacher.input, pooled), keras.Sequential([answers])
        pupil = Pupil(backbone, trunk, top, classes, options)
    rate = RATE * (options.batch / 512) ** 0.5
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=rate, warmup_steps=steps // 20, alpha=0.001
    )
    memory = 1 - 20 / max(steps, 40)  # the last twentieth counts
    pupil.compile(
        keras.optimizers.AdamW(
            schedule, weight_decay=0.05, global_clipnorm=1.0, use_ema=True, ema_momentum=memory
        ),
        # XLA gains on a graphics card; on a processor it lacks oneDNN's convolutions.
        jit_compile=keras.backend.backend() == "jax",
    )
    example = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    pupil((example, np.zeros((2, *trunk.output_shape[1:]), np.float32)), training=True)
    pupil.optimizer.build(pupil.trainable_variables)
    return pupil


def accuracy(pupil: Pupil, pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> float:
    """Return the top-1 accuracy of the weights as they are."""
    right = 0
    for part in np.array_split(rows, -(-len(rows) // 256)):
        answers = keras.ops.convert_to_numpy(pupil.predict_on_batch(pixels[part]))
        right += int((answers.argmax(1) == labels[part]).sum())
    return right / len(rows)


@contextmanager
def averaged(pupil: Pupil):
    """Put the running averages in place of the weights inside the block."""
    present = [keras.ops.convert_to_numpy(variable) for variable in pupil.trainable_variables]
    pupil.optimizer.finalize_variable_values(pupil.trainable_variables)
    yield
    for variable, value in zip(pupil.trainable_variables, present, strict=True):
        variable.assign(value)


def finish(pupil: Pupil, options, photographs: str, history: list, measure) -> None:
    """Store the rounded backbone and its card: what it learnt from, how, and how well."""
    file = options.state / f"{pupil.backbone.snake_name}_tiny_imagenet_notop.npz"
    quantised.save(file, plain_weights(pupil.body))
    set_plain_weights(pupil.body, quantised.load(file))
    card = {
        "backbone": pupil.backbone.name,
        "photographs": photographs,
        "licence": LICENCE,
        "teacher": {"file": options.teacher.name, "sha256": sha256_file(options.teacher)},
        "recipe": {
            name: getattr(options, name)
            for name in ("epochs", "batch", "sides", "mixup", "augmentation", "fixed", "seed")
        },
        "seconds": sum(record["seconds"] for record in history),
        "held_out_accuracy": history[-1]["accuracy"],
        "held_out_accuracy_rounded": measure(),
        "sha256": sha256_file(file),
        "environment": runtime.environment(),
    }
    write_json(file.with_suffix(".json"), card)
    print(json.dumps(card, indent=1))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone")
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--mixup", type=float, default=0.2)
    parser.add_argument("--augmentation", choices=("full", "light"), default="full")
    parser.add_argument("--fixed", action="store_true", help="ask the teacher only once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="use this many photographs only")
    return parser.parse_args()


def main() -> None:
    """Train until the time or the epochs are over; at the end store the rounded backbone."""
    options = arguments()
    end = time.monotonic() + 60 * options.minutes

    pixels, labels = photographs(options.photographs, options.state.parent / "tiny-imagenet.npy")
    rows = np.random.default_rng(options.seed).permutation(len(labels))[: options.limit]
    held_out, train = rows[::HELD_OUT], np.delete(rows, np.s_[::HELD_OUT])
    steps, rounds = len(train) // options.batch // ROUNDS, options.epochs * ROUNDS
    pupil = build(options, int(labels.max()) + 1, rounds * steps)
    known = options.fixed and teach(pupil.trunk, pixels, options.state.parent / "teacher.npy")

    def batches(number: int):
        epoch, part = divmod(number, ROUNDS)
        order = np.random.default_rng([options.seed, epoch]).permutation(train)
        for chosen in order[: ROUNDS * steps * options.batch].reshape(ROUNDS, steps, -1)[part]:
            x = (pixels[chosen], known[chosen]) if options.fixed else pixels[chosen]
            yield x, labels[chosen].astype(np.int32)

    checkpoint = options.state / "checkpoint"
    history = []
    if checkpoint.exists():
        history = json.loads((checkpoint / "history.json").read_text())
        pupil.load_weights(checkpoint / "pupil.weights.h5")
    while len(history) < rounds and time.monotonic() < end:
        number = len(history)
        side = options.sides[number * len(options.sides) // rounds]
        if pupil.side != side:
            pupil.side = side
            for make in (pupil.make_train_function, pupil.make_predict_function):
                make(force=True)
        start = time.monotonic()
        pupil.begin(number)
        fitted = pupil.fit(batches(number), steps_per_epoch=steps, verbose=0)
        record = {"round": number, "side": side, "loss": fitted.history["loss"][0]}
        record["seconds"] = time.monotonic() - start
        with averaged(pupil):
            record["accuracy"] = accuracy(pupil, pixels, labels, held_out)
        history.append(record)
        print(json.dumps(record), flush=True)
        with atomic_path(checkpoint) as temporary:
            temporary.mkdir()
            pupil.save_weights(temporary / "pupil.weights.h5")
            (temporary / "history.json").write_text(json.dumps(history))
    if len(history) < rounds:
        print(f"{len(history)} of {rounds} rounds; give the same command again to go on")
        return
    used = (
        f"Tiny ImageNet, {len(train):,} photographs of {labels.max() + 1} ImageNet classes, "
        f"{SIDE} x {SIDE} pixels; {len(held_out):,} more held out"
    )
    with averaged(pupil):
        finish(pupil, options, used, history, lambda: accuracy(pupil, pixels, labels, held_out))


if __name__ == "__main__":
    main()
