"""The second rendering of training and evaluation, and the random states on which both are run.

``Plain`` is written from the documentation alone, for one environment at a time, with ``torch.nn`` modules, autograd
and ``torch.optim``, always in float64: the truth for both precisions. ``CONFIGS`` gives every (stage, blueprint, blend)
to every slot; each config has another combination of sites, optimizers and sample order, and isolations take turns.
"""

import importlib.util
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

import esper
from esper.engine import Engine
from esper.kasmina.slot_table import SlotTable, take_table
from esper.leyline.actions import NONE, Blend
from esper.leyline.config import Isolation, Precision, SampleOrder
from esper.leyline.events import Epoch
from esper.leyline.stages import ACTIVE, MERGED, Stage
from esper.leyline.state import ParamState, State
from esper.tezzeret.backend import Plan
from esper.tolaria.training import sample_indices, train_epoch

_spec = importlib.util.spec_from_file_location("oracle_topologies", Path(__file__).with_name("topologies.py"))
topologies = importlib.util.module_from_spec(_spec)
sys.modules["oracle_topologies"] = topologies
_spec.loader.exec_module(topologies)
TOPOLOGIES = topologies.TOPOLOGIES

ENVS, STEPS, BATCH, HORIZON = 10, 10, 8, 12
TOLERANCE = {Precision.FLOAT64: 1e-9, Precision.FLOAT32: 1e-4}
BLENDS = tuple(Blend)
OPTIMIZERS = (("sgd", "sgd"), ("sgd", "adam"), ("adam", "sgd"), ("adamw", "adamw"))
"""Of hosts and of seeds."""


class SlotSpec(NamedTuple):
    """What one slot of one environment holds."""

    stage: Stage
    blueprint: int = NONE
    blend: int = NONE


class RunConfig(NamedTuple):
    """A run: its structure, and per slot the specs of all environments."""

    topology: str
    slots: tuple[int, ...]
    host_optimizer: str
    seed_optimizer: str
    order: SampleOrder
    isolation: Isolation
    blends: tuple[Blend, ...]
    specs: tuple[tuple[SlotSpec, ...], ...]


EMPTY_STAGES = (Stage.DORMANT, Stage.CULLED, Stage.EMBARGOED, Stage.RESETTING)
IDLE = [SlotSpec(Stage.GERMINATED, 4, Blend.GATED), *(SlotSpec(stage) for stage in EMPTY_STAGES)]


def draw_configs(topology: str) -> Iterator[RunConfig]:
    """One shuffled pool per slot; then a host without slots, and one that offers no gated blend."""
    settings = [
        (slots, *optimizers, order)
        for slots, optimizers, order in product(((0, 1, 2), (0, 0, 2)), OPTIMIZERS, SampleOrder)
    ]
    size = ENVS * len(settings)
    active = [SlotSpec(*spec) for spec in product(ACTIVE, range(len(TOPOLOGIES[topology].blueprints)), BLENDS)]
    pool = [*active, *islice(cycle(IDLE), size - len(active))]
    orders = [torch.randperm(size, generator=torch.Generator().manual_seed(slot)).tolist() for slot in range(3)]
    isolations = cycle(Isolation)
    for index, setting in enumerate(settings):
        span = slice(index * ENVS, (index + 1) * ENVS)
        specs = tuple(tuple(pool[i] for i in order[span]) for order in orders)
        yield RunConfig(topology, *setting, next(isolations), BLENDS, specs)
    yield RunConfig(topology, (), "sgd", "sgd", SampleOrder.SHARED, Isolation.OBJECTIVE, BLENDS, ())
    plain = tuple(spec for spec in active if spec.blend == Blend.LINEAR)
    specs = (plain[:ENVS], plain[-ENVS:])
    yield RunConfig(topology, (1, 2), "adam", "adam", SampleOrder.SHARED, Isolation.OBJECTIVE, (Blend.LINEAR,), specs)


CONFIGS = {topology: tuple(draw_configs(topology)) for topology in TOPOLOGIES}


