"""Inference of a state in all its lanes, by whichever form the network has."""

from torch import Tensor

from esper.kasmina import whole
from esper.kasmina.lanes import Lanes, lane_alphas, lane_forward, lane_params
from esper.kasmina.network import Network
from esper.kasmina.whole import Forward
from esper.leyline.state import State


def lane_logits(network: Network, state: State, lanes: Lanes, target: Tensor) -> Forward:
    """Bind a state's numbers.

    Args:
      network: structure.
      state: [E]; read only.
      lanes: the tree, L lanes.
      target: [E]; alpha of prospect lanes.

    Returns:
      inputs [E, B, *input_shape] -> logits [L, B, C]; rows 0 to E - 1 are the environments as they are.
    """
    alphas = lane_alphas(state, lanes, target)
    if network.units.whole is not None:
        return whole.infer(network, network.units.whole, state, lanes, alphas)
    params = lane_params(network, state, lanes, alphas)
    return lambda inputs: lane_forward(network, lanes, params, inputs)
