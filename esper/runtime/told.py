"""What is told of a run's rounds: numbers of their episodes, and lines about them."""

from typing import Any

import torch
from tensordict import TensorDictBase

from esper.runtime.collect import Track

READ: tuple[str | tuple[str, ...], ...] = (
    "action",
    *(("next", name) for name in ("reward", "val_accuracy", "val_loss", "seed_params", "refused", "rolled_back")),
)
"""What is read of episodes to tell of them."""


def of_episodes(track: Track, batch: TensorDictBase) -> dict[str, float]:
    """What came of one task's episodes; counts are per environment. Of rounds there is validation alone, no test.

    Accuracy and loss are means over those environments that could be validated, and ``measured`` is their share; the
    return is the mean over those whose rewards are all finite.
    """
    after, envs = batch["next"], batch.shape[0]
    returns = after["reward"].sum(1)
    codec = track.env.interface.codec
    op = codec.op[batch["action"]]
    columns = {
        "return": torch.where(returns.isfinite(), returns, torch.nan).nanmean(),
        "val_accuracy": after["val_accuracy"][:, -1].nanmean(),
        "val_loss": after["val_loss"][:, -1].nanmean(),
        "measured": after["val_loss"][:, -1].isfinite().float().mean(),
        "seed_params": after["seed_params"][:, -1].mean(),
        "refused": after["refused"].sum(),
        "rolled_back": after["rolled_back"].sum(),
        **{f"share_{kind.name.lower()}": (op == int(kind)).float().mean() for kind in codec.ops},
    }
    found = dict(zip(columns, torch.stack(list(columns.values())).tolist(), strict=True))  # one download
    return found | {name: found[name] / envs for name in ("refused", "rolled_back")}


def round_line(row: dict[str, Any]) -> str:
    """A round as the progress shows it."""
    skipped = f"  skipped {row['skipped']:.0%} of the minibatches: gradient not finite" if row["skipped"] else ""
    return (
        f"return {row['return']:7.2f}  validation {row['val_accuracy']:5.1f} %  "
        f"entropy {row['entropy']:5.2f}  kl {row['kl']:6.4f}  {row['seconds']:5.1f} s" + skipped
    )


def time_split(rows: list[dict[str, Any]]) -> str:
    """What of a step validation took, and what of a round's time the hosts did not take.

    The first round, which compiles, counts only if it is alone; one that was gone on with after its last step does not.
    """
    counted = [row for row in rows[1:] or rows if row["host_seconds"]]
    if not counted:
        return ""
    whole, hosts, learning = (sum(row[f"{name}seconds"] for row in counted) for name in ("", "host_", "learn_"))
    validation = 100 * sum(row["validation_seconds"] for row in counted) / hosts
    share, learned = 100 * (whole - hosts) / whole, 100 * learning / whole
    return (
        f"validation: {validation:.1f} % of a step; other than the hosts: {share:.1f} % of a round "
        f"({learned:.1f} % learning), mean of {len(counted)} rounds of {whole / len(counted):.2f} s\n"
    )


def left_out(rows: list[dict[str, Any]]) -> str:
    """A line on decisions that taught nothing, if there were any; rounds of before they were counted had none."""
    found = [row for row in rows if row.get("left_out")]
    if not found:
        return ""
    share = sum(row["left_out"] for row in found) / len(rows)
    return (
        f"left out: {100 * share:.2g} % of all decisions, from round {found[0]['round']} on: in their episodes not all "
        "numbers were finite, and they taught nothing\n"
    )
