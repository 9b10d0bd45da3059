"""A learned policy by tiles of a fixed size, so that what it says of an environment does not depend on the others.

The policy's weights are common to all environments, so a batch of them is one matrix product, whose order of summation
a library chooses by the number of rows. In tiles it always has ``TILE`` rows: the last tile is filled up with copies.
"""

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MaskedCategorical, ProbabilisticActor

from esper.leyline.config import ConfigError
from esper.utils import rng

TILE = 64
"""Rows of a tile."""

DRAW_KEY = "draw_key"
"""Name of the keys, int64 [E, 2], that a strict environment gives its policy to draw an action by."""

Run = Callable[[TensorDictBase], TensorDictBase]


class Tiled:
    """A function of rows, [n] to [n] for any n, from one that is only ever called with ``TILE`` rows.

    Law: a row of the result depends on nothing but that row of what was given, to the bit. That it does not depend on
    the row's place in its tile is a property of the machine's matrix products, and is looked at in the first call.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.tried = run, False

    def __call__(self, given: TensorDictBase) -> TensorDictBase:
        """Run all tiles.

        Raises:
          ConfigError: equal rows of a tile do not give equal bits here; one line.
        """
        count, places = given.batch_size[0], torch.arange(-(-given.batch_size[0] // TILE) * TILE, device=given.device)
        if not self.tried:
            self._try(given)
        tiles = [self.run(tile) for tile in given[places.clamp(max=count - 1)].split(TILE)]
        return torch.cat(tiles)[:count]

    def _try(self, given: TensorDictBase) -> None:
        found = self.run(given[:1].expand(TILE).clone())
        for name, leaf in found.items(include_nested=True, leaves_only=True):
            if not bool(((leaf == leaf[:1]) | (leaf != leaf)).all()):
                raise ConfigError(
                    f"deterministic = 'strict': {name} of equal rows of a tile differ on this machine; "
                    "expected 'ordinary'"
                )
        self.tried = True


def scored(actor: Callable[[TensorDictBase], TensorDictBase]) -> Run:
    """An actor's forward pass without its own draw of an action."""

    def run(part: TensorDictBase) -> TensorDictBase:
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            return actor(part)

    return run


class StrictActor(TensorDictModuleBase):
    """An actor that runs by tiles and draws by the keys that the environments give, not by torch's global generator.

    It reads what the actor reads and ``draw_key``, and writes what the actor writes; without gradients.
    """

    def __init__(self, actor: ProbabilisticActor) -> None:
        super().__init__()
        self.actor = actor
        self.in_keys, self.out_keys = [*actor.in_keys, DRAW_KEY], list(actor.out_keys)
        self.tiled = Tiled(self._decide)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Decide for every environment."""
        found = self.tiled(tensordict.select(*self.in_keys))
        return tensordict.update(found.select(*self.out_keys))

    def _decide(self, tile: TensorDictBase) -> TensorDictBase:
        out, mask = scored(self.actor)(tile), tile["action_mask"]
        action = rng.categorical(tile[DRAW_KEY], torch.where(mask, out["logits"], -torch.inf))
        chance = MaskedCategorical(logits=out["logits"], mask=mask).log_prob(action)
        return out.update({"action": action, "action_log_prob": chance})