def random_numbers(generator: torch.Generator) -> dict[str, float | Tensor]:
    """Hyperparameters of every environment; clipping is off, seldom and always at work, the schedule on and off."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(ENVS, generator=generator, dtype=torch.float64)

    def pick(*values: float) -> Tensor:
        return torch.tensor(list(islice(cycle(values), ENVS)), dtype=torch.float64)

    numbers: dict[str, float | Tensor] = {name: uniform(0.01, 0.08) for name in ("host_lr", "seed_lr")}
    numbers |= {name: uniform(0.0, 0.05) for name in ("host_weight_decay", "seed_weight_decay")}
    numbers |= {"momentum": uniform(0.5, 0.95), "adam_beta1": uniform(0.7, 0.95), "adam_beta2": uniform(0.9, 0.999)}
    numbers |= {"adam_epsilon": pick(1e-8, 1e-4, 1e-2), "alpha_target": uniform(0.3, 1.0)}
    numbers |= {"host_clip": pick(1.0, 0.3, math.inf), "seed_clip": pick(0.1, math.inf, 1.0, 0.02)}
    numbers |= {"warmup_epochs": pick(0.0, 3.5, 20.0), "final_lr_fraction": pick(1.0, 0.1, 0.4)}
    return numbers | {"vanishing_norm": 0.1, "exploding_norm": 0.2}


def random_part(part: ParamState, optimizer: str, generator: torch.Generator) -> ParamState:
    """Noise on parameters, moments as if some steps were taken; every fourth environment has taken none."""
    begun = torch.arange(ENVS) % 4 != 0
    moments = 0.05 * torch.randn(part.moments.shape, generator=generator, dtype=torch.float64)
    if optimizer != "sgd":
        moments[:, 1] = moments[:, 1].square() + 1e-4
    steps = torch.randint(1, 2 * HORIZON * STEPS, part.steps.shape, generator=generator)
    noise = torch.randn(part.params.shape, generator=generator, dtype=torch.float64)
    return part.replace(
        params=part.params + (0.3 * noise).to(part.params.dtype),
        moments=torch.where(begun.view(-1, 1, 1), moments, 0.0).to(part.params.dtype),
        steps=torch.where(begun.view(-1, *(1,) * (steps.dim() - 1)), steps, 0),
    )


def without_padding(part: ParamState, engine: Engine, config: RunConfig) -> ParamState:
    """0 behind the numbers of every active seed, up to its gate's, as initialisation leaves them."""
    params, moments = part.params.clone(), part.moments.clone()
    for slot, specs in enumerate(config.specs):
        place = engine.structure.slots[slot]
        end = place.gate_columns.start
        for env, spec in enumerate(specs):
            if spec.stage in ACTIVE:
                begin = place.blueprint_columns(spec.blueprint).stop
                params[env, begin:end] = moments[env, :, begin:end] = 0
    return part.replace(params=params, moments=moments)


def random_state(config: RunConfig, index: int, precision: Precision) -> tuple[Engine, State]:
    """An engine and a state that holds a config's slots."""
    topology, generator = TOPOLOGIES[config.topology], torch.Generator().manual_seed(100 + index)
    engine = esper.make(
        esper.Task("oracle", topology.host, topology.blueprints, topology.data, {}),
        num_envs=ENVS,
        slots=config.slots,
        blends=config.blends,
        batch_size=BATCH,
        steps_per_epoch=STEPS,
        eval_batch_size=40,
        horizon=HORIZON,
        sample_order=config.order,
        isolation=config.isolation,
        host_optimizer=config.host_optimizer,
        seed_optimizer=config.seed_optimizer,
        precision=precision,
        **random_numbers(generator),
    )
    state = engine.init(index)
    table = torch.tensor([[tuple(map(int, spec)) for spec in specs] for specs in config.specs], dtype=torch.int64)
    stage, blueprint, blend = table.reshape(len(config.slots), ENVS, 3).permute(2, 1, 0)
    alpha = 0.1 + 0.8 * torch.rand(stage.shape, generator=generator, dtype=precision.dtype)
    merged = torch.isin(stage, torch.tensor(MERGED))
    slots = state.slots.replace(stage=stage, blueprint=blueprint, blend=blend, alpha=torch.where(merged, alpha, 0.0))
    statistics = torch.randn(state.buffers.shape, generator=generator, dtype=precision.dtype)
    buffers = [param for block in topology.host.blocks for param in block.buffers]
    variances = torch.tensor([param.name == "variance" for param in buffers for _ in range(param.size)], dtype=bool)
    return engine, state.replace(
        slots=slots,
        epoch=torch.arange(ENVS) // 2 * 3,
        rounds=torch.full((ENVS,), 7),
        host=random_part(state.host, config.host_optimizer, generator),
        seeds=without_padding(random_part(state.seeds, config.seed_optimizer, generator), engine, config),
        buffers=torch.where(variances, 0.3 + statistics.abs(), 0.3 * statistics),
    )


