"""The learning rate's course, against torch.optim.lr_scheduler; by the age of what learns."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from esper.kasmina.optimizers import schedule

F64 = torch.float64
STEPS, HORIZON = 4, 10


def course(warmup: Tensor, final: Tensor, taken: Tensor) -> Tensor:
    """The factor on the rate of the step behind those that were ``taken``."""
    return schedule(warmup, final, taken.to(F64) / STEPS, 1 / STEPS, HORIZON)


def test_schedule_is_torchs_warm_up_and_cosine() -> None:
    """Three environments, by ``LinearLR`` and ``CosineAnnealingLR`` of single steps."""
    warmups, finals = [0.0, 2.0, 5.5], [1.0, 0.0, 0.1]
    numbers = torch.tensor(warmups, dtype=F64), torch.tensor(finals, dtype=F64)
    for env, (warmup, final) in enumerate(zip(warmups, finals, strict=True)):
        rates = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0) for _ in range(2)]
        total = max(int(warmup * STEPS), 1)
        courses = [LinearLR(rates[0], 1 / total, 1.0, total - 1) if total > 1 else None]
        courses.append(CosineAnnealingLR(rates[1], HORIZON * STEPS, final))
        for count in range(HORIZON * STEPS):
            wanted = rates[0].param_groups[0]["lr"] * rates[1].param_groups[0]["lr"]
            found = course(*numbers, torch.full((3,), count))
            assert found[env].item() == pytest.approx(wanted, rel=1e-10, abs=1e-14)
            for rate, torchs in zip(rates, courses, strict=True):
                rate.step()
                if torchs is not None:
                    torchs.step()
        late = course(*numbers, torch.full((3,), (HORIZON + 7) * STEPS + 1))
        assert late[env].item() == pytest.approx(final, abs=1e-15)


def test_schedule_of_seeds_runs_by_their_own_age() -> None:
    taken = torch.tensor([[2, 13, 38, 160], [6, 5, 8, 21], [30, 0, 1, 121]])
    sweep = torch.tensor([0.0, 2.0, 5.5], dtype=F64), torch.tensor([1.0, 0.0, 0.1], dtype=F64)
    for warmup, final in (sweep, (torch.full((3,), 2.0, dtype=F64), torch.full((3,), 0.2, dtype=F64))):
        together = course(warmup.unsqueeze(1), final.unsqueeze(1), taken)
        assert together.shape == taken.shape
        columns = [course(warmup, final, taken[:, slot]) for slot in range(4)]
        assert torch.equal(together, torch.stack(columns, dim=1))


def test_schedule_has_derivatives_where_there_is_no_warm_up() -> None:
    def of(warmup: Tensor, final: Tensor) -> Tensor:
        return course(warmup, final, torch.tensor([5, 9, 13]))

    def total(warmup: Tensor, final: Tensor) -> Tensor:
        return of(warmup, final).sum()

    warmup, final = torch.tensor([0.0, 1.0, 6.0], dtype=F64), torch.tensor([1.0, 0.0, 0.1], dtype=F64)
    by_warmup, by_final = grad(total, argnums=(0, 1))(warmup, final)
    step = 1e-6  # an environment's own number moves its own course
    for found, wanted in (
        (by_warmup, of(warmup + step, final) - of(warmup - step, final)),
        (by_final, of(warmup, final + step) - of(warmup, final - step)),
    ):
        torch.testing.assert_close(found, wanted / (2 * step), rtol=1e-6, atol=1e-9)
    assert bool(torch.isfinite(jacrev(grad(total))(warmup, final)).all())
