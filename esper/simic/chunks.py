"""Long episodes in chunks of time, so that what a recurrent policy keeps for its gradient does not grow with them.

Truncated back-propagation through time (Williams & Peng 1990): a chunk begins with the memory that the one before it
ended with, as a given value; every chunk's gradient is computed and added up before the next one runs. Memory is right
in every chunk, but no gradient crosses from one to another. Or exactly: memory is differentiated, too, and a chunk runs
once more when its gradient is computed (``torch.utils.checkpoint``; Chen et al. 2016), which costs a second forward
pass and has the gradient of the whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchrl.modules import LSTMModule, set_recurrent_mode

LOSSES = ("loss_objective", "loss_critic", "loss_entropy", "entropy", "kl_approx", "clip_fraction")
"""What TorchRL's loss says of a minibatch."""

REMEMBERED = ("recurrent_state_h", "recurrent_state_c")
"""The policy's memory."""

Run = Callable[[TensorDictBase], TensorDictBase]
"""What is run on a chunk [E, t]."""

Memory = tuple[Tensor, ...]
"""Per name of ``REMEMBERED`` [E, layers, H]; empty of a policy without memory, or at the beginning."""


class Chunking(NamedTuple):
    """How episodes are cut.

    Attributes:
      length: decisions of a chunk; 0 = whole episodes.
      is_exact: whether gradients cross chunks.
    """

    length: int = 0
    is_exact: bool = False


def as_whole(episodes: TensorDictBase) -> TensorDictBase:
    """Episodes [E, T] that begin at their first step, marked so for TorchRL's LSTM.

    Before every pass it looks whether one begins further on. The flags that it looks at stay on the host, so that it
    need not wait for the device.
    """
    return episodes.copy().clear_device_().set("is_init", torch.zeros(*episodes.shape, 1, dtype=torch.bool))


@contextmanager
def _ends(module: nn.Module) -> Iterator[list[Memory]]:
    """A list that gets the memory at the end of whatever a module's LSTM runs."""
    found: list[Memory] = []

    def note(own: nn.Module, given: object, out: TensorDictBase) -> None:
        del own, given
        found.append(tuple(out["next", state][:, -1] for state in REMEMBERED))

    hooks = [part.register_forward_hook(note) for part in module.modules() if isinstance(part, LSTMModule)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def run_chunk(run: Run, module: nn.Module, chunk: TensorDictBase, memory: Memory) -> tuple[TensorDictBase, Memory]:
    """Run on a chunk [E, t] that begins with a memory; empty: with the one it holds.

    Returns:
      what came out, and the memory at its end.
    """
    whole = as_whole(chunk)
    for state, value in zip(REMEMBERED, memory, strict=False):
        whole.set(state, torch.cat((value.unsqueeze(1), whole[state][:, 1:]), 1))
    with set_recurrent_mode(True), _ends(module) as ends:
        out = run(whole)
    return out, ends[-1] if ends else ()


def in_chunks(run: Run, module: nn.Module, episodes: TensorDictBase, length: int) -> Iterator[TensorDictBase]:
    """Run without gradients on episodes [E, T + 1], chunk by chunk; the last takes the successor of step T with it."""
    steps, memory = episodes.shape[1] - 1, Memory()
    length = length or steps
    for start in range(0, steps, length):
        end = start + length if start + length < steps else steps + 1
        with torch.no_grad():
            out, memory = run_chunk(run, module, episodes[:, start:end], memory)
        yield out


def descend(
    parts: Sequence[TensorDictBase], losses: Sequence[nn.Module], chunking: Chunking, steps: int
) -> dict[str, Tensor]:
    """Add a minibatch's gradients to those of the parameters.

    Args:
      parts: a task each, [E, T] from the start of its episodes; of a rank, also empty ones.
      losses: of each task.
      chunking: how they are cut.
      steps: decisions of the minibatch, on all ranks together.

    Returns:
      ``LOSSES``, [], as far as they come from these parts. Each decision of the minibatch counts alike. Law: with a
      length of the longest episode or more, the gradients are those of whole episodes to the bit.
    """
    longest = max(part.shape[1] for part in parts)
    length = chunking.length or longest
    memories, sums, totals = [Memory()] * len(parts), dict[str, Tensor](), list[Tensor]()
    for start in range(0, longest, length):
        found = []
        for place, (part, loss) in enumerate(zip(parts, losses, strict=True)):
            if len(part) and start < part.shape[1]:
                chunk = part[:, start : start + length] if length < part.shape[1] else part
                again = chunking.is_exact and length < longest
                said, memories[place] = (_again if again else _once)(loss, chunk, memories[place])
                found.append((chunk.numel() / steps, said))
        out = _weighed(found, parts[0]["action_log_prob"].new_zeros(()))
        total = out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]
        if chunking.is_exact and found:
            totals.append(total)
        elif found:
            total.backward()
            memories = [tuple(state.detach() for state in memory) for memory in memories]
        sums = {name: value.detach() + sums[name] if sums else value.detach() for name, value in out.items()}
    if totals:
        torch.stack(totals).sum().backward()
    return sums


def _weighed(found: Sequence[tuple[float, dict[str, Tensor]]], zero: Tensor) -> dict[str, Any]:
    """``LOSSES`` of several tasks, each with its share; a loss of weight 0 is left out by TorchRL, and 0."""
    return {name: sum((share * said.get(name, zero).mean() for share, said in found), zero) for name in LOSSES}


def _once(loss: nn.Module, chunk: TensorDictBase, memory: Memory) -> tuple[dict[str, Tensor], Memory]:
    out, memory = run_chunk(loss, loss.actor_network, chunk, memory)  # type: ignore[arg-type]
    said = {name: out.get(name, None) for name in LOSSES}
    return {name: value for name, value in said.items() if value is not None}, memory


def _again(loss: nn.Module, chunk: TensorDictBase, memory: Memory) -> tuple[dict[str, Tensor], Memory]:
    """As ``_once``; all that is kept for the gradient is the memory at the beginning."""
    names = list[str]()

    def run(*states: Tensor) -> tuple[Tensor, ...]:
        said, end = _once(loss, chunk, states)
        names[:] = said
        return (*said.values(), *end)

    found = checkpoint(run, *memory, use_reentrant=False, preserve_rng_state=False)
    return dict(zip(names, found, strict=False)), found[len(names) :]
