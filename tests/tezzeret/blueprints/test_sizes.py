"""Sizes: against Python's own arithmetic, and what cannot be written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.kasmina.bypass_blueprints import groups_of
from esper.kasmina.conv_blueprints import norm_groups
from esper.tezzeret.blueprints.sizes import SizeError, evaluate, names_in

NAMES = {"channels": 12, "height": 7, "width": 3}
SIGNS = ("+", "-", "*", "//", "%", "==", "!=", "<", "<=", ">", ">=")


def texts() -> st.SearchStrategy[str]:
    leaf = st.one_of(st.integers(0, 99).map(str), st.sampled_from(sorted(NAMES)))

    def join(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(inner, st.sampled_from(SIGNS), inner).map(" ".join).map(lambda text: f"({text})"),
            st.tuples(inner, st.sampled_from(SIGNS[:5]), inner, st.sampled_from(SIGNS[:5]), leaf).map(" ".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"min({', '.join(parts)})"),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"max({', '.join(parts)})"),
        )

    return st.recursive(leaf, join, max_leaves=8)


@given(texts())
def test_arithmetic_is_that_of_python(text: str) -> None:
    try:
        wanted = int(eval(text, {"min": min, "max": max, **NAMES}))
    except ZeroDivisionError:
        with pytest.raises(SizeError, match="division by 0"):
            evaluate(text, NAMES)
        return
    assert evaluate(text, NAMES) == wanted
    assert names_in(text) == {name for name in NAMES if name in text}


@pytest.mark.parametrize("n", [*range(1, 70), 96, 128, 210, 999_983])
def test_divisors_are_the_largest_by_trial(n: int) -> None:
    for most in (0, 1, 2, 3, 8, 16, 32, n // 2, n):
        wanted = max([d for d in range(1, most + 1) if n % d == 0], default=1)
        assert evaluate(f"divisor({n}, {most})", {}) == wanted
        assert evaluate(f"power_divisor({n}, {most})", {}) == max(
            [2**k for k in range(20) if 2**k <= most and n % 2**k == 0], default=1
        )


@pytest.mark.parametrize("channels", [*range(1, 130), 192, 256, 384, 512])
def test_groups_of_norms_are_those_of_the_python_blueprints(channels: int) -> None:
    rule = "if(channels < 16, power_divisor(channels, 32), power_divisor(channels, min(32, channels // 16)))"
    assert evaluate(rule, {"channels": channels}) == norm_groups(channels)
    assert evaluate("divisor(channels, max(channels // 8, 1))", {"channels": channels}) == groups_of(channels)


REFUSED = {
    "channels ** 2": "'*'",
    "channels.real": "'.real'",
    "__import__('os')": "in an expression",
    "channels[0]": "in an expression",
    "lambda: 1": "':",
    "'8'": "in an expression",
    "": "nothing in an expression",
    "(channels": "expected ')'",
    "channels channels": "expected an operation or its end",
    "min(channels)": "min of 1 numbers; expected 2 to 8",
    "1 if channels else 2": "expected an operation or its end",
    "channels < 3 < 4": "expected an operation or its end",
    "1" * 40: "expected shorter numbers",
    "1e9": "expected an operation or its end",
    "sin(3)": "expected an operation or its end",
    "1 + " * 300 + "1": "letters; expected at most",
    "(" * 60 + "1" + ")" * 60: "nested more than 32 deep",
    "\uff43hannels": "in an expression",
    "depth": "size 'depth'; expected one of",
    "99999999 * 99999999": "a size of 54 bits; expected at most 48",
    "channels // (width - width)": "a division by 0",
    "divisor(0, 3)": "a divisor of 0",
}


@pytest.mark.parametrize("text", REFUSED)
def test_nothing_else_can_be_written(text: str) -> None:
    with pytest.raises(SizeError) as caught:
        evaluate(text, NAMES)
    assert REFUSED[text] in str(caught.value)
