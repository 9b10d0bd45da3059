"""Recorded episodes as what evaluations make of played ones: traces and outcomes."""

from typing import Any

import torch
from torch import Tensor

from esper.nissa.actions import by_third, counts
from esper.nissa.seeds import REMOVED, Fate, lives
from esper.nissa.trace import Trace
from esper.runtime.compare import COLUMNS, summary
from esper.runtime.play_episodes import TRACED
from esper.runtime.rollout import Outcome
from esper.simic.episodes.dataset import Episodes
from esper.simic.episodes.shards import EpisodesError
from esper.simic.utility import utility
from esper.tolaria.evaluation import bits, perplexity

NAMED = {"accuracy": "val_accuracy", "loss": "val_loss"}
"""Fields of ``Trace`` by their column, where that has another name."""

SAME = ("action", "refusal", "reward", "terms")


def played_by(episodes: Episodes, policy: int) -> Tensor:
    """Places of the episodes that a policy played, int64 [n]; who began an episode played it."""
    return (episodes.read("policy", episodes.starts) == policy).nonzero().squeeze(1)


def trace_of(episodes: Episodes, places: Tensor) -> Trace:
    """The trace of some episodes, [T, n].

    Raises:
      EpisodesError: they are not all of one length, or a column is not there.
    """
    length = _length(episodes, places)
    rows = episodes.starts[places] + torch.arange(length).unsqueeze(1)
    fields: dict[str, Any] = {name: episodes.read(NAMED.get(name, name), rows) for name in (*TRACED, *SAME, *NAMED)}
    terms = tuple(map(str, episodes.manifest.facts["terms"]))
    return Trace(**fields, term_names=terms, diagnostics=None)


def _length(episodes: Episodes, places: Tensor) -> int:
    lengths = episodes.lengths[places].unique()
    if len(lengths) != 1:
        raise EpisodesError(f"{episodes.folder}: episodes of {lengths.tolist()} decisions; expected one length")
    return int(lengths)


def outcome_of(episodes: Episodes, name: str, places: Tensor) -> Outcome:
    """What came of some episodes, as ``rollout`` says it of played ones.

    Args:
      episodes: the dataset.
      name: of who played.
      places: int64 [n].

    Raises:
      EpisodesError: as ``trace_of``.
    """
    trace = trace_of(episodes, places)
    last = episodes.starts[places] + episodes.lengths[places] - 1
    ends = {each: episodes.read(each, places) for each in ("test_accuracy", "test_loss", "price")}
    added, seeds = episodes.read("seed_params", last), lives(trace)

    def per_episode(which: Tensor) -> Tensor:
        return torch.bincount(seeds.env[which], minlength=len(places))

    return Outcome(
        policy=name,
        test_accuracy=ends["test_accuracy"],
        utility=utility(ends["test_accuracy"], added, episodes.manifest.facts["host_params"], ends["price"]),
        price=ends["price"],
        val_accuracy=trace.accuracy[-1],
        test_loss=ends["test_loss"],
        test_bits=bits(ends["test_loss"]),
        val_bits=bits(trace.loss[-1]),
        test_perplexity=perplexity(ends["test_loss"]),
        total_reward=trace.reward.double().sum(0),
        added=added,
        germinated=per_episode(seeds.born >= 0),
        fossilized=per_episode(seeds.fate == int(Fate.FOSSILIZED)),
        culled=per_episode(torch.isin(seeds.fate, torch.tensor(list(map(int, REMOVED))))),
        rollbacks=trace.rolled_back.sum(0),
        refused=(trace.refusal != 0).sum(0),
        operations=counts(trace),
        seconds=0.0,
        trace=trace,
        seeds=seeds,
    )


def summaries(episodes: Episodes) -> dict[str, Any]:
    """Every policy's part of a report, see ``esper.runtime.compare.summary``, of the episodes that it played.

    Raises:
      EpisodesError: as ``trace_of``.
    """
    facts, found = episodes.manifest.facts, dict[str, Any]()
    names = [name for name, column in COLUMNS.items() if column.of_tokens in (None, facts["tokens"])]
    for index, policy in enumerate(episodes.manifest.policies):
        places = played_by(episodes, index)
        if len(places):
            row = summary(outcome_of(episodes, policy["name"], places), names, facts["gamma"])
            rows = episodes.starts[places] + torch.arange(_length(episodes, places)).unsqueeze(1)
            entropy = episodes.read("entropy", rows)
            if bool(entropy.isfinite().all()):
                row["policy_entropy_by_third"] = [float(part.mean()) for part in by_third(entropy)]
            found[policy["name"]] = row | {"episodes": len(places)}
    return found
