"""Rows of ``bench.gpu`` that take environment steps: times, equality with the CPU, compilations, a round of PPO."""

import time
from functools import partial
from typing import Any

import numpy as np
import torch

from bench import esper_step
from bench.contract import Contender
from bench.draw import WorkloadConfig, build_engine, draw_state, export
from bench.gate import Trajectory, compare
from bench.gpu_setup import Empty, Figures, Row, Setup, bench_of, median_ms, repeats
from esper.bench import gates
from esper.bench.case import Trial, mixed
from esper.bench.measure import synchronise
from esper.bench.meter import compilations
from esper.bench.throughput import LOADS
from esper.engine import Engine
from esper.leyline.stages import ACTIVE
from esper.leyline.state import State
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner, make_collector
from esper.simic.ppo_config import PPOConfig
from esper.tamiyo import baselines
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.utils import resident, rng


def waiting(engine: Engine, state: State) -> Any:
    """A step whose decision is to wait, from the same state every time."""
    wait = torch.zeros(state.batch_size[0], dtype=torch.int64, device=state.key.device)
    return partial(engine.step, state, wait)


def steps(shape: str, envs: int, setup: Setup) -> Figures:
    """Steps with half of the slots active and with none, each checked against one network at a time in torch.nn."""
    engine, found = bench_of(shape, setup).engine(envs), {"envs": envs}
    for load, share in LOADS.items():
        state, name = mixed(engine, share, ACTIVE), load.replace(" ", "_")
        step = waiting(engine, state)
        begun = time.perf_counter()
        step()
        synchronise(setup.device)
        found[f"{name}_first_seconds"] = time.perf_counter() - begun
        wrong = gates.step_gate(Trial(step, engine, state))
        if wrong is not None:
            raise Empty(f"wrong: {load}: {wrong}")
        resident.restart_peak(setup.device)
        taken = repeats(step, setup)
        found |= {f"{name}_ms": median_ms(taken), f"{name}_repeats": len(taken)}
        found[f"{name}_peak_bytes"] = resident.peak(setup.device)
    return found | {"backend": list(engine.describe())}


def steps_row(shape: str, envs: int, few: int, seconds: float) -> Row:
    """A row of ``steps``: of ``envs`` environments, or ``few`` where sizes are small."""

    def run(setup: Setup) -> Figures:
        return steps(shape, setup.size(envs, few), setup)

    return Row(f"{shape}-{envs}", f"steps of {envs:,} environments, half active and dormant", run, seconds)


def trajectory(contender: Contender, epochs: int) -> Trajectory:
    """Some epochs from the beginning."""
    contender.reset()
    losses = [contender.train(epoch) for epoch in range(epochs)]
    scores = np.column_stack(contender.validate())
    return Trajectory(np.concatenate(losses), scores, contender.norms())


def workload_of(shape: str, envs: int, setup: Setup) -> Any:
    """A drawn workload as numbers."""
    config = WorkloadConfig(shape, envs)
    sizes = {"steps_per_epoch": 3, "batch_size": 8} if setup.small else {}
    engine = build_engine(config, "eager", **sizes)
    return export(engine, draw_state(engine, config), config)


def gate(setup: Setup) -> Figures:
    """Losses before each of 50 SGD steps, scores and norms after them: the device beside the CPU's definition."""
    workload = workload_of("digits", setup.size(64, 8), setup)
    epochs = setup.size(len(workload.indices), 2)
    there = esper_step.prepare(workload, setup.backend, str(setup.device))
    verdict = compare("float32", trajectory(there, epochs), trajectory(esper_step.prepare(workload, "eager"), epochs))
    return {"envs": workload.num_envs, **verdict._asdict()}


def walk(setup: Setup) -> Figures:
    """Random legal decisions: how much is compiled after the first of them."""
    engine = bench_of("digits", setup).engine(setup.size(64, 8))
    choose, state, count = baselines.random_legal(engine.codec), engine.init(0), setup.size(200, 8)
    keys = rng.fold_in(rng.key(0), torch.arange(engine.config.num_envs)).to(setup.device)
    after = list[int]()
    with compilations() as compiled:
        for number in range(count):
            state = engine.step(state, choose(engine.mask(state), rng.fold_in(keys, number)))[0]
            after.append(compiled[0])
    return {"envs": engine.config.num_envs, "steps": count, "first": after[0], "later": after[-1] - after[0]}


def learned_round(setup: Setup) -> Figures:
    """A round of PPO, collected and learned on the device; the second one is timed."""
    engine = bench_of("preset", setup).engine(setup.size(256, 8))
    policy = build_actor_critic(ActorCriticConfig(), engine.codec, len(engine.columns), 0).to(setup.device)
    learner, env = Learner(policy, PPOConfig(), 2), EsperEnv(engine)
    collector = make_collector(env, learner.policy)
    batches, found = iter(collector), Figures(envs=engine.config.num_envs, decisions=engine.config.horizon)
    for _ in range(2):
        with torch.random.fork_rng(devices=[setup.device] if setup.device.type == "cuda" else []):
            begun = time.perf_counter()
            batch = next(batches)
            synchronise(setup.device)
            collected = time.perf_counter()
            told = learner.update([batch])
            synchronise(setup.device)
        found |= {"collect_seconds": collected - begun, "learn_seconds": time.perf_counter() - collected}
    collector.shutdown()
    return found | {"entropy": told["entropy"], "gradient_norm": told["gradient_norm"]}
