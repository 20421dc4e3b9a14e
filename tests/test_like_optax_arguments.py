"""The arguments of like_optax: optax's, with its defaults and its errors."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon
from optax_muon import like_optax
from tests.optax_pair import NUMBERS, Numbers, assert_alike, draw


def test_the_signature_is_optaxs_with_ours_at_the_end():
    ours, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (like_optax, optax.contrib.muon)
    )
    assert ours[: len(theirs)] == theirs
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    assert ours[len(theirs) :] == [("sharding", keyword_only, None)]


@pytest.mark.parametrize(
    ("numbers", "like_a_matrix"),
    [
        ({"a": Numbers(), "b": {"c": Numbers(), "d": None}}, {"a", "c"}),
        ({"a": None, "b": Numbers(0, 1)}, {"c", "d"}),  # a prefix
        (Numbers(1, 0), {"a", "c", "d"}),
        (lambda tree: None, set()),
        (
            lambda tree: jax.tree.map(
                lambda x: Numbers() if x.size > 9 else None, tree
            ),
            {"a"},
        ),
        ({"a": Numbers(2, 5), "b": Numbers(0, -5)}, {"a", "c", "d"}),  # modulo the rank
    ],
)
def test_dimension_numbers(numbers, like_a_matrix):
    tall, wide = draw(0)["tall"], draw(0)["wide"]
    params = {"a": tall, "b": {"c": wide[:3, :3], "d": wide[:2, 3:]}}
    # Without momentum or steps: the shape's scale and the norm tell the axes.
    options = {
        "learning_rate": 1.0,
        "ns_steps": 0,
        "beta": 0.0,
        "muon_weight_dimension_numbers": numbers,
    }
    results = []
    for factory in (like_optax, optax.contrib.muon):
        tx = factory(**options)
        results.append(tx.update(params, tx.init(params), params)[0])
    assert_alike(*results)
    momentum = optax_muon.find_state(like_optax(**options).init(params)).momentum
    flat, _ = jax.tree_util.tree_flatten_with_path(momentum)
    assert {path[-1].key for path, _ in flat} == like_a_matrix


BAD = [
    {"ns_coeffs": "muon"},
    {"ns_coeffs": (3.0, -3.0)},
    {"ns_coeffs": ((3.0, -3.0), (2.0, -1.5))},
    {"ns_coeffs": np.ones((1, 2, 3))},
    {"ns_coeffs": ((3.0, -3.2, 1.2),) * 3, "ns_steps": 2},
    {"ns_coeffs": "dion", "ns_steps": 3},
    {"preconditioning": "none"},
    {"muon_weight_dimension_numbers": {"w": Numbers(), "b": Numbers()}},
    {"muon_weight_dimension_numbers": {"w": None, "b": None, "c": Numbers(0, (0, 1))}},
    {"muon_weight_dimension_numbers": {"w": Numbers(), "b": Numbers(0, ()), "c": None}},
    {"muon_weight_dimension_numbers": {"w": Numbers()}},
    {"muon_weight_dimension_numbers": {"w": Numbers(), "b": None, "x": None}},
]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_errors_are_of_optaxs_type(options):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3), "c": jnp.ones((2, 3, 4))}

    def step(factory):
        tx = factory(0.1, **options)
        tx.update(params, tx.init(params), params)

    for factory in (optax.contrib.muon, like_optax):
        with pytest.raises(ValueError, match=r"."):
            step(factory)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"5 rows, but ns_steps=3.* pass ns_steps=5"):
        like_optax(0.1, "dion", 3)
    with pytest.raises(ValueError, match=r"ns_coeffs=\(1, 2\).* \(standard, dion\)"):
        like_optax(0.1, (1, 2))
    with pytest.raises(ValueError, match=r"ns_steps=-1 must be at least 0"):
        like_optax(0.1, ns_steps=-1)
    with pytest.raises(TypeError, match=r"ns_steps=2\.5 must be an int"):
        like_optax(0.1, ns_steps=2.5)
    with pytest.raises(TypeError, match=r"beta=.* takes no schedule"):
        like_optax(0.1, beta=optax.constant_schedule(0.9))
    with pytest.raises(ValueError, match="mu_dtype"):
        like_optax(0.1, mu_dtype="int8")
    params = draw(0)
    numbers = NUMBERS | {"wide": Numbers(0, 2), "bias": Numbers()}
    with pytest.raises(
        ValueError,
        match=r"fit these leaves:\n  bias .* rank 2 or more\n  wide .*\nGive",
    ):
        like_optax(0.1, muon_weight_dimension_numbers=numbers).init(params)
    with pytest.raises(ValueError, match=r"params"):
        like_optax(0.1).update(params, like_optax(0.1).init(params))
