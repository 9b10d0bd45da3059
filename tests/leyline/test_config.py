"""Config and HyperParams: what they may hold, and what a wrong value is told."""

import math
from dataclasses import fields, replace
from enum import Enum
from typing import Any, get_args, get_type_hints

import pytest
import torch

import esper
from esper.leyline.actions import Blend
from esper.leyline.config import Config, ConfigError, Determinism, Isolation, Precision, SampleOrder
from esper.leyline.hypers import HyperParams, build_hypers, numbers, over

CPU = torch.device("cpu")
E = 4
TABLE = numbers()


def hypers(overrides: dict[str, Any], dtype: torch.dtype = torch.float32) -> HyperParams:
    return build_hypers(overrides, E, dtype, CPU)


def message(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


# Config


def test_no_field_of_config_can_hold_a_float() -> None:
    def leaves(kind: Any) -> list[Any]:
        return [leaf for arg in get_args(kind) if arg is not ... for leaf in leaves(arg)] or [kind]

    hints = get_type_hints(Config)
    assert set(hints) == {field.name for field in fields(Config)}
    for name, hint in hints.items():
        for kind in leaves(hint):
            assert kind in (int, bool, str, type(None)) or issubclass(kind, Enum), f"{name}: {kind}"


def test_equal_configs_are_equal_and_hash_alike() -> None:
    one, other = Config(E, (0, 1)), Config(E, (0, 1))
    assert one == other and hash(one) == hash(other)
    assert len({one, other}) == 1


CHANGES = {
    "num_envs": 5,
    "slots": (0, 1, 1),
    "blends": (Blend.COSINE,),
    "batch_size": 8,
    "steps_per_epoch": 1,
    "accumulate": 2,
    "val_samples": 3,
    "eval_batch_size": 1,
    "horizon": 1,
    "sample_order": SampleOrder.INDEPENDENT,
    "host_optimizer": "adam",
    "seed_optimizer": "adam",
    "isolation": Isolation.NONE,
    "deterministic": Determinism.STRICT,
    "recompute": True,
    "auto_advance": False,
    "retarget": True,
    "precision": Precision.FLOAT64,
    "crop_padding": 2,
    "mirror": True,
    "loss_window": 2,
    "history": 1,
    "decision_history": 2,
}


def test_every_field_counts_for_equality_and_none_can_be_set() -> None:
    base = Config(E, (0, 1))
    assert set(CHANGES) == {field.name for field in fields(Config)}
    for name, value in CHANGES.items():
        assert replace(base, **{name: value}) != base
        with pytest.raises(AttributeError):
            setattr(base, name, value)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("num_envs", 1),
        ("batch_size", 1),
        ("steps_per_epoch", 1),
        ("eval_batch_size", 1),
        ("horizon", 1),
        ("loss_window", 2),
        ("history", 1),
        ("crop_padding", 0),
        ("decision_history", 0),
    ],
)
def test_counts_are_checked(name: str, least: int) -> None:
    base = Config(E, ())
    assert getattr(replace(base, **{name: least}), name) == least
    for value in (least - 1, -7, 2.0, 2.5, True, "3", None):
        with pytest.raises(ConfigError) as error:
            replace(base, **{name: value})
        assert message(error) == f"config.{name} = {value!r}: expected an integer >= {least}"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("sample_order", "shared", "SampleOrder.SHARED or SampleOrder.INDEPENDENT"),
        ("host_optimizer", 1, "a name"),
        ("seed_optimizer", None, "a name"),
        ("deterministic", "strict", "Determinism.ORDINARY or Determinism.STRICT"),
        ("isolation", "none", "Isolation.STRAIGHT_THROUGH or Isolation.OBJECTIVE or Isolation.NONE"),
        ("mirror", "yes", "True or False"),
        ("retarget", 1, "True or False"),
        (
            "precision",
            torch.float32,
            " or ".join(f"Precision.{name}" for name in ("FLOAT32", "FLOAT64", "BF16", "FLOAT16")),
        ),
        ("auto_advance", 1, "True or False"),
    ],
)
def test_choices_are_checked(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(Config(E, ()), **{name: value})
    assert message(error) == f"config.{name} = {value!r}: expected {allowed}"


SLOTS = "expected a tuple of ascending host block indices, or of points such as 'input:logits'"


@pytest.mark.parametrize("slots", [(1, 0), (-1, 0), [0, 1], 3, (0, 2, 1), (2, "input:logits", 1)])
def test_slots_are_checked(slots: object) -> None:
    with pytest.raises(ConfigError) as error:
        Config(E, slots)
    assert message(error) == f"config.slots = {slots!r}: {SLOTS}"


@pytest.mark.parametrize("slots", [(0.5,), (0.0, 1.0), (True,), (b"input",), (0, None)])
def test_slots_are_integers_or_words(slots: object) -> None:
    with pytest.raises(ConfigError) as error:
        Config(E, slots)
    assert message(error) == f"config.slots = {slots!r}: {SLOTS}"


@pytest.mark.parametrize("slots", [(), (0,), (0, 0, 2), (3, 7), ("input:logits",), (0, "block0:block2", 0)])
def test_slots_may_repeat_and_be_none(slots: tuple[int | str, ...]) -> None:
    assert Config(E, slots).num_slots == len(slots)


@pytest.mark.parametrize(
    "blends", [(), [Blend.LINEAR], (Blend.LINEAR, Blend.LINEAR), (0,), ("linear",), Blend.LINEAR, None]
)
def test_blends_are_checked(blends: object) -> None:
    with pytest.raises(ConfigError) as error:
        Config(E, (), blends)
    assert message(error) == f"config.blends = {blends!r}: expected a non-empty tuple of distinct Blend members"


def test_precision_knows_its_dtype() -> None:
    assert {each: (each.dtype, each.features) for each in Precision} == {
        Precision.FLOAT32: (torch.float32, torch.float32),
        Precision.FLOAT64: (torch.float64, torch.float64),
        Precision.BF16: (torch.float32, torch.bfloat16),
        Precision.FLOAT16: (torch.float32, torch.float16),
    }


# HyperParams


@pytest.mark.parametrize("name", TABLE)
def test_every_number_has_unit_range_source_and_a_default_within_range(name: str) -> None:
    number = TABLE[name]
    assert number.unit.strip() and number.source.strip()
    assert number.low < number.high and not math.isnan(number.low + number.high)
    assert number.low <= number.default <= number.high
    assert math.isfinite(number.default)


def test_the_documented_defaults() -> None:
    """The numbers that the table of the life cycle names."""
    documented = {
        "min_training_epochs": 3,
        "min_gradient_ratio": 0.05,
        "min_improvement": 0.5,
        "sigmoid_steepness": 12.0,
        "min_blending_epochs": 3,
        "alpha_complete": 0.95,
        "shadowing_epochs": 1,
        "min_contribution": 1.0,
        "probation_epochs": 5,
        "probation_fraction": 0.1,
        "embargo_epochs": 5,
    }
    assert {name: TABLE[name].default for name in documented} == documented


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_defaults_are_scalars_of_the_configured_precision(dtype: torch.dtype) -> None:
    built = hypers({}, dtype)
    assert set(built.keys()) == set(TABLE)
    for name, number in TABLE.items():
        assert built[name].dtype == dtype and built[name].shape == ()
        assert torch.equal(built[name], torch.tensor(number.default, dtype=dtype))


@pytest.mark.parametrize("name", TABLE)
def test_numbers_scalars_and_one_per_environment_are_accepted(name: str) -> None:
    number = TABLE[name]
    ends = [number.low, number.high, number.default, number.low]
    for value, shape in (
        (number.low, ()),
        (number.high, ()),
        (torch.tensor(number.default, dtype=torch.float64), ()),
        (torch.tensor(ends, dtype=torch.float64), (E,)),
        (torch.full((E,), math.ceil(number.low), dtype=torch.int64), (E,)),
    ):
        built = hypers({name: value})
        assert built[name].shape == shape and built[name].dtype == torch.float32
        assert torch.equal(built[name], torch.as_tensor(value, dtype=torch.float32))
        assert all(built[other].shape == () for other in TABLE if other != name)


@pytest.mark.parametrize("name", TABLE)
def test_numbers_out_of_range_are_refused_with_range_and_unit(name: str) -> None:
    number = TABLE[name]
    wrong = [number.low - 1.0, -math.inf, math.nan]
    wrong += [] if math.isinf(number.high) else [number.high * 1.01, math.inf]
    for value in wrong:
        for given in (value, torch.tensor([number.default] * (E - 1) + [value])):
            with pytest.raises(ConfigError) as error:
                hypers({name: given})
            shown = torch.as_tensor(given, dtype=torch.float32).tolist()
            said = message(error).removeprefix(f"hypers.{name} = {shown}: expected ")
            low, high = said.removesuffix(f" {number.unit}").split(" to ")
            assert (float(low), float(high)) == (number.low, number.high)


@pytest.mark.parametrize("shape", [(1,), (E + 1,), (E, 1), (1, E), (0,)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        hypers({"host_lr": torch.zeros(shape)})
    assert message(error) == f"hypers.host_lr: shape {list(shape)}; expected [] or [{E}]"


def test_unknown_numbers_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        hypers({"learning_rate": 0.1})
    assert message(error).startswith("hypers.learning_rate: unknown; known are host_lr, seed_lr, ")
    assert all(name in message(error) for name in TABLE)


def test_over_broadcasts_along_the_environments() -> None:
    assert over(torch.tensor(2.0), 2).shape == (1, 1)
    assert over(torch.arange(3.0), 1).shape == (3, 1)
    assert over(torch.arange(3.0), 0).shape == (3,)
    assert torch.equal(over(torch.arange(3.0), 1) * torch.ones(3, 3), torch.arange(3.0).repeat_interleave(3).view(3, 3))


# esper.make


def test_make_takes_settings_of_both_kinds() -> None:
    engine = esper.make("synthetic", 2, horizon=7, host_lr=torch.tensor([0.1, 0.2]))
    assert (engine.config.num_envs, engine.config.horizon) == (2, 7)
    assert torch.equal(engine.hypers.host_lr, torch.tensor([0.1, 0.2]))
    assert engine.config.slots == (0, 1, 2)


@pytest.mark.parametrize("task", ["digit", "", None, 3])
def test_make_refuses_an_unknown_task_with_the_known_ones(task: object) -> None:
    with pytest.raises(ConfigError) as error:
        esper.make(task, 2)
    presets = "digits, digits_v1, digits_impaired, digits_deep, chars, synthetic, synthetic_tokens, digits_varied"
    presets += ", chars_varied"
    sources = "cifar10:PATH, idx:PATH, npz:PATH, npy:PATH, text:PATH, fashion_varied:PATH, py:module:name"
    expected = f"task {task!r}: expected one of {presets}, {sources}"
    assert message(error) == expected + ("; did you mean 'digits'?" if task == "digit" else "")


@pytest.mark.parametrize(
    ("name", "near"), [("horizn", "horizon"), ("host_lrs", "host_lr"), ("batchsize", "batch_size")]
)
def test_make_refuses_an_unknown_setting_with_a_suggestion(name: str, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        esper.make("synthetic", 2, **{name: 1})
    assert message(error) == f"make('synthetic'): unknown setting {name!r}; did you mean {near!r}?"


def test_make_lists_the_settings_where_nothing_is_near() -> None:
    with pytest.raises(ConfigError) as error:
        esper.make("synthetic", 2, zzzz=1)
    assert "unknown setting 'zzzz'; known are " in message(error)
    assert all(name in message(error) for name in (*TABLE, *(set(CHANGES) - {"num_envs"})))


POINTS = "expected input, block0, block1, block2, logits"


@pytest.mark.parametrize(
    ("num_envs", "settings", "text"),
    [
        (0, {}, "config.num_envs = 0: expected an integer >= 1"),
        (2, {"horizon": 0}, "config.horizon = 0: expected an integer >= 1"),
        (2, {"host_lr": -1.0}, "hypers.host_lr = -1.0: expected 0 to 100 1 per SGD step"),
        (2, {"seed_lr": torch.zeros(3)}, "hypers.seed_lr: shape [3]; expected [] or [2]"),
        (2, {"slots": (0, 3)}, "config.slots[1] = 3: cnn 4-8-16 has sites after [0, 1, 2] only"),
        (2, {"slots": ("block3",)}, f"config.slots[0] = 'block3': cnn 4-8-16 has no point 'block3'; {POINTS}"),
        (2, {"slots": ("input:out",)}, f"config.slots[0] = 'input:out': cnn 4-8-16 has no point 'out'; {POINTS}"),
        (
            2,
            {"slots": (0, "block1:block0")},
            "config.slots[1] = 'block1:block0': the source lies behind the target; expected it before",
        ),
        (2, {"host_optimizer": "adamax"}, "config.host_optimizer = 'adamax': expected adam or adamw or sgd"),
    ],
)
def test_make_passes_on_what_config_and_hypers_refuse(num_envs: int, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        esper.make("synthetic", num_envs, **settings)
    assert message(error) == text


def test_make_refuses_a_host_that_does_not_fit_its_data() -> None:
    task = esper.runtime.tasks.synthetic()
    wrong = task._replace(host=task.host._replace(num_outputs=3))
    with pytest.raises(ConfigError) as error:
        esper.make(wrong, 2)
    assert "has 10 classes, host cnn 4-8-16 has 3 outputs" in message(error)
