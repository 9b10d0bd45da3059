"""Documents of ordinary modules: they compute what the module does, and its gradients; or are refused in one line."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.kasmina.site import Site, conv_site, token_site, vector_site
from esper.leyline.config import ConfigError
from esper.tezzeret.blueprints import blueprint_of, canonical, infer, of_module, parse
from esper.utils import rng

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap has no attention of its own


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.norm(self.first(x))))


class Mixing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.asked, self.told = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.asked(self.norm(x)).chunk(3, -1)
        return x + self.told(F.scaled_dot_product_attention(query, key, value, is_causal=True))


class Bigrams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.table(x)))


def strided() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))


SEQUENCE = Site("logits", (5, 11), 1, 0)
MODULES = {
    "residual": (lambda: Residual(4), conv_site(4, 5, 5), None),
    "strided": (strided, conv_site(1, 8, 8), Site("logits", (10,), 0)),
    "mixing": (lambda: Mixing(6), token_site(5, 6), None),
    "bigrams": (Bigrams, Site("tokens", (5,), 0), SEQUENCE),
    "curve": (lambda: nn.Sequential(nn.Linear(5, 5), nn.Softplus()), vector_site(5), None),
}


def example_of(site: Site) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    if site.kind == "tokens":
        return torch.randint(11, (3, *site.shape), generator=draw)
    return torch.randn(3, *site.shape, generator=draw)


@pytest.mark.parametrize("name", MODULES)
def test_a_document_of_a_module_computes_what_it_does(name: str) -> None:
    make, source, target = MODULES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, example = make(), example_of(source)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    document = of_module(module, name, example)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert parse(canonical(document), name) == document
    sites = source, source if target is None else target
    assert infer(document, *sites).params == sum(value.numel() for value in module.parameters())
    blueprint = blueprint_of(document)
    layout, held = blueprint.layout(*sites), blueprint.buffer_layout(*sites)
    keys = rng.split(rng.key(0), 2)
    flat = layout.init(keys, torch.float32).requires_grad_()
    x = example.expand(2, *example.shape)
    for training in (True, False):
        named = layout.views(flat), held.views(held.init(keys, torch.float32))
        y, new = blueprint.train(*named, x, None) if training else (blueprint.infer(*named, x), {})
        form = copy.deepcopy(module).train(training)  # whose statistics change
        wanted = form(example)
        torch.testing.assert_close(y[1], wanted, rtol=1e-5, atol=1e-5)
        (slope,) = torch.autograd.grad(y[1].square().mean(), flat)
        slopes = torch.autograd.grad(wanted.square().mean(), list(form.parameters()))
        parts = dict(zip(dict(form.named_parameters()), slopes, strict=True))
        for key, value in layout.views(slope).items():
            torch.testing.assert_close(value[1], parts[key], rtol=1e-4, atol=1e-6)
        for key, value in new.items():
            torch.testing.assert_close(value[1], dict(form.named_buffers())[key], rtol=1e-5, atol=1e-6)


def test_seeds_may_start_from_the_numbers_in_another_order() -> None:
    with torch.random.fork_rng(devices=[]):
        module = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    document = of_module(module, "shuffled", torch.ones(2, 5), start="shuffled")
    layout = blueprint_of(document).layout(vector_site(5))
    weight = layout.views(layout.init(rng.split(rng.key(0), 2), torch.float32))["0.weight"]
    assert not torch.equal(weight[0], weight[1])
    assert torch.equal(weight[0].flatten().sort().values, module[0].weight.detach().flatten().sort().values)


REFUSED = {
    "dropout": (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)), torch.ones(2, 4), "without dropout"),
    "nothing to learn": (nn.ReLU(), torch.ones(2, 4), "no parameter that learns"),
    "sorting": (nn.Sequential(nn.Linear(4, 4), nn.RReLU()), torch.ones(2, 4), "random numbers"),
    "no batch": (nn.Linear(4, 4), torch.ones(4), "expected a batch"),
    "other norm": (nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, eps=1e-3)), torch.ones(2, 2, 3, 3), "eps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_document_can_say_is_refused_in_one_line(name: str) -> None:
    module, example, words = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        of_module(module, "odd", example)
    line = str(caught.value)
    assert words in line and "\n" not in line and "expected" in line