class PlainSlot:
    """One slot of one environment: its spec with its modules."""

    def __init__(self, topology: NamedTuple, spec: SlotSpec, site: int, isolation: Isolation) -> None:
        self.stage, self.site, self.isolation = spec.stage, site, isolation
        active, name = spec.stage in ACTIVE, topology.blueprints[spec.blueprint].name
        self.seed = topology.seed_module(name, site).double() if active else None
        self.gate = topology.gate_module(site).double() if active and spec.blend == Blend.GATED else None

    def __call__(self, h: Tensor, alpha: float, training: bool) -> Tensor:
        """What leaves the slot when the network trains, or is looked at."""
        if self.seed is None:
            return h
        behind = training and self.stage == Stage.TRAINING
        if behind and self.isolation is Isolation.OBJECTIVE:
            return h
        held = self.stage in (Stage.TRAINING, Stage.BLENDING) and self.isolation is not Isolation.NONE
        seen = h.detach() if held else h
        if behind:
            s = self.seed(seen)
            return h + (s - s.detach())
        return self.on(h, seen, alpha)

    def on(self, h: Tensor, seen: Tensor, alpha: float) -> Tensor:
        """What leaves the slot if its seed reaches the output."""
        weight = torch.tensor(alpha, dtype=h.dtype)
        return torch.lerp(h, self.seed(seen), weight if self.gate is None else weight * self.gate(seen))


class PlainTrained:
    """A module with an optimizer and a clip limit of its own: a host, a seed, or the gate of a seed."""

    def __init__(self, module: nn.Module, kind: str, numbers: dict[str, float], role: str) -> None:
        self.params, self.limit, self.rate = list(module.parameters()), numbers[f"{role}_clip"], numbers[f"{role}_lr"]
        self.warmup, self.floor = numbers["warmup_epochs"], numbers["final_lr_fraction"]
        self.moment_names = ("momentum_buffer",) if kind == "sgd" else ("exp_avg", "exp_avg_sq")
        self.optimizer: torch.optim.Optimizer
        decay = numbers[f"{role}_weight_decay"]
        betas, eps = (numbers["adam_beta1"], numbers["adam_beta2"]), numbers["adam_epsilon"]
        if kind == "sgd":
            self.optimizer = torch.optim.SGD(self.params, momentum=numbers["momentum"], weight_decay=decay)
        elif kind == "adam":
            self.optimizer = torch.optim.Adam(self.params, betas=betas, eps=eps, weight_decay=decay)
        else:  # what is no matrix does not shrink
            groups = [{"params": [p], "weight_decay": decay if p.dim() > 1 else 0.0} for p in self.params]
            self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=eps)

    def load(self, row: Tensor, moments: Tensor, steps: int) -> "PlainTrained":
        """Take over a row of an arena; at 0 steps the optimizer is left to begin by itself."""
        self.taken = steps
        vector_to_parameters(row.double().clone(), self.params)
        sizes = [param.numel() for param in self.params]
        if steps:
            for param, *pieces in zip(self.params, *(m.double().split(sizes) for m in moments), strict=True):
                values = [piece.clone().view_as(param) for piece in pieces]
                state = dict(zip(self.moment_names, values, strict=True))
                self.optimizer.state[param] = {"step": torch.tensor(float(steps))} | state
        return self

    def norms(self) -> Tensor:
        """Gradient norm of every tensor."""
        return torch.stack([param.grad.norm() for param in self.params])

    def step(self) -> None:
        clip_grad_norm_(self.params, self.limit)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * self.factor()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.taken += 1

    def factor(self) -> float:
        """Linear warm-up, then cosine decay to a floor, by its own age."""
        warm = min(1.0, (self.taken + 1) / STEPS / self.warmup) if self.warmup else 1.0
        done = min(1.0, self.taken / STEPS / HORIZON)
        return warm * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)

    def rows(self) -> dict[str, Tensor]:
        """Parameters and moments as flat rows."""
        states = [self.optimizer.state[param] for param in self.params]
        moments = {name: torch.cat([state[name].flatten() for state in states]) for name in self.moment_names}
        return {"params": parameters_to_vector(self.params).detach()} | moments


