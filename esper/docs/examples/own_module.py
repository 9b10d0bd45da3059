"""A module of one's own as a host: written for one network in plain PyTorch, grown, and taken home as a plain module.

``python -m esper.docs.examples.own_module`` runs it. The text with its figures is ``esper/docs/examples.md``.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TextIO

import torch
from torch import Tensor, nn

from esper.docs.examples.results import interval, write_outcomes
from esper.engine import Engine
from esper.kasmina.bypass_blueprints import CONV8X2
from esper.kasmina.vector_blueprints import GATED_MLP
from esper.runtime.build import make
from esper.runtime.rollout import Outcome, rollout
from esper.runtime.tasks import digits
from esper.simic.rewards import DEFAULT_REWARD, build_reward_params
from esper.tamiyo.policies import from_mask
from esper.tamiyo.scripted import grow, wait
from esper.tezzeret.modules import host
from esper.utils import rng
from esper.utils.settings import read_settings, setting
from esper.utils.terminal import output


@dataclass(frozen=True)
class ModuleExampleSettings:
    """Grow a perceptron that was written as a torch.nn.Module, and check what is taken home."""

    num_envs: int = setting(32, "environments", low=6, high=65536)
    horizon: int = setting(25, "epochs", low=1, high=1000)
    seed: int = setting(1, "seed of the environments", low=0, high=2**31)


class Perceptron(nn.Module):
    """One hidden layer of four units: too few for ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.hidden = nn.Sequential(nn.Linear(64, 4), nn.ReLU())
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 1, 8, 8] to logits [B, 10]."""
        logits: Tensor = self.head(self.hidden(self.flat(x)))
        return logits


@torch.no_grad()
def drawn() -> Perceptron:
    """The module with weights from a key: U(-b, b) with b = 1 / sqrt(inputs), as torch draws them, and no biases."""
    with torch.random.fork_rng(devices=[]):  # constructors draw from torch's global generator
        module = Perceptron()
    for number, parameter in enumerate(module.parameters()):
        bound = 0.0 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
        parameter.copy_(bound * (2 * rng.uniform(rng.fold_in(rng.key(0), number), tuple(parameter.shape)) - 1))
    return module


class TakenHome(NamedTuple):
    """What came of it.

    Attributes:
      outcomes: waiting first, then each kind of seed.
      accuracy: float64 [E]; test accuracy, pp, of the modules that were taken home, each run by itself.
      parameters: int64 [E]; trained numbers of these modules.
    """

    outcomes: list[Outcome]
    accuracy: Tensor
    parameters: Tensor


def engine_of(settings: ModuleExampleSettings) -> tuple[Engine, dict[str, float | Tensor]]:
    """The engine: a slot behind the hidden layer, one from the image to the logits; and the reward's numbers."""
    task = digits()
    mine = host(drawn(), torch.zeros(2, 1, 8, 8), sites=("hidden",), start="shuffled")
    task = task._replace(name="perceptron", host=mine, blueprints=(GATED_MLP, CONV8X2), script="", rival=None)
    engine = make(task, settings.num_envs, slots=(0, "input:logits"), horizon=settings.horizon)
    return engine, dict(task.rewards)


def run(settings: ModuleExampleSettings, out: TextIO | None = None) -> TakenHome:
    """Grow, take every network home, and count what it gets right.

    Args:
      settings: everything.
      out: where the tables go; None = standard output.
    """
    out, (engine, numbers) = output(out), engine_of(settings)
    out.write(f"{engine.structure.host.num_params} parameters, slots {', '.join(engine.structure.slot_names)}\n")
    params = build_reward_params(numbers, engine.config, engine.data.train.inputs.device)
    policies = [from_mask("wait", wait(engine.codec))]
    policies += [from_mask(f"grow {name}", grow(engine.codec, name)) for name in engine.codec.blueprint_names]
    outcomes = []
    for policy in policies:
        state, outcome = rollout(engine, policy, settings.seed, DEFAULT_REWARD, params)
        outcomes.append(outcome)
    write_outcomes(out, outcomes)
    networks = [engine.network_of(state, env).eval() for env in range(settings.num_envs)]  # of the last policy
    images, labels = engine.data.test.inputs, engine.data.test.targets
    with torch.no_grad():
        right = torch.stack([(network(images).argmax(1) == labels).double().mean() for network in networks])
    sizes = torch.tensor([sum(parameter.numel() for parameter in network.parameters()) for network in networks])
    out.write(f"taken home as plain modules: test accuracy {interval(100 * right)} %, ")
    out.write(f"{sizes.double().mean():.0f} parameters\n")
    return TakenHome(outcomes, 100 * right, sizes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    words = sys.argv[1:] if arguments is None else arguments
    run(read_settings(ModuleExampleSettings, words, "python -m esper.docs.examples.own_module"))


if __name__ == "__main__":
    main()
