"""Inference of the native network: all lanes of every environment in one call."""

import numpy as np
import torch
from torch import Tensor

from esper.kasmina.counterfactuals import AS_IS, Counterfactuals, takes_part, with_trunk
from esper.kasmina.slot_table import IntArray, SlotTable
from esper.kasmina.structure import Structure
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners
from esper.leyline.stages import ACTIVE
from esper.tezzeret.native.library import as_numbers
from esper.tezzeret.native.network import Network
from esper.tezzeret.native.plan import Plan, list_rows
from esper.tezzeret.native.run import Lanes, RowIndex, SeedRows, infer
from esper.tezzeret.score import Scores, score_samples


class Tree:
    """Lanes by network: every network's own, and those that fork from it, each at one slot from its parent.

    A counterfactual that changes several slots forks from one that lacks its last change; those that are missing are
    added. ``lane`` is the lane of each network that was asked for.
    """

    def __init__(self, structure: Structure, table: SlotTable, wanted: Counterfactuals) -> None:
        order = [place.number for place in structure.route if place.is_slot]
        num_envs, base = table.stage.shape[0], 3 ** np.arange(len(order) + 1)
        change = np.where(table.within(ACTIVE)[wanted.env], wanted.change, AS_IS)[:, order]
        codes = wanted.env * base[-1] + change @ base[:-1]
        known = _with_parents(np.unique(np.append(np.arange(num_envs) * base[-1], codes)), base)
        digits = known[:, None] // base[:-1] % 3
        last = (
            np.where(digits.any(1), len(order) - 1 - (digits[:, ::-1] != 0).argmax(1), -1) if order else known * 0 - 1
        )
        known, digits, last = (rows[np.lexsort((known, last))] for rows in (known, digits, last))
        self.env = known // base[-1]
        self.change = np.empty_like(digits)
        self.change[:, order] = digits
        self.position, self.slot = last, np.append(order, -1)[last].astype(np.int64)
        step = (
            np.where(last >= 0, np.take_along_axis(digits, last[:, None].clip(0), 1)[:, 0] * base[last], 0)
            if order
            else last * 0
        )
        sorter = np.argsort(known)
        self.parents = sorter[np.searchsorted(known[sorter], known - step)]
        self.lane = sorter[np.searchsorted(known[sorter], codes)]
        self.order = order

    def lanes(self, num_envs: int) -> Lanes:
        """As the library wants them."""
        by_env = np.argsort(self.env, kind="stable")
        first = np.searchsorted(self.env[by_env], np.arange(num_envs + 1))
        return Lanes(*(torch.as_tensor(column) for column in (first, by_env, self.slot, self.parents)))


def _with_parents(codes: IntArray, base: IntArray) -> IntArray:
    """The codes and those of all parents; a code's digits are a network's changes, in the order of the route."""
    for position in reversed(range(base.size - 1)):
        above = codes % base[-1] // base[position]
        parents = (
            codes[(above > 0) & (above < 3)] // base[-1] * base[-1] + codes[(above > 0) & (above < 3)] % base[position]
        )
        codes = np.unique(np.append(codes, parents))
    return codes


def evaluate(
    network: Network,
    hypers: HyperParams,
    plan: Plan,
    learners: Learners,
    alphas: Tensor,
    samples: tuple[Tensor, Tensor],
    wanted: Counterfactuals,
) -> Scores:
    """``evaluate`` of the definition."""
    structure, num_envs = network.structure, alphas.shape[0]
    tree = Tree(structure, plan.table, with_trunk(wanted, num_envs))
    target, lanes = hypers.alpha_target.expand(num_envs), tree.lanes(num_envs)
    part = takes_part(plan.table, Counterfactuals(tree.env, tree.change))
    slots = []
    for number, slot in enumerate(structure.slots):
        live = tree.position <= tree.order.index(number)
        rows = list_rows(plan.table, number, tree.env, part[:, number] & live, part[:, number])
        alpha = torch.where(rows.training, target[rows.envs], alphas[:, number][rows.envs])
        places = RowIndex(rows.blueprints, rows.row_of, rows.gate_rows(rows.gate_envs))
        params, gates = (learners.seeds.params[:, columns] for columns in (slot.columns, slot.gate_columns))
        buffers = learners.seed_buffers[:, slot.buffer_columns]
        slots.append(SeedRows(places, alpha, params, buffers, rows.envs, gates))

    def outputs_of(inputs: Tensor) -> Tensor:
        logits = infer(network.infer, inputs, learners.host.params, learners.buffers, slots, lanes)
        return logits.unflatten(2, structure.host.points["logits"].shape)

    inputs, targets = samples
    return score_samples(structure, outputs_of, (as_numbers(inputs), targets), num_envs, torch.as_tensor(tree.lane))
