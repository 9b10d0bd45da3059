"""Files in which a network leaves, by their ending; each is read back and run before it counts as written."""

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from esper.tezzeret.modules import Export
from esper.tezzeret.modules.source import load
from esper.tezzeret.modules.tree import Entry, Role
from esper.utils.files import replace_file
from esper.utils.settings import SettingsError

SIZES = (1, 2, 7, 64)
"""Samples of the batches that a written file is run with: an export that fits its example alone fails one of them."""

CLOSE = 1e-4
"""How far outputs of the file may differ from the network's, in units of the largest."""

Run = Callable[[Tensor], Tensor]


class Carrier(NamedTuple):
    """A kind of file.

    Attributes:
      holds: what it holds, for people.
      needs: modules without which it cannot be written; the extra that brings them is ``onnx``.
      write: (path, export, card) -> the files that were written.
      read: path -> the network, from these files alone.
    """

    holds: str
    needs: tuple[str, ...]
    write: Callable[[Path, Export, Mapping[str, Any]], list[Path]]
    read: Callable[[Path], Run]


def _write_source(path: Path, export: Export, card: Mapping[str, Any]) -> list[Path]:
    """Weights, and beside them the source of their network."""
    tensors = {name: value.contiguous().cpu() for name, value in export.whole.module.state_dict().items()}
    source = path.with_suffix(".py")
    replace_file(path, save_tensors(tensors, {"card": json.dumps(card, sort_keys=True)}))
    replace_file(source, export.whole.source.encode())
    return [path, source]


def read_network(path: Path) -> nn.Module:
    """The network of weights and of the source beside them, which is run.

    Args:
      path: of a ``*.safetensors`` that was written here.
    """
    tensors = load_tensors(path.read_bytes())
    source = path.with_suffix(".py").read_text(encoding="utf-8")
    return load(source, {name: Entry(value, Role.BUFFER) for name, value in tensors.items()})


def _read_source(path: Path) -> Run:
    return _without_gradient(read_network(path).eval())


def _without_gradient(network: Callable[[Tensor], Tensor]) -> Run:
    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        return network(x)

    return run


def _program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _write_program(path: Path, export: Export, card: Mapping[str, Any]) -> list[Path]:
    """The folded network as ``torch.export`` has it."""
    buffer = io.BytesIO()
    module, example = _on_cpu(export)
    torch.export.save(_program(module, example), buffer, extra_files={"card.json": json.dumps(card, sort_keys=True)})
    replace_file(path, buffer.getvalue())
    return [path]


def _read_program(path: Path) -> Run:
    return _without_gradient(torch.export.load(path).module())  # a file that this process has just written


def _write_onnx(path: Path, export: Export, card: Mapping[str, Any]) -> list[Path]:
    """The folded network in ONNX."""
    module, example = _on_cpu(export)
    program = torch.onnx.export(
        module,
        (example,),
        input_names=["inputs"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = "card", json.dumps(card, sort_keys=True)
    replace_file(path, model.SerializeToString())
    return [path]


def _read_onnx(path: Path) -> Run:
    from onnxruntime import InferenceSession

    session = InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"inputs": x.numpy()})[0])

    return run


def _on_cpu(export: Export) -> tuple[nn.Module, Tensor]:
    return export.folded.module.cpu(), export.example.cpu()


CARRIERS: dict[str, Carrier] = {
    ".safetensors": Carrier("weights, with the network's source beside them", (), _write_source, _read_source),
    ".pt2": Carrier("torch.export's program, for inference", (), _write_program, _read_program),
    ".onnx": Carrier("ONNX, for inference", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx),
}
"""By the file's ending."""


def expect_agreement(path: Path, run: Run, network: nn.Module, example: Tensor) -> float:
    """Run what was written at several sizes of batch.

    Args:
      path: of the file, for the message.
      run: the network from it.
      network: what it was made of.
      example: inputs.

    Returns:
      the largest difference, in units of the largest output.

    Raises:
      SettingsError: outputs differ, or a size is refused.
    """
    worst = 0.0
    for size in SIZES:
        x = example.cpu()[torch.arange(size) % len(example)]
        try:
            found = run(x)
        except Exception as error:  # whatever a runtime does with a size that it does not take
            raise SettingsError(f"--to {path}: cannot be run with {size} samples: {type(error).__name__}") from error
        with torch.no_grad():
            wanted = network.cpu().eval()(x)
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)))
    if not worst <= CLOSE:
        raise SettingsError(f"--to {path}: its outputs differ from the network's by {worst:.2g} of the largest")
    return worst
