"""The learning rate's course, against torch.optim.lr_scheduler; by the environment's time or by a seed's own."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from esper.kasmina.optimizers import schedule
from esper.leyline.hypers import HyperParams, build_hypers

F64 = torch.float64


def numbers(warmup: Tensor | float, final: Tensor | float) -> HyperParams:
    return build_hypers({"warmup_epochs": warmup, "final_lr_fraction": final}, 3, F64, torch.device("cpu"))


def test_schedule_is_torchs_warm_up_and_cosine() -> None:
    """Three environments, by ``LinearLR`` and ``CosineAnnealingLR`` of single steps."""
    steps, horizon, warmups, finals = 4, 10, [0.0, 2.0, 5.5], [1.0, 0.0, 0.1]
    hypers = numbers(torch.tensor(warmups, dtype=F64), torch.tensor(finals, dtype=F64))
    for env, (warmup, final) in enumerate(zip(warmups, finals, strict=True)):
        rates = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0) for _ in range(2)]
        total = max(int(warmup * steps), 1)
        courses = [LinearLR(rates[0], 1 / total, 1.0, total - 1) if total > 1 else None]
        courses.append(CosineAnnealingLR(rates[1], horizon * steps, final))
        for count in range(horizon * steps):
            wanted = rates[0].param_groups[0]["lr"] * rates[1].param_groups[0]["lr"]
            found = schedule(hypers, torch.full((3,), count // steps), count % steps, steps, horizon)
            assert found[env].item() == pytest.approx(wanted, rel=1e-10, abs=1e-14)
            for rate, course in zip(rates, courses, strict=True):
                rate.step()
                if course is not None:
                    course.step()
        late = schedule(hypers, torch.full((3,), horizon + 7), 1, steps, horizon)
        assert late[env].item() == pytest.approx(final, abs=1e-15)


def test_schedule_of_seeds_runs_by_their_own_age() -> None:
    ages = torch.tensor([[0, 3, 9, 40], [1, 1, 2, 5], [7, 0, 0, 30]])
    for hypers in (numbers(torch.tensor([0.0, 2.0, 5.5]), torch.tensor([1.0, 0.0, 0.1])), numbers(2.0, 0.2)):
        together = schedule(hypers, ages, 2, 4, 10)
        assert together.shape == ages.shape
        columns = [schedule(hypers, ages[:, slot], 2, 4, 10) for slot in range(4)]
        assert torch.equal(together, torch.stack(columns, dim=1))


def test_schedule_has_derivatives_where_there_is_no_warm_up() -> None:
    def course(warmup: Tensor, final: Tensor) -> Tensor:
        hypers = numbers(torch.zeros(3), torch.zeros(3)).replace(warmup_epochs=warmup, final_lr_fraction=final)
        return schedule(hypers, torch.tensor([1, 2, 3]), 1, 4, 10)

    def total(warmup: Tensor, final: Tensor) -> Tensor:
        return course(warmup, final).sum()

    warmup, final = torch.tensor([0.0, 1.0, 6.0], dtype=F64), torch.tensor([1.0, 0.0, 0.1], dtype=F64)
    by_warmup, by_final = grad(total, argnums=(0, 1))(warmup, final)
    step = 1e-6  # an environment's own number moves its own course
    for found, wanted in (
        (by_warmup, course(warmup + step, final) - course(warmup - step, final)),
        (by_final, course(warmup, final + step) - course(warmup, final - step)),
    ):
        torch.testing.assert_close(found, wanted / (2 * step), rtol=1e-6, atol=1e-9)
    assert bool(torch.isfinite(jacrev(grad(total))(warmup, final)).all())
