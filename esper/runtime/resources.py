"""What a run holds, what waits, and what was compiled, as numbers of a round's row."""

import torch

from esper.nissa.sinks.fan_out import FanOut
from esper.utils.compilations import LEDGER
from esper.utils.resident import peak, resident

CPU = torch.device("cpu")


def resources(device: torch.device | None, sinks: FanOut) -> dict[str, float]:
    """Memory of the process and of its device, the queues of its sinks, and its compilations.

    Args:
      device: of the environments.
      sinks: of the run.

    Returns:
      ``host_memory_bytes``, ``host_memory_peak_bytes`` (of the process, since it began), on CUDA the same of the
      device with what torch has reserved there, ``sinks_waiting`` and ``sinks_lost``; and of this process, since the
      last row that any run of it asked for, the numbers of ``esper.utils.compilations.NAMES``.
    """
    found = {"host_memory_bytes": float(resident(CPU)), "host_memory_peak_bytes": float(peak(CPU))}
    if device is not None and device.type == "cuda":
        found["device_memory_bytes"] = float(resident(device))
        found["device_memory_peak_bytes"] = float(peak(device))
        found["device_memory_reserved_bytes"] = float(torch.cuda.memory_reserved(device))
    lost = sum(missed for _, missed in sinks.health().values())
    return found | {"sinks_waiting": float(sinks.waiting), "sinks_lost": float(lost)} | LEDGER.since_told()
