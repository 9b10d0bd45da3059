"""Stable-Baselines3's view of ``EsperVectorEnv``: a ``VecEnv`` whose environments have action masks; extra ``gym``.

SB3 knows no batched environments, so what it asks of each by name is answered with rows of one batched call.
"""

from collections.abc import Iterable
from typing import Any

from esper.simic.environment import EsperEnv
from esper.simic.gymnasium_env import Array, EsperVectorEnv

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError:
    raise ImportError("esper.simic.sb3_env needs stable-baselines3: pip install 'esper-growth[gym]'") from None

Indices = int | Iterable[int] | None


class EsperVecEnv(VecEnv):
    """A batch of growing networks for Stable-Baselines3, such as ``sb3_contrib.MaskablePPO``.

    The horizon is a truncation: ``TimeLimit.truncated`` and ``terminal_observation`` are in the info of the step that
    ends an episode, and learners bootstrap from there. Whoever plays a learned policy hands it
    ``get_action_masks(env)``: without, ``predict`` chooses illegal actions, which wait.
    """

    def __init__(self, env: EsperEnv) -> None:
        """View an environment."""
        self.batch = EsperVectorEnv(env)
        self.actions: Array | None = None
        spaces = (self.batch.single_observation_space, self.batch.single_action_space)
        super().__init__(env.engine.config.num_envs, *spaces)

    def reset(self) -> Array:
        """Begin anew, with the seed of ``seed`` or the next one."""
        observation: Array = self.batch.reset()[0]
        return observation

    def seed(self, seed: int | None = None) -> list[int | None]:
        """The next reset's seed; environments of a seed differ by their number. None: as it would have been."""
        if seed is not None:
            self.batch.env.next_seed = seed
        return [seed] * self.num_envs

    def among(self, indices: Indices) -> list[int]:
        """Numbers of the environments that are meant; None: all."""
        if indices is None:
            return list(range(self.num_envs))
        return [indices] if isinstance(indices, int) else list(indices)

    def step_async(self, actions: Array) -> None:
        """Keep the actions."""
        self.actions = actions

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Carry them out."""
        observation, reward, terminated, truncated, info = self.batch.step(self.actions)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(cut)} for cut in truncated & ~terminated]
        for each, ended in zip(infos, info.get("final_obs", ()), strict=False):
            each["terminal_observation"] = ended
        return observation, reward, terminated | truncated, infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute of every environment: the batch's own, and no rendering."""
        value = None if attr_name == "render_mode" else getattr(self.batch, attr_name)
        return [value for _ in self.among(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Environments of a batch have no attributes of their own.

        Raises:
          AttributeError: always.
        """
        raise AttributeError(f"EsperVecEnv: {attr_name}: environments of a batch have no attributes of their own")

    def env_method(self, method_name: str, *args: Any, indices: Indices = None, **kwargs: Any) -> list[Any]:
        """What a method of the batch gives for each environment."""
        rows = getattr(self.batch, method_name)(*args, **kwargs)
        return [rows[index] for index in self.among(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Indices = None) -> list[bool]:
        """No environment is wrapped."""
        return [False for _ in self.among(indices)]