def seed_spans(engine: Engine, config: RunConfig, env: int) -> dict[str, tuple[int, slice]]:
    """Where the seeds and gates that train in an environment lie in the seed arena: name -> slot, columns."""
    spans = {}
    for slot, specs in enumerate(config.specs):
        if specs[env].stage in ACTIVE:
            place = engine.structure.slots[slot]
            spans[f"seed {slot}"] = slot, place.blueprint_columns(specs[env].blueprint)
            learns = specs[env].stage != Stage.TRAINING or config.isolation is Isolation.OBJECTIVE
            if specs[env].blend == Blend.GATED and learns:
                spans[f"gate {slot}"] = slot, place.gate_columns
    return spans


class PlainEpoch(NamedTuple):
    """What the plain rendering saw in an epoch; norms per tensor are of the last minibatch, before clipping."""

    loss: float
    accuracy: float
    norms: dict[str, Tensor]


class Plain:
    """One environment: a host with its seeds, and what trains them (``trained``: host, seeds and gates by name)."""

    def __init__(self, engine: Engine, state: State, config: RunConfig, env: int) -> None:
        self.numbers = {n: (v if v.dim() == 0 else v[env]).item() for n, v in engine.hypers.items()}
        self.alphas = state.slots.alpha[env].tolist()
        with torch.random.fork_rng(devices=[]):  # torch.nn draws initial values; all are overwritten below
            topology = TOPOLOGIES[config.topology]
            self.host = topology.host_module().double()
            self.slots = [
                PlainSlot(topology, specs[env], site, config.isolation)
                for specs, site in zip(config.specs, config.slots, strict=True)
            ]
        own = state.host[env]
        host = PlainTrained(self.host, config.host_optimizer, self.numbers, "host")
        self.trained = {"host": host.load(own.params, own.moments, int(own.steps))}
        own = state.seeds[env]
        for name, (slot, columns) in seed_spans(engine, config, env).items():
            module = self.slots[slot].gate if name.startswith("gate") else self.slots[slot].seed
            self.trained[name] = PlainTrained(module, config.seed_optimizer, self.numbers, "seed").load(
                own.params[columns], own.moments[:, columns], int(own.steps[slot])
            )
        for slot, part in enumerate(self.slots):
            # not trained yet, but a prospect looks through it
            if part.gate is not None and part.stage == Stage.TRAINING:
                row = own.params[engine.structure.slots[slot].gate_columns]
                vector_to_parameters(row.double().clone(), part.gate.parameters())
        statistics = state.buffers[env].double().split([row.numel() for row in self._statistics()])
        for own, given in zip(self._statistics(), statistics, strict=True):
            own.copy_(given)

    def _statistics(self) -> list[Tensor]:
        norms = [module for module in self.host.modules() if isinstance(module, nn.BatchNorm2d)]
        return [row for norm in norms for row in (norm.running_mean, norm.running_var)]

    def buffers(self) -> Tensor:
        """Running statistics in the state's order."""
        return torch.cat([torch.zeros(0), *self._statistics()])

    def logits(self, x: Tensor, alphas: Sequence[float]) -> Tensor:
        for site, block in enumerate(self.host):
            x = block(x)
            for slot, alpha in zip(self.slots, alphas, strict=True):
                x = slot(x, alpha, self.host.training) if slot.site == site else x
        return x

    def objective(self, x: Tensor, own: int) -> Tensor:
        """Logits as if a seed in TRAINING were on, the others in TRAINING absent; everything else is given."""
        norms = [module for module in self.host.modules() if isinstance(module, nn.BatchNorm2d)]
        pace = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0  # running statistics stay
        for site, block in enumerate(self.host):
            x = block(x)
            for number, slot in enumerate(self.slots):
                alpha = self.numbers["alpha_target"] if number == own else self.alphas[number]
                if slot.site == site and slot.seed and (slot.stage != Stage.TRAINING or number == own):
                    x = slot.on(x, x, alpha)
        for norm, given in zip(norms, pace, strict=True):
            norm.momentum = given
        return x

    def learn_own(self, inputs: Tensor, targets: Tensor) -> None:
        """Gradients of seeds in TRAINING, and of their gates, by their own objectives."""
        for number, slot in enumerate(self.slots):
            if slot.stage == Stage.TRAINING and slot.isolation is Isolation.OBJECTIVE:
                loss = nn.CrossEntropyLoss()(self.objective(inputs, number).flatten(0, -2), targets.flatten())
                parts = [self.trained[name] for name in (f"seed {number}", f"gate {number}") if name in self.trained]
                params = [param for part in parts for param in part.params]
                for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
                    param.grad = grad

    def train(self, batches: Sequence[tuple[Tensor, Tensor]]) -> PlainEpoch:
        self.host.train()
        losses, accuracies, norms = [], [], {}
        for inputs, targets in batches:
            logits = self.logits(inputs, self.alphas)
            loss = nn.CrossEntropyLoss()(logits.flatten(0, -2), targets.flatten())
            loss.backward()
            self.learn_own(inputs, targets)
            norms = {name: part.norms() for name, part in self.trained.items()}
            for part in self.trained.values():
                part.step()
            losses.append(loss.item())
            accuracies.append(100 * (logits.argmax(-1) == targets).double().mean().item())
        return PlainEpoch(sum(losses) / len(losses), sum(accuracies) / len(accuracies), norms)

    @torch.no_grad()
    def infer(self, inputs: Tensor, changes: dict[int, float]) -> Tensor:
        """Logits in inference form, with the alphas of some slots changed."""
        self.host.eval()
        return self.logits(inputs, [changes.get(slot, alpha) for slot, alpha in enumerate(self.alphas)])


