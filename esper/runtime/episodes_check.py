"""``esper data check DIR`` and ``esper data report DIR`` of recorded episodes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor

from esper.leyline.config import ConfigError, Determinism
from esper.runtime.episodes_health import variety
from esper.runtime.machine import machine
from esper.runtime.own import recorded
from esper.runtime.record_training import KIND
from esper.runtime.recorded import summaries
from esper.runtime.scene import Scene, build_scene, rules_of
from esper.runtime.table import recorded_table
from esper.simic.episodes.dataset import Episodes
from esper.simic.episodes.shards import EpisodesError
from esper.simic.rewards import reward
from esper.utils.documents import to_json

TOLERANCE = 1e-4
"""Of what is played again, absolute and relative, on another machine, or where bits depend on the batch."""

FEWEST = 2
"""Environments of a replay: the mean over a batch of one is summed up in another order than that over several."""

UNHEALTHY = 1
"""Exit status of a report that names errors."""


class Replayed(NamedTuple):
    """Episodes that were played again from their keys, by the actions that were recorded.

    Attributes:
      number: how many.
      same_bits: whether all of observations and rewards were the recorded ones, bit for bit.
    """

    number: int
    same_bits: bool


def check_episodes(path: Path, replays: int, as_json: bool, out: TextIO) -> None:
    """Read every byte of a dataset, look at every row, and play some episodes again.

    Args:
      path: its directory.
      replays: how many are played again, spread over the dataset.
      as_json: print one JSON object instead of lines.
      out: where they go.

    Raises:
      EpisodesError: what is wrong; where it is a file, its name.
    """
    episodes = Episodes.open(path)
    manifest = episodes.manifest
    episodes.verify()
    check_rows(episodes)
    found, kept = Replayed(0, True), "no episode asked for"
    if replays and len(episodes):
        try:
            found = replay_some(episodes, replays)
            kept = "bit for bit" if found.same_bits else f"to {TOLERANCE:g}"
        except ConfigError as error:
            kept = f"not replayed: {error}"
    facts = {
        "path": str(path),
        "task": manifest.facts["task"],
        "episodes": manifest.episodes,
        "steps": manifest.steps,
        "shards": len(manifest.shards),
        "policies": manifest.by_policy,
        "replayed": found.number,
        "replay": kept,
        "digest": episodes.digest,
    }
    if as_json:
        out.write(to_json(facts) + "\n")
        return
    out.write(
        f"{path}: {manifest.episodes:,} episodes of {facts['task']}, {manifest.steps:,} decisions in "
        f"{len(manifest.shards)} shards\n"
        f"every digest and count agrees; {found.number} episodes played again: {kept}\nok\n"
    )


def check_rows(episodes: Episodes) -> None:
    """What must hold of every row, shard by shard.

    Raises:
      EpisodesError: the first row of which it does not.
    """
    start = 0
    for shard in episodes.manifest.shards:
        rows = torch.arange(start, start + shard.steps)
        start += shard.steps
        place = torch.searchsorted(episodes.starts, rows, right=True) - 1
        last = rows + 1 == (episodes.starts + episodes.lengths)[place]
        action, chance = episodes.read("action", rows), episodes.read("probability", rows)
        mask = episodes.read("action_mask", rows)
        inside = (action >= 0) & (action < mask.shape[1])
        legal = mask.gather(1, action.clamp(0, mask.shape[1] - 1).unsqueeze(1)).squeeze(1) & inside
        terminated, truncated = episodes.read("terminated", rows), episodes.read("truncated", rows)
        _expect(shard.name, rows, episodes.read("episode", rows) == episodes.numbers[place], "another episode's number")
        _expect(shard.name, rows, episodes.read("step", rows) == rows - episodes.starts[place], "another step's number")
        _expect(shard.name, rows, legal, "an action that was not legal")
        _expect(shard.name, rows, chance.isnan() | ((chance > 0) & (chance <= 1 + 1e-5)), "a probability of nothing")
        _expect(
            shard.name, rows, (terminated | truncated) == last, "an end inside an episode, or none at its last step"
        )
        _expect(shard.name, rows, ~(terminated & truncated), "an episode that both ended and was cut")


def _expect(name: str, rows: Tensor, good: Tensor, words: str) -> None:
    if not bool(good.all()):
        row = int(rows[int((~good).nonzero()[0])])
        raise EpisodesError(f"{name}: row {row}: {words}; expected a row as the columns are described")


def replay_some(episodes: Episodes, number: int) -> Replayed:
    """Play some episodes again and compare; spread over all, those of different rules one after the other.

    Of what a training run has played, the whole rounds of the chosen episodes are: unless the engine is strict, an
    episode's bits depend on those beside it.

    Raises:
      EpisodesError: an observation, a mask or a reward is not the recorded one.
      ConfigError: the rules name something of one's own, which a dataset may not import.
    """
    places = torch.linspace(0, len(episodes) - 1, min(number, len(episodes))).long().unique()
    same, count = True, 0
    for part in episodes.manifest.parts:
        first, end = part["first"], part["first"] + part["episodes"]
        mine = places[(episodes.numbers[places] >= first) & (episodes.numbers[places] < end)]
        if part["kind"] == KIND:
            seeds = episodes.read("seed")
            mine = torch.isin(seeds, seeds[mine]).nonzero().squeeze(1)
        if len(mine):
            same, count = _replay(episodes, part, mine) and same, count + len(mine)
    return Replayed(count, same)


def _replay(episodes: Episodes, part: Mapping[str, Any], places: Tensor) -> bool:
    rules = rules_of(part["settings"]["rules"])
    for name in ("task", "reward"):
        recorded(f"--{name}", getattr(rules, name), str(episodes.folder))
    seeds = episodes.read("seed", places)
    groups = [places[seeds == seed] for seed in seeds.unique()]
    width = max(FEWEST, *map(len, groups))
    scene = build_scene(rules, width, part["settings"]["backend"], part["settings"]["device"])
    here = machine(scene.engine.data.train.inputs.device, [scene.engine.backend.name])
    told = part.get("machine", {})
    strict = scene.engine.config.deterministic is Determinism.STRICT
    alike = all(told.get(name) == here[name] for name in here if not (strict and name == "threads"))
    exact = alike and (strict or (part["kind"] == KIND and width == part["settings"]["batch"]))
    wide = [torch.cat((group, group[-1:].expand(width - len(group)))) for group in groups]
    return all([replay(scene, episodes, group, exact) for group in wide])


@torch.no_grad()
def replay(scene: Scene, episodes: Episodes, places: Tensor, exact: bool) -> bool:
    """Play episodes of one seed again by their recorded actions; whether all bits are the recorded ones.

    Args:
      scene: of E environments.
      episodes: the dataset.
      places: int64 [E]; of the episodes, which are of one length.
      exact: whether bits must agree, or numbers to ``TOLERANCE``.

    Raises:
      EpisodesError: they do not.
    """
    engine, same = scene.engine, True
    state = engine.init(int(episodes.read("seed", places[:1])), episodes.read("number", places))
    for step in range(int(episodes.lengths[places[0]])):
        rows = episodes.starts[places] + step
        found = {"observation": engine.observe(state), "action_mask": engine.mask(state)}
        before = state
        state, event = engine.step(before, episodes.read("action", rows).to(before.epoch.device))
        found["reward"] = reward(scene.mode, scene.params, engine.structure, before, state, event).total.float()
        for name, value in found.items():
            same &= _compare(episodes, name, rows, value.cpu(), exact)
    return same


def _compare(episodes: Episodes, name: str, rows: Tensor, found: Tensor, exact: bool) -> bool:
    there = episodes.read(name, rows)
    same = torch.equal(there.nan_to_num(), found.nan_to_num()) if there.is_floating_point() else there.equal(found)
    near = same or (
        not exact and there.is_floating_point() and torch.allclose(there, found, TOLERANCE, TOLERANCE, equal_nan=True)
    )
    if not near:
        raise EpisodesError(
            f"{episodes.folder}: {name} of row {int(rows[0])} and on: played again, it is another; expected what was "
            "recorded"
        )
    return same


def report_episodes(path: Path, as_json: bool, out: TextIO) -> int:
    """Say what was recorded, policy by policy, and whether there is something to learn from it.

    Args:
      path: directory of the dataset.
      as_json: print one JSON object instead of tables.
      out: where they go.

    Returns:
      exit status: 0, or ``UNHEALTHY`` where a check names an error.

    Raises:
      EpisodesError: the dataset cannot be read.
    """
    episodes = Episodes.open(path)
    if not len(episodes):
        raise EpisodesError(f"{path}: holds no episode; expected some")
    found, facts = variety(episodes), episodes.manifest.facts
    errors = found.errors()
    report: dict[str, Any] = {
        "task": facts["task"],
        "episodes": len(episodes),
        "reward": facts["reward"],
        "gamma": facts["gamma"],
        "policies": summaries(episodes),
        "variety": found._asdict(),
        "errors": errors,
    }
    if as_json:
        out.write(to_json(report) + "\n")
    else:
        out.write(f"{facts['task']}, {len(episodes):,} recorded episodes of {facts['horizon']} decisions, ")
        out.write(f"reward {facts['reward']}; mean ± 95 % half-width; each policy in environments of its own\n\n")
        out.write(recorded_table(report) + "\n" + "".join(_told(found.shares, found, errors)))
    return UNHEALTHY if errors else 0


def _told(shares: Mapping[str, float], found: Any, errors: Sequence[str]) -> list[str]:
    mix = ", ".join(f"{name.lower()} {100 * share:.1f}" for name, share in shares.items())
    lines = [
        f"operations chosen, % of all decisions: {mix}; entropy {found.entropy:.2f} nats\n",
        f"clusters of states: {found.clusters}, of which {found.uniform} know one operation alone\n",
    ]
    return lines + [f"error: {error}\n" for error in errors]
