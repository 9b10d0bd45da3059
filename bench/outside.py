"""What ``esper export`` wrote, used where there is no Esper: ``python outside.py NET.safetensors FOLDER``.

Reads the network's weights, source and card, and the test part of a folder of gzipped IDX files; prints how many of its
samples are told right.
"""

import gzip
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

sys.modules["esper"] = None  # type: ignore[assignment]  # whoever imports it from here on fails


def network(path: Path) -> nn.Module:
    """The network of the weights, by the source beside them."""
    spec = importlib.util.spec_from_file_location("grown", path.with_suffix(".py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: nn.Module = module.Network()
    found.load_state_dict(load_file(path))
    return found.eval()


def test_part(folder: Path, pixels: dict[str, list[float]]) -> tuple[Tensor, Tensor]:
    """Images [N, 1, H, W], standardised as the card says, and labels [N]."""

    def read(name: str, rank: int) -> np.ndarray:
        data = gzip.decompress((folder / f"t10k-{name}-idx{rank}-ubyte.gz").read_bytes())
        shape = np.frombuffer(data, ">u4", rank, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)

    images, labels = torch.from_numpy(read("images", 3)[:, None].copy()), torch.from_numpy(read("labels", 1).copy())
    mean, std = (torch.tensor(pixels[name])[:, None, None] for name in ("mean", "std"))
    return images.float().sub_(mean).div_(std), labels.long()


@torch.no_grad()
def main(path: Path, folder: Path) -> None:
    """Print what the card says, and what is counted here."""
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    grown, (images, labels) = network(path), test_part(folder, card["data"]["pixels"])
    logits = torch.cat([grown(batch) for batch in images.split(500)])
    right, told = int((logits.argmax(1) == labels).sum()), card["test_accuracy"] / 100 * len(labels)
    print(f"{right} of {len(labels)} right; {told:.4f} by the card")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
