"""Task presets: plain functions that return what a run needs.

A task's name is that of a preset (``digits``), of a kind of dataset and where it lies (``cifar10:PATH``), or of a
module and a task in it (``py:module:name``).
"""

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from esper.kasmina.bypass_blueprints import CONV4X2, CONV8X2, CONV16X2
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import BOTTLENECK, CONV_BLUEPRINTS, CONV_HEAVY, NORM
from esper.kasmina.token_blueprints import ATTENTION, LORA, MLP, TOKEN_BLUEPRINTS
from esper.kasmina.token_bypasses import TRANSFORMER16, TRANSFORMER32
from esper.kasmina.transformer import transformer_host
from esper.leyline.actions import Blend
from esper.leyline.config import ConfigError, Isolation
from esper.runtime.own import called, is_own, load
from esper.runtime.task import Task
from esper.runtime.varied import chars_varied, digits_varied, fashion_varied
from esper.tolaria.characters import characters, python_topics
from esper.tolaria.data import Dataset, dataset_error
from esper.tolaria.digits import digits as read_digits
from esper.tolaria.formats.cifar10 import cifar10 as read_cifar10
from esper.tolaria.formats.idx import NUM_CLASSES as IDX_CLASSES
from esper.tolaria.formats.idx import idx as read_idx
from esper.tolaria.formats.npy_folder import npy as read_npy
from esper.tolaria.formats.npz import npz as read_npz
from esper.tolaria.formats.text import text as read_text
from esper.tolaria.markov import draw_chain, markov
from esper.tolaria.synthetic import synthetic as draw_clusters
from esper.utils.documents import shown

IMAGE_BLUEPRINTS = (NORM, CONV_HEAVY, BOTTLENECK, CONV4X2, CONV8X2, CONV16X2)
"""Three kinds behind a host's blocks, and networks beside it of three sizes."""
TEXT_BLUEPRINTS = (LORA, ATTENTION, MLP, TRANSFORMER16, TRANSFORMER32)
"""Three kinds behind the embeddings, and transformers of one block beside the host, of two widths."""

BESIDE = "input:logits"
"""The slot of what grows beside a whole host."""

PARAMETER_PRICE = 0.08
"""Rent per step and e-fold of parameters: over 25 steps as much as 2 pp of final accuracy."""


def digits() -> Task:
    """Optical digits, 8x8, for a host that is starved on purpose: its one block of 4 channels reaches 58 %.

    Two slots lie behind the block, and one leads from the image to the logits: networks of three sizes can grow beside
    the host.
    """
    dataset = read_digits()
    host = cnn_host(dataset.input_shape, dataset.num_classes, num_blocks=1, base_channels=4)
    settings = {"slots": (0, 0, BESIDE), "steps_per_epoch": 16, "horizon": 25, "host_lr": 0.1, "seed_lr": 0.1}
    rewards = {"loss_target": 0.1, "terminal_accuracy": 1.0, "terminal_fossil": 0.5, "rent_weight": PARAMETER_PRICE}
    rewards |= {"price": 2.0}
    task = Task("digits", host, IMAGE_BLUEPRINTS, dataset, settings, rewards)
    return task._replace(script=CONV8X2.name, rival=cnn_host(dataset.input_shape, dataset.num_classes, 2, 8))


def digits_v1() -> Task:
    """The digits as they were first, for comparisons of speed.

    Three slots behind the block, for seeds that keep the shape of its narrow maps and train by its output's gradient.
    """
    dataset = read_digits()
    host = cnn_host(dataset.input_shape, dataset.num_classes, num_blocks=1, base_channels=4)
    settings = {"slots": (0, 0, 0), "steps_per_epoch": 16, "horizon": 25, "host_lr": 0.1, "seed_lr": 0.1}
    settings |= {"isolation": Isolation.STRAIGHT_THROUGH}
    return Task("digits_v1", host, CONV_BLUEPRINTS, dataset, settings, {"loss_target": 0.2})


def digits_impaired() -> Task:
    """The digits for a host that is starved on purpose, nearly blind: convolutions of one pixel, one channel."""
    dataset = read_digits()
    host = cnn_host(dataset.input_shape, dataset.num_classes, num_blocks=1, base_channels=1, kernel_size=1)
    settings = {"slots": (0, 0, 0), "steps_per_epoch": 16, "horizon": 25, "host_lr": 0.1, "seed_lr": 0.1}
    return Task("digits_impaired", host, CONV_BLUEPRINTS, dataset, settings)


