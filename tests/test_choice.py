"""What runs for a shape: its cost, restarts and safety, and that it is what runs."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_muon import COEFFICIENTS, NewtonSchulz, Svd, explain, orthogonalize
from optax_muon._cost import cycles, direct_flops, gram_flops
from optax_muon._rounding import (
    OVERSHOOT_LIMIT,
    noise_growth,
    noise_limit,
    overshoot,
    safe_restarts,
)

DTYPES = [jnp.dtype(name) for name in ("bfloat16", "float16", "float32", "float64")]
SIXTEEN_BITS = ("bfloat16", "float16")


@pytest.mark.parametrize("alpha", [1, 2, 4, 7.5])
@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_flops_are_those_of_the_published_model(alpha, steps):
    """In units of n^3; directly, also for one triangle of symmetric products."""
    n, m = 100, round(100 * alpha)
    plain, triangle = 2 * steps * (2 * alpha + 1), steps * (3 * alpha + 1)
    assert direct_flops(n, m, steps) == pytest.approx(plain * n**3)
    assert direct_flops(n, m, steps, 0.5) == pytest.approx(triangle * n**3)
    for r in range(min(steps, 3)):
        plain = 8 * steps - 6 + 4 * alpha + r * (4 * alpha - 6)
        found = gram_flops(n, m, steps, tuple(range(r)))
        assert found == pytest.approx(plain * n**3)


def brute_force(rows, dtype):
    """Of all subsets the fewest restarts, the least growth, and the latest."""

    def bears(cycle):
        small = noise_growth(rows[slice(*cycle)]) <= noise_limit(dtype)
        return small and overshoot(rows, *cycle, dtype) <= OVERSHOOT_LIMIT

    safe = [
        restarts
        for count in range(len(rows))
        for restarts in itertools.combinations(range(len(rows) - 1), count)
        if all(bears(c) for c in cycles(restarts, len(rows)) if c[1] - c[0] > 1)
    ]
    kept = [restarts for restarts in safe if restarts[:1] != (0,)]

    def badness(restarts):
        later_first = tuple(-k for k in restarts)
        return len(restarts), worst_growth(rows, restarts), later_first

    return min(kept or safe, key=badness)


def worst_growth(rows, restarts):
    return max(noise_growth(rows[i:j]) for i, j in cycles(restarts, len(rows)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_safe_restarts_are_the_best_of_all(name, dtype):
    for steps in range(1, 9):
        rows = COEFFICIENTS[name].schedule(steps)
        assert safe_restarts(rows, dtype) == brute_force(rows, dtype)


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("keller_jordan", (1, 3), ()),
        ("polar_express", (0, 1, 2), (1,)),
        ("polar_express_modded", (0, 1, 2), (1,)),
        ("you_jiacheng", (0, 1, 2), (1,)),
    ],
)
def test_restarts_of_five_steps(name, bfloat16, float32):
    """As measured, with most in bfloat16 where the polynomials have little margin."""
    rows = COEFFICIENTS[name].schedule()
    found = [safe_restarts(rows, dtype) for dtype in DTYPES]
    assert found == [bfloat16, (1, 3), float32, ()]


def test_overshoot_by_hand():
    """One step, by hand: p(s) = 2 s - s^3 is 1 at 1, and its error is 2 s eps / 2."""
    rows, dtype = ((2.0, -1.0, 0.0),), jnp.dtype("bfloat16")
    s = np.linspace(0, 1, 100_001)
    largest = (2 * s - s**3).max()
    error = (2 * s - s**3 + 2 * s * 2.0**-8).max()
    found = overshoot(rows, 0, 1, dtype)
    assert found == pytest.approx(error / largest, rel=1e-6)
    # The next step has its peak where the first one ends, and falls from there on.
    rows = (*rows, (1.0, -1 / 3 / largest**2, 0.0))
    assert overshoot(rows, 0, 1, dtype) == pytest.approx(1, abs=1e-6)
    # A step that makes more of it.
    rows = (rows[0], (0.5, 0.0, 0.2))
    assert overshoot(rows, 0, 1, dtype) > error / largest
    assert overshoot(rows, 0, 1, jnp.dtype("float32")) == pytest.approx(1, abs=1e-5)
    # Steps that turn negative at 1.3176, to which the first three come near.
    edge = ((2.5, -1.44, 0.0),) * 6
    assert overshoot(edge, 0, 3, dtype) == np.inf
    assert safe_restarts(edge, dtype) == (1, 3)
    # What comes out of the last step may be small, but not negative.
    assert overshoot(((2.0, -1.999, 0.0),), 0, 1, dtype) == np.inf


def test_noise_grows_by_the_square_of_a_in_every_step_but_the_last():
    rows = ((2.0, -1.0, 0.1), (3.0, -1.0, 0.1), (5.0, -1.0, 0.1), (0.5, 0.0, 0.0))
    assert noise_growth(rows) == (2 * 3 * 5) ** 2
    assert noise_growth(rows[:1]) == 1
    assert noise_growth(rows[2:]) == 25
    assert noise_growth((rows[3], rows[0])) == 1  # it does not shrink either


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("alpha", [1, 1.25, 1.75, 4])
def test_auto_takes_the_cheaper_form(platform, alpha):
    """Plain break-even is alpha = 1.5 for more than one step and any restarts."""
    shape = (200, round(200 * alpha))
    found = explain(shape, platform=platform)
    assert found.method == ("gram" if alpha > 1.5 else "direct")
    assert found.flops == min(
        explain(shape, NewtonSchulz(method=method), platform=platform).flops
        for method in ("direct", "gram")
    )
    assert explain(shape[::-1], platform=platform) == found
    assert explain((3, 7, *shape), platform=platform) == found


def test_skipping_blocks_moves_the_break_even():
    """10 (7/4 alpha + 3/4) directly = 28 + 8 alpha in the Gram form: alpha = 2.16."""
    cases = {2.1: ("direct", "halves"), 2.2: ("gram", "xla")}
    for alpha, expected in cases.items():
        found = explain((1000, round(1000 * alpha)), platform="cpu")
        assert (found.method, found.products) == expected
    assert explain((1000, 1000), platform="tpu").products == "xla"
    assert explain((511, 511), platform="cpu").products == "xla"
    assert explain((512, 512), platform="cpu").products == "halves"


@pytest.mark.parametrize(
    ("name", "dtype", "method", "why"),
    [
        ("polar_express_modded", "bfloat16", "gram", "cheaper"),
        ("polar_express_modded", "float32", "gram", "cheaper"),
        ("deepseek_v4", "bfloat16", "direct", "7.93e\\+04"),
        ("deepseek_v4", "float16", "direct", "7.93e\\+04"),
        ("deepseek_v4", "float32", "gram", "cheaper"),
        ("polar_express", "bfloat16", "gram", "cheaper"),
    ],
)
def test_auto_avoids_what_a_dtype_cannot_bear(name, dtype, method, why):
    found = explain((64, 256), NewtonSchulz(name, dtype=dtype), platform="tpu")
    assert found.method == method
    assert re.search(why, found.reason)
    if method == "direct":
        with pytest.raises(ValueError, match=f"not safe with dtype={dtype}.*{why}"):
            NewtonSchulz(name, dtype=dtype, method="gram")


def test_restarts_that_a_dtype_cannot_bear():
    for dtype in SIXTEEN_BITS:
        with pytest.raises(ValueError, match=r"grows 141 times.*bears 64"):
            NewtonSchulz("keller_jordan", method="gram", dtype=dtype, restarts=(1,))
    with pytest.raises(
        ValueError, match=r"steps 0 to 1 can make .* diverge .*\(0, 1, 2\)"
    ):
        NewtonSchulz(method="gram", dtype="bfloat16", restarts=(1, 2))
    with pytest.raises(ValueError, match="which is bfloat16 on TPU and"):
        NewtonSchulz("keller_jordan", method="gram", restarts=[1])
    with pytest.raises(ValueError, match=r"means \(1,\) there"):
        NewtonSchulz("you_jiacheng", method="gram", dtype="float32", restarts=())
    fine = NewtonSchulz("keller_jordan", method="gram", dtype="float32", restarts=[2])
    assert explain((4, 4), fine).restarts == fine.restarts == (2,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "fast"}, "method='fast' is not known; valid names: 'auto'"),
        ({"restarts": (1,)}, "restarts=.*belongs to the Gram form.*'auto'"),
        ({"restarts": (), "method": "direct"}, "belongs to the Gram form.*'direct'"),
        ({"restarts": (4,), "method": "gram"}, "below 4 for 5 steps"),
        ({"restarts": (2, 1), "method": "gram"}, "ascending"),
        ({"restarts": (1, 1), "method": "gram"}, "ascending"),
        ({"restarts": (-1,), "method": "gram"}, "ascending 0-based steps"),
        ({"restarts": (1.0,), "method": "gram"}, "ascending 0-based steps"),
        ({"restarts": 1, "method": "gram"}, "restarts=1 must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NewtonSchulz(**arguments)


def test_explain_refuses():
    with pytest.raises(TypeError, match="leaves nothing to choose"):
        explain((4, 4), Svd())
    for shape in [(4,), (-4, 4), (0, 4), (4.0, 4), 4, "ab"]:
        with pytest.raises(ValueError, match="is not that of matrices"):
            explain(shape)
    for dtype in ("int32", "complex64", "float64", "float8_e4m3fn"):
        with pytest.raises(ValueError, match=f"dtype='{dtype}'"):
            explain((4, 4), dtype=dtype)
    with pytest.raises(ValueError, match="platform='metal' is not known"):
        explain((4, 4), platform="metal")


def dots(shape, orthogonalizer, platform):
    """Matrix products in the lowered program, loops counted once."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    traced = jax.jit(lambda x: orthogonalize(x, orthogonalizer)).trace(x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return text.count("stablehlo.dot_general")


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
@pytest.mark.parametrize(
    "shape", [(8, 8), (8, 32), (2, 512, 513), (512, 1999)], ids=str
)
def test_the_explained_choice_is_what_runs(shape, platform):
    for name in ("polar_express", "polar_express_modded"):
        method = NewtonSchulz(name)
        found = explain(shape, method, platform=platform.replace("cuda", "gpu"))
        halves = found.products == "halves"
        gram, symmetric, product = (3, 6, 4) if halves else (1, 1, 1)
        if found.method == "direct":
            expected = gram + symmetric + product
        else:
            ends = (-1, *found.restarts, len(method.rows) - 1)
            lengths = [b - a for a, b in itertools.pairwise(ends)]
            # Cycles of one length in a row are a loop.
            runs = [length for length, _ in itertools.groupby(lengths)]
            loops = sum(length > 1 for length in runs)
            expected = len(runs) * (gram + symmetric + product) + 4 * loops * symmetric
        assert dots(shape, method, platform) == expected


@pytest.mark.usefixtures("x64")
def test_float64_stays_float64():
    for platform in ("cpu", "gpu", "tpu"):
        found = explain((8, 32), dtype="float64", platform=platform)
        assert found.dtype == jnp.float64


def test_integers_may_come_from_numpy():
    rows = np.asarray(COEFFICIENTS["cubic"].rows)
    method = NewtonSchulz(
        rows, np.int64(4), method="gram", dtype="float32", restarts=[np.int32(1)]
    )
    same = NewtonSchulz(
        COEFFICIENTS["cubic"].rows, 4, method="gram", dtype="float32", restarts=(1,)
    )
    assert method.steps == 4
    assert hash(method.restarts) == hash((1,))
    assert method.rows == same.rows
