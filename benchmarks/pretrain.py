"""Pre-train a backbone on Tiny ImageNet, for machines that no weight server can be reached from.

The pupil learns from the labels and, on the same augmented views, from the 1000 class
probabilities of an ImageNet network (consistent teaching, Beyer et al. 2022). It is an unchanged
`keras.applications` architecture, so its weights load wherever Keras' own do.

    KERAS_BACKEND=jax python benchmarks/pretrain.py resnet50 \
        --photographs shared/data/tiny-imagenet \
        --teacher shared/weights/mobilenet_v2_imagenet_top.weights.h5 \
        --state /tmp/resnet50 --epochs 90 --minutes 9

goes on from the last checkpoint below `--state` until the epochs or the minutes are over; give the
same command again until it says that it is done. On a processor `KERAS_BACKEND=tensorflow`,
`--batch 64` and few epochs are the choice; `--limit 200` is a rehearsal.
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
# Progressive resolution (Touvron et al. 2019): share of the epochs, side of the pupil's input.
STAGES = ((0.3, 48), (0.9, 64), (1.0, 96))
RATES = {"vgg16": 5e-4, "resnet50": 2e-3, "mobilenetv2": 2e-3}  # at a batch of 512
MIXUP = 0.2


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


class Pupil(keras.Model):
    """A backbone with two heads, one for the labels and one that imitates the teacher.

    Maps raw RGB (n, 64, 64, 3) to the logits of the labels; while training, to all that
    `compute_loss` needs.
    """

    def __init__(self, backbone: backbones.Backbone, teacher: keras.Model, classes: int, seed: int):
        super().__init__()
        self.backbone = backbone
        self.body = backbone.constructor(weights=None, include_top=False)
        if backbone.key == "vgg16":
            # Without batch norm Glorot's kernels let the signal fade (He et al. 2015).
            for number, layer in enumerate(self.body.layers):
                if isinstance(layer, keras.layers.Conv2D):
                    layer.kernel.assign(keras.initializers.HeNormal(number)(layer.kernel.shape))
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.labels = keras.layers.Dense(classes, dtype="float32")
        self.taught = keras.layers.Dense(1000, dtype="float32")
        self.teacher = teacher
        self.augment = augmenter(seed)
        # Keras declares these layers unfit for compiling on account of TensorFlow's XLA alone.
        for layer in self.augment.layers:
            layer.supports_jit = keras.backend.backend() == "jax"
        self.random = keras.random.SeedGenerator(seed)
        self.side = SIDE

    def call(self, pixels, training=False):
        """See the class."""
        pixels = keras.ops.cast(pixels, "float32")
        if not training:
            return self.labels(self.features(pixels, training=False))
        pixels = self.augment(pixels, training=True)
        share = keras.random.beta((), MIXUP, MIXUP, seed=self.random)
        pixels = share * pixels + (1 - share) * pixels[::-1]
        features = self.features(pixels, training=True)
        shown = keras.ops.image.resize(pixels, (TEACHER_SIDE, TEACHER_SIDE))
        answer = self.teacher(keras.applications.mobilenet_v2.preprocess_input(shown))
        return {
            "labels": self.labels(features),
            "taught": self.taught(features),
            "teacher": keras.ops.stop_gradient(answer),
            "share": keras.ops.broadcast_to(share, (keras.ops.shape(pixels)[0],)),
        }

    def features(self, pixels, training: bool):
        """Return pooled features of raw RGB at the present side."""
        pixels = keras.ops.image.resize(pixels, (self.side, self.side))
        return self.pool(self.body(self.backbone.preprocess_input(pixels), training=training))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Mean of the mixed label loss and the cross-entropy with the teacher's answer."""
        loss = keras.losses.sparse_categorical_crossentropy
        if not training:
            return keras.ops.mean(loss(y, y_pred, from_logits=True))
        logits, share = y_pred["labels"], y_pred["share"]
        mixed = share * loss(y, logits, from_logits=True)
        mixed = mixed + (1 - share) * loss(y[::-1], logits, from_logits=True)
        taught = keras.losses.categorical_crossentropy(
            y_pred["teacher"], y_pred["taught"], from_logits=True
        )
        return keras.ops.mean(mixed + taught) / 2


