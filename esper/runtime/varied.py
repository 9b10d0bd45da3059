"""Tasks whose environments differ, so that how much to grow, what, when and whether at all differs, too.

Each is a function from the task of which it is a varied form. The scripts that it names are those of which now one, now
another is best, as ``python -m bench.scripts`` finds.
"""

from collections.abc import Mapping

from esper.kasmina.bypass_blueprints import CONV4X2, CONV8X2, CONV16X2
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import NORM
from esper.kasmina.token_blueprints import ATTENTION
from esper.kasmina.token_bypasses import TRANSFORMER16, TRANSFORMER32
from esper.leyline.contexts import Choice, Distribution, Spread, Variation
from esper.runtime.task import Script, Task

LATE = 12
"""Epoch, of 25, from which the later ones of the scripts grow: a seed then learns behind a host that has learned, and
for half as many steps.
"""


def varied(task: Task, name: str, distributions: Mapping[str, Distribution], scripts: tuple[Script, ...]) -> Task:
    """A task whose environments differ, and the scripts of which now one, now another is best."""
    data = task.data._replace(variation=Variation(distributions))
    return task._replace(name=name, data=data, script="", scripts=scripts)


def digits_varied(digits: Task) -> Task:
    """The digits, where every environment is given something else: all labels right or six in ten wrong, all training
    samples or a twentieth of them, a parameter cheap or dear, a host that learns fast or slowly.
    """
    given: dict[str, Distribution] = {
        "price": Choice((0.25, 8.0)),  # whether and how much: an e-fold of parameters for half a point, or for 16
        "label_noise": Choice((0.0, 0.6)),  # how much and when: large networks learn wrong labels by heart
        "data_share": Choice((0.05, 1.0)),  # whether: 72 samples hardly feed a network of 5,000 parameters
        "host_lr": Spread(0.3, 1.0, log=True),  # when: a slow host leaves more to gain
    }
    kinds = (CONV8X2, CONV16X2, CONV4X2)
    scripts = tuple(Script(kind.name, start=start) for kind in kinds for start in (0, LATE))
    return varied(digits, "digits_varied", given, (*scripts, Script(NORM.name, 1)))


def chars_varied(chars: Task) -> Task:
    """Characters of English, where environments differ in the price, in the share of the text, in how many characters
    are garbled, and in how fast the host learns; the price of a factor of 1 is 2 points, as of the digits.
    """
    given: dict[str, Distribution] = {
        "price": Choice((0.25, 4.0)),  # whether and how much: ten points of accuracy for two e-folds at most
        "data_share": Choice((0.01, 1.0)),  # how much: 250 windows are known by heart after an epoch, 25,000 never
        "label_noise": Choice((0.0, 0.5)),  # when: what is told wrong must be averaged out before it is worth a block
        "host_lr": Spread(0.3, 1.0, log=True),  # what: a host that learns slowly is overtaken by what stands beside it
    }
    kinds = (TRANSFORMER16, TRANSFORMER32)
    scripts = tuple(Script(kind.name, start=start) for kind in kinds for start in (0, LATE))
    task = chars._replace(rewards={**chars.rewards, "price": 2.0})
    return varied(task, "chars_varied", given, (*scripts, Script(ATTENTION.name, 1)))


def fashion_varied(images: Task) -> Task:
    """Fashion-MNIST, or another of its family, for a host of two narrow blocks; environments differ as the digits' do,
    and in how noisy the images are. Epochs are of 8 steps of 32 samples: 25 of them see a ninth of the samples once.
    """
    given: dict[str, Distribution] = {
        "price": Choice((0.25, 8.0)),  # whether and how much: as of the digits
        "label_noise": Choice((0.0, 0.6)),  # how much: as of the digits
        "data_share": Choice((0.002, 1.0)),  # whether: 108 samples, or more than are ever seen
        "input_noise": Choice((0.0, 1.0)),  # what: a network of several layers averages noise out
    }
    kinds = (CONV8X2, CONV16X2, CONV4X2)
    scripts = tuple(Script(kind.name, start=start) for kind in kinds for start in (0, LATE))
    host = cnn_host(images.data.input_shape, images.data.num_classes, num_blocks=2, base_channels=4)
    numbers = {"slots": (0, 1, "input:logits"), "steps_per_epoch": 8, "batch_size": 32, "val_samples": 512}
    numbers |= {"host_lr": 0.1, "seed_lr": 0.1}
    task = images._replace(host=host, settings=images.settings | numbers, rewards={"price": 2.0})
    return varied(task, "fashion_varied", given, (*scripts, Script(NORM.name, 1)))
