"""Gymnasium's views of ``EsperEnv``, of a batch and of one network, for learners of other libraries; extra ``gym``.

Both are thin: they hold an ``EsperEnv`` and turn its tensors into arrays. All environments of a batch reach the horizon
in the same step; it is a truncation, after which they begin anew in that very step, with the next seed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase

from esper.simic.environment import METRICS, EsperEnv

try:
    import gymnasium
    from gymnasium.spaces import Box, Discrete
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError:
    raise ImportError("esper.simic.gymnasium_env needs gymnasium: pip install 'esper-growth[gym]'") from None

Array = np.ndarray[Any, Any]
Info = dict[str, Any]


class EsperVectorEnv(VectorEnv):
    """A batch of growing networks as a Gymnasium vector environment that is reset in the step in which it ends.

    Observations are float32 [E, O] in [-1, 1], actions indices [E] into ``env.interface.codec``; an illegal one waits.
    ``info["action_mask"]``, and ``action_masks()`` at any time, is bool [E, A]: what may be done next. ``info`` has the
    metrics of ``EsperEnv``, too, each with its mask, as in ``info["_val_accuracy"]``; of the step that ends an episode
    ``info["final_obs"]`` and ``info["final_info"]`` say what it ended with.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(self, env: EsperEnv) -> None:
        """View an environment; its engine's horizon is the length of an episode."""
        self.env = env
        self.num_envs = env.engine.config.num_envs
        size, columns = env.interface.codec.size, len(env.interface.columns)
        self.single_observation_space = Box(-1.0, 1.0, (columns,), np.float32)
        self.single_action_space = Discrete(size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.now: TensorDictBase = env.reset()

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None) -> tuple[Any, Info]:
        """Begin anew; environment i of a seed is the same in any batch, so of several seeds the first one counts."""
        first = seed if seed is None or isinstance(seed, int) else seed[0]
        super().reset(seed=first, options=options)
        if first is not None:
            self.env.next_seed = first
        self.now = self.env.reset()
        return _array(self.now["observation"]), self._info(self.now)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Info]:
        """One decision and one epoch of every environment."""
        chosen = torch.as_tensor(np.asarray(actions), dtype=torch.int64, device=self.env.device)
        after = self.env.step(self.now.set("action", chosen))["next"]
        reward, terminated, truncated = (
            _array(after[name].squeeze(1)) for name in ("reward", "terminated", "truncated")
        )
        info, self.now = self._info(after), after
        if bool((terminated | truncated).all()):
            final, ended = _array(after["observation"]), np.ones(self.num_envs, dtype=bool)
            self.now = self.env.reset()
            info = self._info(self.now) | {"final_obs": final, "_final_obs": ended, "final_info": info}
            info["_final_info"] = ended
        return _array(self.now["observation"]), reward, terminated, truncated, info

    def action_masks(self) -> Array:
        """Which actions are legal now, bool [E, A]."""
        return _array(self.now["action_mask"])

    def _info(self, table: TensorDictBase) -> Info:
        every = np.ones(self.num_envs, dtype=bool)
        info: Info = {"action_mask": _array(table["action_mask"]), "_action_mask": every}
        for name in METRICS:
            value = _array(table[name].squeeze(1))
            info |= {name: np.nan_to_num(value), f"_{name}": ~np.isnan(value)}
        return info


class EsperSingleEnv(gymnasium.Env):
    """One growing network as a Gymnasium environment: ``EsperVectorEnv`` of one, without its batch, and its reset."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, env: EsperEnv) -> None:
        """View an environment.

        Raises:
          ValueError: it has more than one network.
        """
        if env.engine.config.num_envs != 1:
            raise ValueError(f"EsperSingleEnv: {env.engine.config.num_envs} environments; expected 1")
        self.batch = EsperVectorEnv(env)
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        """Begin anew."""
        super().reset(seed=seed, options=options)
        observation, info = self.batch.reset(seed=seed)
        return observation[0], _row(info, 0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Info]:
        """One decision and one epoch."""
        observation, reward, terminated, truncated, info = self.batch.step([int(action)])
        seen = info.get("final_obs", observation)[0]
        return seen, float(reward[0]), bool(terminated[0]), bool(truncated[0]), _row(info.get("final_info", info), 0)

    def action_masks(self) -> Array:
        """Which actions are legal now, bool [A]."""
        mask: Array = self.batch.action_masks()[0]
        return mask


def _array(tensor: torch.Tensor) -> Array:
    """An array of its own memory."""
    return tensor.detach().cpu().numpy().copy()


def _row(info: Info, index: int) -> Info:
    """One environment's entries, of those that it has."""
    names = [name for name in info if f"_{name}" in info and name != "final_info"]
    return {name: info[name][index] for name in names if info[f"_{name}"][index]}