def build(options: argparse.Namespace, classes: int, steps: int) -> Pupil:
    """Return the compiled pupil."""
    backbone = backbones.backbone_by_name(options.backbone)
    keras.utils.set_random_seed(options.seed)
    with runtime.dtype_policy(runtime.frozen_precision()):
        teacher = keras.applications.MobileNetV2(
            weights=options.teacher, input_shape=(TEACHER_SIDE, TEACHER_SIDE, 3)
        )
        teacher.trainable = False
        pupil = Pupil(backbone, teacher, classes, options.seed)
    rate = RATES[backbone.key] * (options.batch / 512) ** 0.5
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=rate, warmup_steps=steps // 20, alpha=0.001
    )
    pupil.compile(
        keras.optimizers.AdamW(
            schedule, weight_decay=0.05, global_clipnorm=1.0, use_ema=True, ema_momentum=0.998
        ),
        # XLA gains on a graphics card; on a processor it lacks oneDNN's convolutions.
        jit_compile=keras.backend.backend() == "jax",
    )
    pupil(np.zeros((2, SIDE, SIDE, 3), np.uint8), training=True)
    pupil.optimizer.build(pupil.trainable_variables)
    return pupil


def side_of(epoch: int, epochs: int) -> int:
    """Return the pupil's input side in an epoch."""
    return next(side for share, side in STAGES if epoch < share * epochs)


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


def finish(pupil: Pupil, options: argparse.Namespace, history: list, measure) -> None:
    """Store the rounded backbone and what is known of it."""
    file = options.state / f"{pupil.backbone.snake_name}_tiny_imagenet_notop.npz"
    quantised.save(file, pupil.body.get_weights())
    pupil.body.set_weights(quantised.load(file))
    card = {
        "backbone": pupil.backbone.name,
        "photographs": "Tiny ImageNet, 202 classes, 64 x 64 pixels",
        "teacher": {"file": options.teacher.name, "sha256": sha256_file(options.teacher)},
        "epochs": len(history),
        "batch": options.batch,
        "seed": options.seed,
        "seconds": sum(record["seconds"] for record in history),
        "held_out_accuracy": history[-1]["accuracy"],
        "held_out_accuracy_rounded": measure(),
        "sha256": sha256_file(file),
        "environment": runtime.environment(),
    }
    write_json(file.with_suffix(".json"), card)
    print(json.dumps(card, indent=1))


def main() -> None:
    """Train until the time or the epochs are over; at the end store the rounded backbone."""
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="use this many photographs only")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes

    pixels, labels = photographs(options.photographs, options.state.parent / "tiny-imagenet.npy")
    rows = np.random.default_rng(options.seed).permutation(len(labels))[: options.limit]
    held_out, train = rows[::HELD_OUT], np.delete(rows, np.s_[::HELD_OUT])
    batches = len(train) // options.batch
    pupil = build(options, int(labels.max()) + 1, options.epochs * batches)

    checkpoint = options.state / "checkpoint"
    history = []
    if checkpoint.exists():
        history = json.loads((checkpoint / "history.json").read_text())
        pupil.load_weights(checkpoint / "pupil.weights.h5")
    while len(history) < options.epochs and time.monotonic() < end:
        epoch = len(history)
        if pupil.side != side_of(epoch, options.epochs):
            pupil.side = side_of(epoch, options.epochs)
            for make in (pupil.make_train_function, pupil.make_predict_function):
                make(force=True)
        start = time.monotonic()
        order = np.random.default_rng([options.seed, epoch]).permutation(train)
        parts = order[: batches * options.batch].reshape(batches, -1)
        stream = ((pixels[part], labels[part].astype(np.int32)) for part in parts)
        loss = pupil.fit(stream, steps_per_epoch=batches, verbose=0).history["loss"][0]
        record = {"epoch": epoch, "side": pupil.side, "loss": loss}
        record["seconds"] = time.monotonic() - start
        with averaged(pupil):
            record["accuracy"] = accuracy(pupil, pixels, labels, held_out)
        history.append(record)
        print(json.dumps(record), flush=True)
        with atomic_path(checkpoint) as temporary:
            temporary.mkdir()
            pupil.save_weights(temporary / "pupil.weights.h5")
            (temporary / "history.json").write_text(json.dumps(history))
    if len(history) < options.epochs:
        print(f"{len(history)} of {options.epochs} epochs; give the same command again to go on")
        return
    with averaged(pupil):
        finish(pupil, options, history, lambda: accuracy(pupil, pixels, labels, held_out))


if __name__ == "__main__":
    main()