class OracleRun(NamedTuple):
    """A config, trained both ways."""

    config: RunConfig
    engine: Engine
    table: SlotTable
    plan: Plan
    before: State
    after: State
    epoch: Epoch
    plains: tuple[Plain, ...]
    reports: tuple[PlainEpoch, ...]

    def spans(self, env: int) -> dict[str, tuple[int, slice]]:
        """See ``seed_spans``."""
        return seed_spans(self.engine, self.config, env)

    def trained_plain(self, env: int) -> Plain:
        """The plain rendering of the state that the engine has trained: a fresh start for evaluation."""
        return Plain(self.engine, self.after, self.config, env)

    def assert_small(self, errors: dict[tuple[int, str], float]) -> None:
        """Every error, keyed by environment and name, is within the precision's tolerance; NaN is not.

        In float32 one environment of a run may leave: a relu or a maximum within rounding of its kink takes the other
        branch there, and torch.nn in float32 leaves its own float64 trajectory as often.
        """
        precision = self.engine.config.precision
        bad = {key: error for key, error in errors.items() if not error <= TOLERANCE[precision]}
        strays = {env for env, _ in bad}
        assert errors and len(strays) <= (precision is Precision.FLOAT32), bad


RUNS = [(Precision.FLOAT64, name, config) for name, configs in CONFIGS.items() for config in range(len(configs))]
RUNS += [(Precision.FLOAT32, name, config) for name in CONFIGS for config in (3, 5, 10)]


@pytest.fixture(scope="session", params=RUNS, ids=lambda param: f"{param[0].value}-{param[1]}-{param[2]}")
def run(request: pytest.FixtureRequest) -> OracleRun:
    precision, topology, index = request.param
    config = CONFIGS[topology][index]
    engine, state = random_state(config, index, precision)
    table = take_table(state.slots)
    plan = engine.backend.plan(table, torch.device("cpu"))
    after, epoch = train_epoch(engine.config, engine.backend, engine.hypers, state, plan, engine.data)
    data = engine.data.to("cpu", torch.float64)
    inputs, targets = data.train.inputs, data.train.targets
    order = sample_indices(engine.config, state, len(targets)).expand(ENVS, STEPS, BATCH)
    plains = tuple(Plain(engine, state, config, env) for env in range(ENVS))
    reports = tuple(p.train([(inputs[i], targets[i]) for i in rows]) for p, rows in zip(plains, order, strict=True))
    return OracleRun(config, engine, table, plan, state, after, epoch, plains, reports)


@pytest.fixture(params=CONFIGS)
def configs(request: pytest.FixtureRequest) -> tuple[RunConfig, ...]:
    return CONFIGS[request.param]
