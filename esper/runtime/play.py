"""Playing episodes: any player, any engine, and what came of it."""

import time
from typing import NamedTuple, TextIO

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.engine import Engine
from esper.kasmina.network import seed_sizes
from esper.leyline.actions import Op
from esper.leyline.stages import Stage
from esper.leyline.state import State
from esper.simic.rewards import RewardMode, RewardParams, build_reward_params, reward
from esper.tamiyo.players import Player, Sight
from esper.utils import rng

PLAY_STREAM = 0x91A7
"""Folded into the episode's seed for the players' own draws."""


class Outcome(NamedTuple):
    """One episode of every environment under one player; [E] each unless said."""

    player: str
    accuracy: Tensor  # pp; final validation accuracy
    best: Tensor  # pp; best validation accuracy
    total_reward: Tensor  # undiscounted return
    added: Tensor  # parameters in seeds at the end
    germinated: Tensor  # seeds germinated, by GERMINATE or CHANGE_BLUEPRINT
    fossilized: Tensor  # permanent seeds at the end
    culled: Tensor  # seeds removed, by whomever
    rollbacks: Tensor
    refused: Tensor  # illegal actions
    operations: Tensor  # int64 [T, 6]; how often each operation was carried out, by decision
    seconds: float


def play(
    engine: Engine,
    player: Player,
    seed: int,
    mode: RewardMode = RewardMode.SHAPED,
    params: RewardParams | None = None,
    progress: TextIO | None = None,
) -> tuple[State, Outcome]:
    """Play one episode in every environment.

    Args:
      engine: what to play.
      player: who decides.
      seed: of the environments and of the player's draws; equal seeds give paired episodes.
      mode, params: the reward that is summed up.
      progress: where a line per five epochs goes, if anywhere.

    Returns:
      the final state and the outcome.
    """
    start, config = time.perf_counter(), engine.config
    numbers = build_reward_params({}, config, engine.data.train_inputs.device) if params is None else params
    state, memory = engine.init(seed), player.init(config.num_envs)
    keys = rng.fold_in(rng.fold_in(rng.key(seed), PLAY_STREAM), torch.arange(config.num_envs)).to(state.key.device)
    total = torch.zeros(config.num_envs, dtype=torch.float64)
    germinated, culled, refused = (torch.zeros(config.num_envs, dtype=torch.int64) for _ in range(3))
    operations = []
    for decision in range(config.horizon):
        sight = Sight(state, engine.observe(state), engine.mask(state), rng.fold_in(keys, decision))
        memory, action = player.act(memory, sight)
        before = state
        state, event = engine.step(state, action)
        total += reward(mode, numbers, engine.network, before, state, event).total
        op, after = event.deed.op, event.life.after
        germinated += (op == int(Op.GERMINATE)) | (op == int(Op.CHANGE_BLUEPRINT))
        lost = ((event.life.before != after) & (after == int(Stage.CULLED))) | event.judgement.culled
        culled += lost.sum(1) + (op == int(Op.CULL)) + (op == int(Op.CHANGE_BLUEPRINT))
        refused += event.deed.refusal != 0
        operations.append(F.one_hot(op, len(Op)).sum(0))
        if progress is not None and ((decision + 1) % 5 == 0 or decision + 1 == config.horizon):
            accuracy, elapsed = float(state.signals.val_accuracy.mean()), time.perf_counter() - start
            line = f"  epoch {decision + 1:3d}/{config.horizon}  accuracy {accuracy:5.1f} %  {elapsed:5.0f} s\n"
            progress.write(line)
            progress.flush()
    outcome = Outcome(
        player=player.name,
        accuracy=state.signals.val_accuracy,
        best=state.signals.best_accuracy,
        total_reward=total,
        added=seed_sizes(engine.network, state.slots).sum(1),
        germinated=germinated,
        fossilized=(state.slots.stage == int(Stage.FOSSILIZED)).sum(1),
        culled=culled,
        rollbacks=state.governor.rollbacks,
        refused=refused,
        operations=torch.stack(operations),
        seconds=time.perf_counter() - start,
    )
    return state, outcome
