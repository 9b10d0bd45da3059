"""Tensors of a device on their way to the host: copied in the background, waited for only when they are read."""

import torch
from torch import Tensor


class Download:
    """Small tensors by name that leave their device together, in one copy.

    On a CPU nothing has to leave, and nothing is copied. Elsewhere the copy goes to memory that the driver can write
    by itself, behind what the device has still to compute; whoever begins it does not wait.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        """Begin.

        Args:
          tensors: of any shapes and real types, all on one device; read as float64. Nobody writes into them later.
        """
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        flat = [tensor.detach().reshape(-1).double() for tensor in tensors.values()]
        whole = torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)
        self._arrived: torch.cuda.Event | None = None
        if whole.device.type == "cuda":
            place = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=True)
            self._held, self._source = place.copy_(whole, non_blocking=True), whole
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(whole.device))
        else:
            self._held = whole.cpu()

    @property
    def is_here(self) -> bool:
        """Whether reading would not wait."""
        return self._arrived is None or self._arrived.query()

    def read(self) -> dict[str, Tensor]:
        """The tensors, float64 on the CPU; waits for those that are still under way."""
        if self._arrived is not None:
            self._arrived.synchronize()
        parts = self._held.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
