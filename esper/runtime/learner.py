"""A run's learner as it starts: the policy that is asked for, and a view of it for every task."""

from collections.abc import Sequence

from esper.runtime.build import find_device
from esper.runtime.players import shown_interfaces, sizes_of
from esper.runtime.scene import Scene
from esper.runtime.start_from import start_from
from esper.runtime.train_settings import TrainSettings
from esper.simic.ppo import Learner
from esper.simic.ranks import ALONE, Ranks
from esper.tamiyo.interface import Interface, PolicyNetwork
from esper.tamiyo.networks import build_policies


def make_learner(
    settings: TrainSettings,
    scenes: Sequence[Scene],
    interface: Interface,
    is_new: bool = True,
    ranks: Ranks = ALONE,
) -> Learner:
    """The learner as it starts, with a view of its policy for every task."""
    network, shown = PolicyNetwork(settings.policy_network), shown_interfaces(settings, scenes, interface)
    device = find_device(settings.device, "--device")
    views = [view.to(device) for view in build_policies(network, sizes_of(settings), shown, settings.seed)]
    learner = Learner(views[0], settings.ppo(), settings.rounds, settings.seed, views=views, ranks=ranks)
    if settings.start_from and is_new:
        start_from(settings, views[0], interface)
    return learner
