"""Demonstrations: what a task's scripts do in environments of their own, shown to a policy before its first round."""

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict, TensorDictBase

from esper.runtime.rollout import policy_input
from esper.runtime.scripts import play, waiting
from esper.runtime.task import Script, Task
from esper.simic.chunks import REMEMBERED
from esper.simic.environment import EsperEnv
from esper.simic.imitation import Shown, imitate, lessons
from esper.simic.ppo import Learner
from esper.tamiyo.policies import Policy
from esper.utils.settings import SettingsError

SEEN = ("observation", "action_mask")
"""What a learner sees."""


def scripts_of(task: Task) -> tuple[Script, ...]:
    """The scripts that a task names.

    Raises:
      SettingsError: it names none.
    """
    found = task.scripts or ((Script(task.script),) if task.script else ())
    if not found:
        raise SettingsError(f"--demonstrations: task {task.name!r} names no script; expected 0, or a task that does")
    return found


@torch.no_grad()
def show(env: EsperEnv, policy: Policy, seed: int, width: int) -> Shown:
    """An episode of every environment under a policy that draws nothing, as a learner sees it.

    Args:
      env: what is played.
      policy: what decides, on the environment's own actions.
      seed: of the environments.
      width: of the learner's memory, which is empty at the beginning.
    """
    engine, env.next_seed = env.engine, seed
    empty = torch.zeros(*env.batch_size, 1, width, device=env.device)
    seen, memory, steps, rewards = env.reset(), policy.init(engine.config.num_envs), [], []
    for _ in range(engine.config.horizon):
        memory, decision = policy.act(memory, policy_input(engine, env.state, env.state.key))
        action = env.translation.own_actions[decision.action]
        steps.append(seen.select(*SEEN).update({"action": action, **dict.fromkeys(REMEMBERED, empty)}))
        seen = env.step(TensorDict({"action": action}, env.batch_size, device=env.device))["next"]
        rewards.append(seen["reward"].squeeze(-1))
    return Shown(torch.stack(steps, 1), torch.stack(rewards, 1))


def demonstrate(
    plays: Sequence[tuple[EsperEnv, Task]],
    learner: Learner,
    seeds: Sequence[int],
    width: int,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Show a learner waiting and every script of each task, in the same environments.

    Args:
      plays: task by task.
      learner: fresh.
      seeds: of the environments, a set of them each.
      width: of the learner's memory.
      check: called before every minibatch.

    Returns:
      a line about it.

    Raises:
      SettingsError: a task names no script.
    """
    batches, played = list[TensorDictBase](), 0
    for env, task in plays:
        policies = [waiting(env.engine), *(play(env.engine, script) for script in scripts_of(task))]
        shown = [
            lessons([show(env, policy, seed, width) for policy in policies], learner.config.gamma) for seed in seeds
        ]
        batches.append(torch.cat(shown))
        played += len(policies) * len(seeds) * env.engine.config.num_envs
    surprise = imitate(learner, batches, check)
    return f"shown {played} episodes of scripts; {surprise:.3f} nats a decision are left\n"
