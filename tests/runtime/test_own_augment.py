"""An augmentation of one's own: a pure function of keys and a batch, alike on all backends, tried before it runs."""

import pytest
import torch

import esper
from esper.leyline.config import ConfigError
from esper.leyline.streams import Stream
from esper.tezzeret.batches import batch_at
from esper.tolaria.training import draw_batches
from esper.utils import rng


def dimmed(key, images):
    """Every image times a number of its own between 1/2 and 1."""
    factor = rng.uniform(key, (images.shape[1],), 0.5, 1.0, images.dtype)
    return images * factor.reshape(*factor.shape, *(1,) * (images.dim() - 2))


def test_training_sees_what_it_gives_and_validation_does_not(small_task):
    plain, own = (esper.make(small_task._replace(augment=f), 3, backend="eager") for f in (None, dimmed))
    state = plain.init(0)
    batches = draw_batches(plain.config, state, plain.data)
    for step in (0, 1):
        given, found = (batch_at(engine.structure, batches, step).inputs for engine in (plain, own))
        key = rng.fold_in(state.key, int(Stream.OWN_AUGMENT), state.epoch, step)
        assert torch.equal(found, dimmed(key, given))
        assert not torch.equal(found[0], found[1]), "environments share their samples, not what becomes of them"
    assert torch.equal(plain.test(state).loss, own.test(state).loss)


def test_backends_agree(small_task):
    losses = []
    for backend in ("eager", "auto"):
        engine = esper.make(small_task._replace(augment=dimmed), 2, backend=backend)
        state, wait = engine.init(0), torch.zeros(2, dtype=torch.int64)
        for _ in range(2):
            state, event = engine.step(state, wait)
        losses.append(event.epoch.loss)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def written(key, images):
    images.mul_(0.5)
    return images


REFUSED = {
    "shape": (lambda key, images: images[:, 1:], r"gave torch.float32 \[3, 3, 1, 8, 8\]; expected"),
    "nothing": (lambda key, images: None, "gave NoneType; expected torch.float32"),
    "fails": (lambda key, images: images.no_such(), "no attribute 'no_such'"),
    "writes": (written, "writes into its arguments"),
    "finite": (lambda key, images: images / 0, "not finite"),
    "rows": (lambda key, images: images - images.mean(0), "depend on other rows"),
    "draws": (lambda key, images: images + torch.empty_like(images).normal_(generator=DICE), "for the same keys"),
}
DICE = torch.Generator()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_pure_function_is_refused_in_one_line(name, small_task):
    function, expected = REFUSED[name]
    with pytest.raises(ConfigError, match=rf"make\('small'\): augment: .*{expected}") as raised:
        esper.make(small_task._replace(augment=function), 2)
    assert "\n" not in str(raised.value)


def test_tokens_have_none():
    from esper.runtime.tasks import synthetic_tokens

    with pytest.raises(ConfigError, match=r"augment: dataset .* has tokens"):
        esper.make(synthetic_tokens()._replace(augment=dimmed), 2)