def digits_deep() -> Task:
    """The digits for five narrow blocks, a slot behind each and one beside them all: where to grow matters.

    On the test part the host reaches 92.9 %, with bottlenecks in all five slots 93.2, with ``conv8x2`` beside it 97.6;
    a static network of two blocks of 16 and 32 channels 98.1 (16 environments).
    """
    dataset = read_digits()
    host = cnn_host(dataset.input_shape, dataset.num_classes, num_blocks=5, base_channels=2, pool_blocks=2)
    slots = (0, 1, 2, 3, 4, BESIDE)
    settings = {"slots": slots, "steps_per_epoch": 16, "horizon": 25, "host_lr": 0.05, "seed_lr": 0.05}
    task = Task("digits_deep", host, IMAGE_BLUEPRINTS, dataset, settings)
    return task._replace(script=CONV8X2.name, rival=cnn_host(dataset.input_shape, dataset.num_classes, 2, 8))


def images(dataset: Dataset, name: str) -> Task:
    """Three blocks of 8, 16 and 32 channels, a slot behind each and one beside all, for images [C, H, W] of any kind;
    as many blocks pool as there are pixels for.

    Raises:
      DatasetError: samples that are not images.
    """
    shape = dataset.input_shape
    if len(shape) != 3:
        raise dataset_error(dataset.name, "train.inputs", f"sample shape {shape}", "images (C, H, W), or int64 tokens")
    pools = min(3, min(shape[1:]).bit_length() - 1)
    host = cnn_host(shape, dataset.num_classes, num_blocks=3, base_channels=8, pool_blocks=pools)
    settings = {"slots": (0, 1, 2, BESIDE), "steps_per_epoch": 16, "horizon": 25, "host_lr": 0.05, "seed_lr": 0.05}
    return Task(name, host, IMAGE_BLUEPRINTS, dataset, settings)


def cifar10(path: str) -> Task:
    """CIFAR-10, binary version, from a folder; crops and mirror images while training."""
    task = images(read_cifar10(path), "cifar10")
    return task._replace(settings=task.settings | {"crop_padding": 4, "mirror": True})


def idx(path: str, num_classes: int = IDX_CLASSES) -> Task:
    """MNIST or a dataset of its family, from a folder of IDX files, gzipped or not."""
    return images(read_idx(path, num_classes), "idx")


def npz(path: str, num_classes: int | None = None) -> Task:
    """Images or token sequences from an NPZ archive: train_inputs, train_targets, the same of val or test or both."""
    dataset = read_npz(path, num_classes)
    if not dataset.has_tokens:
        return images(dataset, "npz")
    block = dataset.input_shape[0]
    host = transformer_host(dataset.num_classes, block=block, num_layers=0, num_heads=4, width=32)
    return Task("npz", host, TEXT_BLUEPRINTS, dataset, TOKEN_SETTINGS)


def npy(path: str, num_classes: int | None = None) -> Task:
    """Images from a folder of NPY files, which may be larger than memory."""
    return images(read_npy(path, num_classes), "npy")


def synthetic() -> Task:
    """Noisy class prototypes of 1x8x8, for quick trials."""
    dataset = draw_clusters()
    host = cnn_host(dataset.input_shape, dataset.num_classes, num_blocks=3, base_channels=4, pool_blocks=2)
    return Task("synthetic", host, CONV_BLUEPRINTS, dataset, {"slots": (0, 1, 2), "steps_per_epoch": 8})


TOKEN_SETTINGS: dict[str, Any] = {
    "slots": (0, 0, BESIDE),
    "blends": (Blend.LINEAR, Blend.SIGMOID),
    "batch_size": 32,
    "steps_per_epoch": 16,
    "val_samples": 256,
    "eval_batch_size": 64,
    "horizon": 25,
    "host_optimizer": "adam",
    "seed_optimizer": "adam",
    "host_lr": 0.01,
    "seed_lr": 0.01,
    "host_weight_decay": 0.0,
    "min_training_epochs": 1,
    "blend_epochs": 2,
    "min_blending_epochs": 1,
    "min_improvement": 0.3,
    "min_contribution": 0.3,
}
"""What the language tasks share. The rates are those at which growing on ``chars`` ends highest in the sweep of
``bench.isolation``. Episodes are short, and a seed that learns its own objective is worth its place after an epoch, so
it is blended in early; by no gate, which averages features: characters are none. Thresholds: next-token accuracy moves
by less than that of a classifier.
"""


