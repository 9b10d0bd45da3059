"""The step in JAX: ``jit`` of a ``scan`` over the SGD steps, networks lifted by ``vmap``, optimizers by optax.

``vmap`` cannot mix structures. Environments are therefore grouped by the blueprint they hold in a slot, with static
sizes inside one ``jit``. A change of any slot is a new program, as it is for Esper's plan, but here it compiles.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from bench import jax_layers as layers
from bench.contract import Contender, StepResult, ValidationResult
from bench.workload import Array, Workload

Tree = Any


class Carry(NamedTuple):
    """What training changes."""

    host: Tree  # per stage name -> [E, *shape]
    running: Tree  # per block name -> [E, C]
    seeds: Tree  # per slot, per blueprint in use: name -> [n, *shape]
    host_state: Tree  # optax, per row
    seed_states: Tree


class Way(NamedTuple):
    """One blueprint of one slot: its index, and the environments that own its rows."""

    kind: int
    envs: Array


def clip_rowwise(limit: float) -> optax.GradientTransformation:
    """Clip by the norm of the tree, as torch defines it."""

    def update(grads: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        del params
        factor = jnp.minimum(1, limit / (optax.tree.norm(grads) + 1e-6))
        return jax.tree.map(lambda grad: grad * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def sgd(lr: float, decay: float, clip: float, momentum: float) -> optax.GradientTransformation:
    """torch.optim's SGD behind clipping; for one network."""
    return optax.chain(clip_rowwise(clip), optax.add_decayed_weights(decay), optax.sgd(lr, momentum))


def _rows(vector: Array, like: jax.Array) -> jax.Array:
    return jnp.asarray(vector).reshape(-1, *(1,) * (like.ndim - 1))


