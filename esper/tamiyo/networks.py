"""The networks that a learned policy may be, by name."""

from collections.abc import Sequence

from torchrl.modules import ActorValueOperator

from esper.leyline.actions import Op
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tamiyo.amp import set_precision
from esper.tamiyo.graph_policy import build_graph_policies
from esper.tamiyo.interface import Interface, PolicyNetwork
from esper.tamiyo.memoryless import build_memoryless


def build_policies(
    network: PolicyNetwork,
    config: ActorCriticConfig,
    interfaces: Sequence[Interface],
    seed: int,
    ops: Sequence[Op] | None = None,
) -> tuple[ActorValueOperator, ...]:
    """One policy as it plays through each of several interfaces, with the same parameters in all.

    Args:
      network: which.
      config: sizes.
      interfaces: per task, at least one; of any but a graph policy one and the same.
      seed: of the parameters.
      ops: operations that a graph policy knows; None: those of the interfaces.

    Returns:
      per interface, an actor and critic; see ``build_actor_critic``.
    """
    shared = interfaces[0]
    if network is PolicyNetwork.GRAPH:
        built = build_graph_policies(config, interfaces, seed, ops)
    else:
        build = build_memoryless if network is PolicyNetwork.MLP else build_actor_critic
        built = (build(config, shared.codec, len(shared.columns), seed),) * len(interfaces)
    for policy in built:
        set_precision(policy, config.precision)
    return built
