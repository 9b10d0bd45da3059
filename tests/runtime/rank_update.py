"""Run by torchrun: an update of several ranks beside that of one, on the same episodes; the first rank prints how far
they are apart, case by case, as lines of JSON.
"""

import copy
import json
import sys

import torch

import esper
from esper.runtime.distributed import joined, launch
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner, make_collector
from esper.simic.ppo_config import PPOConfig
from esper.simic.ranks import blocks
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic

NUMBERS = {"steps_per_epoch": 1, "batch_size": 4, "val_samples": 8, "horizon": 5}
CASES = {
    "uneven": ([(5, 3, 0)], None),
    "a minibatch without rows of a rank": ([(7, 1, 0)], None),
    "a broken episode": ([(4, 2, 2)], 5),
    "a rank whose only episode is broken": ([(1, 4, 3)], 0),
    "two tasks": ([(3, 3, 2), (2, 5, 1)], None),
}


def as_double(batch):
    """Its numbers in float64."""
    return batch.apply(lambda value: value.double() if value.is_floating_point() else value)


def main():
    """All cases."""
    launched = launch()
    engine = esper.make("synthetic", 8, backend="eager", **NUMBERS)
    policy = build_actor_critic(ActorCriticConfig(8, 8, 8), engine.codec, len(engine.columns), seed=5)
    torch.manual_seed(3)
    collector = make_collector(EsperEnv(engine, seed=3), policy)
    batches = [as_double(next(iter(collector)).clone()) for _ in range(2)]
    policy = policy.double()
    config = PPOConfig(lr=0.01, minibatches=3, epochs=3, target_kl=1e9)
    with joined(launched, "cpu") as group:
        for name, (sizes, broken) in CASES.items():
            whole = [batch.clone() for batch in batches[: len(sizes)]]
            if broken is not None:
                whole[0]["next", "reward"][broken, 2] = torch.nan
            places = [blocks(counts)[group.rank] for counts in sizes]
            own = [batch[place.first : place.first + place.size] for batch, place in zip(whole, places, strict=True)]
            one = Learner(copy.deepcopy(policy), config, 4, seed=7)
            many = Learner(copy.deepcopy(policy), config, 4, seed=7, ranks=group)
            told = [one.update(whole), many.update(own)]
            pairs = zip(one.policy.parameters(), many.policy.parameters(), strict=True)
            far = max(float((first - second).detach().abs().max()) for first, second in pairs)
            start = zip(one.policy.parameters(), policy.parameters(), strict=True)
            moved = max(float((first - second).detach().abs().max()) for first, second in start)
            said = max(abs(told[0][key] - told[1][key]) for key in told[0])
            if group.rank == 0:
                line = {"case": name, "far": far, "told": said, "moved": moved, "left_out": told[1]["left_out"]}
                sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
