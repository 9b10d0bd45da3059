"""Modules of PyTorch, in and out: a ``torch.nn.Module`` becomes a host, and what has grown becomes one again."""

from esper.tezzeret.modules.host import host
from esper.tezzeret.modules.out import Export, export, network_of

__all__ = ["Export", "export", "host", "network_of"]