def text(corpus: str, name: str = "text") -> Task:
    """Next-character prediction on any text. The host is embeddings and a tied head without a block between them: no
    position sees another, and the scores of a pair of characters hardly depend on its order. Two slots behind the
    embeddings let it grow attention and depth, and one from the characters to the scores a transformer beside it.

    Raises:
      DatasetError: the text is too short, or of one character.
    """
    dataset = characters(corpus, block=16, max_vocabulary=96, name=name)
    host = transformer_host(dataset.num_classes, block=16, num_layers=0, num_heads=4, width=32)
    return Task(name, host, TEXT_BLUEPRINTS, dataset, TOKEN_SETTINGS, {"loss_target": 1.5})


def chars() -> Task:
    """English that every CPython carries: the topics of its help."""
    task = text(python_topics(), "chars")
    rival = transformer_host(task.data.num_classes, 16, 1, 4, 16)
    return task._replace(script=TRANSFORMER16.name, rival=rival)


def synthetic_tokens() -> Task:
    """Sequences in which the next token depends on the last two, for quick trials; the host sees the last one. The
    best losses of both are known, 0.91 and 0.54 nats: see ``esper.tolaria.markov.best_losses``.
    """
    dataset = markov(draw_chain(vocabulary=4, sharpness=3.0, seed=0), block=12, num_train=1024)
    host = transformer_host(dataset.num_classes, block=12, num_layers=0, num_heads=4, width=16)
    settings = TOKEN_SETTINGS | {"slots": (0, 0, 0), "blends": tuple(Blend), "steps_per_epoch": 8}
    settings |= {"eval_batch_size": 256}
    return Task("synthetic_tokens", host, TOKEN_BLUEPRINTS, dataset, settings, {"loss_target": 0.54})


TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "digits_v1": digits_v1,
    "digits_impaired": digits_impaired,
    "digits_deep": digits_deep,
    "chars": chars,
    "synthetic": synthetic,
    "synthetic_tokens": synthetic_tokens,
    "digits_varied": lambda: digits_varied(digits()),
    "chars_varied": lambda: chars_varied(chars()),
}
"""All presets by name."""

SOURCES: dict[str, Callable[..., Task]] = {
    "cifar10": cifar10,
    "idx": idx,
    "npz": npz,
    "npy": npy,
    "text": lambda path: text(read_text(path)),
    "fashion_varied": lambda path: fashion_varied(images(read_idx(path), "fashion_varied")),
}
"""Kinds of datasets on disk; a task's name is the kind, a colon and the path, and for ``idx`` and ``npz`` perhaps the
number of classes: ``idx:data/emnist#classes=27``.
"""

CLASSES = re.compile(r"(.+)#classes=([^/#]*)")
COUNTED = ("idx", "npz", "npy")
"""Kinds whose number of classes can be told."""


def named(name: str) -> Task:
    """The task of a name, as in ``digits`` and ``cifar10:data/cifar-10-batches-bin``.

    Raises:
      ConfigError: no such task.
      DatasetError: the dataset does not load.
    """
    if not isinstance(name, str):
        raise ConfigError(f"task {name!r}: {_expected()}")
    kind, colon, path = name.partition(":")
    if colon and kind in SOURCES and path:
        told = CLASSES.fullmatch(path)
        if told is None:
            return SOURCES[kind](path)._replace(name=name)
        if kind not in COUNTED:
            raise ConfigError(f"task {name!r}: #classes is for {' and '.join(COUNTED)}; expected {kind}:PATH alone")
        if not (told[2].isascii() and told[2].isdigit() and len(told[2]) < 8):
            raise ConfigError(f"task {name!r}: #classes = {shown(told[2])}: expected an integer >= 2")
        return SOURCES[kind](told[1], int(told[2]))._replace(name=name)
    if name in TASKS:
        return TASKS[name]()
    if is_own(name):
        return _own(name)
    near = get_close_matches(name, TASKS, n=1)
    raise ConfigError(f"task {name!r}: {_expected()}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _own(name: str) -> Task:
    """A task, or a function without arguments that returns one, of the user's own."""
    found = load("task", name)
    task = found if isinstance(found, Task) or not callable(found) else called("task", name, found)
    if not isinstance(task, Task):
        raise ConfigError(f"task {name!r}: found a {type(task).__name__}; expected an esper.Task, or a function to one")
    return task._replace(name=name)


def takes_path(name: str) -> bool:
    """Whether a task's name is a kind of dataset and a path."""
    return name.partition(":")[0] in SOURCES and ":" in name


def begins_task(word: str) -> bool:
    """Whether a word is a task's name, or the beginning of one that goes on behind a comma."""
    return word in TASKS or takes_path(word) or is_own(word)


def _expected() -> str:
    return f"expected one of {', '.join((*TASKS, *(f'{source}:PATH' for source in SOURCES), 'py:module:name'))}"