class JaxStep:
    """The program over a workload; what is static (who holds what) is numpy."""

    def __init__(self, workload: Workload, form: str) -> None:
        structure, numbers = workload.structure, workload.structure.numbers
        self.workload, self.form = workload, form
        self.seed = [jax.vmap(layers.seed(name, form)) for name in structure.blueprints]
        kinds = [sorted({int(k) for k in workload.kind[:, slot] if k >= 0}) for slot in range(workload.num_slots)]
        self.ways = [[Way(kind, workload.rows(slot, kind)) for kind in row] for slot, row in enumerate(kinds)]
        self.host_optimizer = sgd(numbers.host_lr, numbers.host_decay, numbers.host_clip, numbers.momentum)
        self.seed_optimizer = sgd(numbers.seed_lr, numbers.seed_decay, numbers.seed_clip, numbers.momentum)
        images = (np.ascontiguousarray(x.transpose(0, 2, 3, 1)) for x in (workload.train_inputs, workload.val_inputs))
        self.train_inputs, self.val_inputs = map(jnp.asarray, images)
        self.train_targets, self.val_targets = map(jnp.asarray, (workload.train_targets, workload.val_targets))
        self.indices = jnp.asarray(workload.indices.astype(np.int32).transpose(0, 2, 1, 3))  # [G, k, E | 1, B]
        self.start = self.initial()
        self.carry = self.start
        self.train_program, self.score_program = jax.jit(self.epoch), jax.jit(self.correct)

    def initial(self) -> Carry:
        """Parameters as drawn, momentum 0."""
        workload, structure = self.workload, self.workload.structure
        widths = [sum(int(np.prod(shape)) for _, shape in layout) for layout in structure.host_layouts]
        rows = np.split(workload.host, np.cumsum(widths)[:-1], axis=1)
        host = [layers.named(layout, part) for layout, part in zip(structure.host_layouts, rows, strict=True)]
        count, dtype = workload.num_envs, workload.host.dtype
        running = [layers.running_start(count, channels, dtype) for channels in structure.channels]
        seeds = [
            [layers.named(structure.seed_layouts[slot][way.kind], workload.seeds[slot][way.kind]) for way in row]
            for slot, row in enumerate(self.ways)
        ]
        seed_states = jax.tree.map(
            lambda params: jax.vmap(self.seed_optimizer.init)(params),
            seeds,
            is_leaf=lambda node: isinstance(node, dict),
        )
        return Carry(host, running, seeds, jax.vmap(self.host_optimizer.init)(host), seed_states)

    def through(self, slot: int, seeds: Tree, lanes: Array, envs: Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Seed features of some lanes of h [L, B, H, W, C], as (places, features).

        ``lanes`` are the rows of h that pass through a seed, ``envs`` their environments.
        """
        places, outputs = [], []
        kind = self.workload.kind[envs, slot]
        for way, params in zip(self.ways[slot], seeds[slot], strict=True):
            mine = np.flatnonzero(kind == way.kind)
            if mine.size == 0:
                continue
            owner = np.searchsorted(way.envs, envs[mine])
            chosen = params if np.array_equal(owner, np.arange(len(way.envs))) else _pick(params, owner)
            places.append(mine)
            outputs.append(self.seed[way.kind](chosen, h[lanes[mine]]))
        return np.concatenate(places), jnp.concatenate(outputs)

    def train_slot(self, slot: int, seeds: Tree, h: jax.Array) -> jax.Array:
        """A slot in training form, [E, B, H, W, C]."""
        workload = self.workload
        envs = np.flatnonzero(workload.kind[:, slot] >= 0)
        if envs.size == 0:
            return h
        isolated = _rows(workload.isolated[:, slot], h)
        places, s = self.through(slot, seeds, envs, envs, jnp.where(isolated, lax.stop_gradient(h), h))
        envs = envs[places]
        x = h[envs]
        mixed = x + _rows(workload.alpha[envs, slot], x) * (s - x)
        silent = x + (s - lax.stop_gradient(s))
        return h.at[envs].set(jnp.where(_rows(workload.training[envs, slot], x), silent, mixed))

    def loss(self, trained: Tree, running: Tree, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Tree]:
        """Sum over environments of their mean cross-entropy; x [E | 1, B, H, W, C]."""
        host, seeds = trained
        h, fresh = x, []
        for block, params in enumerate(host[:-1]):
            shared = h.shape[0] != self.workload.num_envs
            apply = partial(layers.block_train, self.form)
            if shared:
                h, new = jax.vmap(apply, in_axes=(0, 0, None))(params, running[block], h[0])
            else:
                h, new = jax.vmap(apply)(params, running[block], h)
            fresh.append(new)
            for slot, after in enumerate(self.workload.structure.slots):
                h = self.train_slot(slot, seeds, h) if after == block else h
        logits = jax.vmap(layers.head)(host[-1], h)
        y = jnp.broadcast_to(y, logits.shape[:2])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(1)
        return losses.sum(), (fresh, losses)

    def sgd_step(self, carry: Carry, rows: jax.Array) -> tuple[Carry, jax.Array]:
        """One SGD step of everything; rows [E | 1, B]."""
        x, y = self.train_inputs[rows], self.train_targets[rows]
        grad = jax.grad(self.loss, has_aux=True)
        (host_grad, seed_grads), (running, losses) = grad((carry.host, carry.seeds), carry.running, x, y)
        host, host_state = _update(self.host_optimizer, host_grad, carry.host_state, carry.host)
        seeds, states = [], []
        for grads, state, params in zip(seed_grads, carry.seed_states, carry.seeds, strict=True):
            pairs = [_update(self.seed_optimizer, *each) for each in zip(grads, state, params, strict=True)]
            seeds.append([params for params, _ in pairs])
            states.append([state for _, state in pairs])
        return Carry(host, running, seeds, host_state, states), losses

    def epoch(self, carry: Carry, indices: jax.Array) -> tuple[Carry, jax.Array]:
        """All SGD steps: indices [k, E | 1, B] -> losses [k, E]."""
        return lax.scan(self.sgd_step, carry, indices)

    def correct(self, carry: Carry) -> jax.Array:
        """Share of correct predictions of every lane: the environments, then the counterfactuals slot by slot."""
        workload = self.workload
        env = np.arange(workload.num_envs)
        apply = partial(layers.block_infer, self.form)
        h = self.val_inputs
        for block, params in enumerate(carry.host[:-1]):
            own = carry.running[block]
            if block == 0:
                h = jax.vmap(apply, in_axes=(0, 0, None))(params, own, h)
            else:
                h = jax.vmap(apply)(_pick(params, env), _pick(own, env), h)
            for slot, after in enumerate(workload.structure.slots):
                if after == block:
                    h, env = self.infer_slot(slot, carry.seeds, env, h)
        logits = jax.vmap(layers.head)(_pick(carry.host[-1], env), h)
        return (logits.argmax(-1) == self.val_targets).mean(1)

    def infer_slot(self, slot: int, seeds: Tree, env: Array, h: jax.Array) -> tuple[jax.Array, Array]:
        """A slot in inference form; a lane forks off for every active seed, with that seed switched."""
        workload = self.workload
        silent = workload.training[:, slot]
        active = workload.kind[:, slot] >= 0
        off, on = np.flatnonzero(active & ~silent), np.flatnonzero(active & silent)
        if not active.any():
            return h, env
        parents = np.concatenate((np.arange(len(env)), off, on))
        through = np.concatenate((np.flatnonzero((active & ~silent)[env]), len(env) + off.size + np.arange(on.size)))
        forked = np.concatenate((env, off, on))
        alpha = np.where(silent, workload.structure.numbers.alpha_target, workload.alpha[:, slot])
        h = h[parents]
        places, s = self.through(slot, seeds, through, forked[through], h)
        through = through[places]
        x = h[through]
        weight = _rows(alpha[forked[through]].astype(workload.host.dtype), x)
        return h.at[through].set(x + weight * (s - x)), forked

    def reset(self) -> None:
        """Initial numbers."""
        self.carry = self.start

    def train(self, epoch: int) -> Array:
        """Losses [k, E] of an epoch."""
        self.carry, losses = self.train_program(self.carry, self.indices[epoch])
        return np.asarray(losses)

    def validate(self) -> ValidationResult:
        """Accuracy and effects."""
        workload = self.workload
        rates = 100 * np.asarray(self.score_program(self.carry), dtype=np.float64)
        own, lane = rates[: workload.num_envs], workload.num_envs
        effect = np.zeros((workload.num_envs, workload.num_slots))
        for slot in range(workload.num_slots):
            active, silent = workload.kind[:, slot] >= 0, workload.training[:, slot]
            for envs, sign in ((np.flatnonzero(active & ~silent), 1), (np.flatnonzero(active & silent), -1)):
                effect[envs, slot] = sign * (own[envs] - rates[lane : lane + envs.size])
                lane += envs.size
        return ValidationResult(own, effect)

    def norms(self) -> Array:
        """Of the parameters of hosts and seeds."""
        norms = np.zeros((self.workload.num_envs, 1 + self.workload.num_slots))
        norms[:, 0] = _row_norms(self.carry.host)
        for slot, row in enumerate(self.ways):
            for way, params in zip(row, self.carry.seeds[slot], strict=True):
                norms[way.envs, 1 + slot] = _row_norms(params)
        return norms

    def step(self) -> StepResult:
        """One environment step."""
        return StepResult(self.train(0).mean(0), self.validate())


def _row_norms(tree: Tree) -> Array:
    squares = [np.square(np.asarray(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)]
    return np.sqrt(sum(leaf.reshape(len(leaf), -1).sum(1) for leaf in squares))


def _pick(tree: Tree, rows: Array) -> Tree:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _update(optimizer: optax.GradientTransformation, grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
    updates, state = jax.vmap(optimizer.update)(grads, state, params)
    return optax.apply_updates(params, updates), state


def prepare(workload: Workload, form: str = "im2col") -> Contender:
    """Build the program; ``form`` of convolutions: "conv" or "im2col"."""
    jax.config.update("jax_enable_x64", workload.structure.precision == "float64")
    step = JaxStep(workload, form)
    return Contender(step.reset, step.train, step.validate, step.norms, step.step)
