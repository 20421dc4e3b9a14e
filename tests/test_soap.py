"""scale_by_soap against a short reference in float64, and what it reduces to."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_muon import MatrixAxes, Svd, orthogonalize, scale_by_muon, scale_by_soap
from tests import oracles
from tests.recipes import types
from tests.soap_steps import (
    BETA2,
    FIELDS,
    MU,
    OWN,
    directions,
    draw,
    draw_leaf,
    reference,
    run,
)


def some_signs(rng, q):
    return q * rng.choice([-1, 1], size=q.shape[-1])


def assert_eigenbasis(q, statistic, tolerance):
    """Orthonormal; it makes the statistic diagonal, of falling entries."""
    np.testing.assert_allclose(q.T @ q, np.eye(len(q)), atol=tolerance)
    values = q.T @ statistic @ q / np.linalg.norm(statistic)
    np.testing.assert_allclose(values, np.diag(np.diag(values)), atol=tolerance)
    assert (np.diff(np.diag(values)) <= tolerance).all()


AXES = {
    "tall": MatrixAxes(0, 1),
    "wide": MatrixAxes(0, 1),
    "column": MatrixAxes(0, 1),
    "stack": MatrixAxes(1, 2),
    "fans": MatrixAxes((0, 2), (1, 4)),  # between them the batch
    "row": MatrixAxes(0, 1),
}
SHAPES = {
    "tall": (6, 4),
    "wide": (4, 6),
    "column": (5, 1),
    "stack": (2, 5, 3),
    "fans": (2, 2, 3, 2, 2),
    "row": (1, 5),
}


def stacks(tree):
    """Each leaf as [batch, fan_in, fan_out] in float64."""
    return {name: as_stack(leaf, AXES[name]) for name, leaf in tree.items()}


def as_stack(x, axes):
    x = np.asarray(x, np.float64)
    batch = [a for a in range(x.ndim) if a not in axes.fan_in + axes.fan_out]
    sides = [[x.shape[a] for a in side] for side in (axes.fan_in, axes.fan_out)]
    x = x.transpose(*batch, *axes.fan_in, *axes.fan_out)
    return x.reshape(-1, *(np.prod(side) for side in sides))


def assert_ten_steps(rng, names, dtype, tolerance, nesterov=True):
    gradients = draw(rng, {name: SHAPES[name] for name in names}, 10, dtype)
    axes = {name: AXES[name] for name in names}
    tx = scale_by_soap(**OWN, nesterov=nesterov, frequency=3, matrix_axes=axes)
    updates, states = run(tx, gradients)
    gradients, updates = list(map(stacks, gradients)), list(map(stacks, updates))
    for name in names:
        for i, g in enumerate(gradients[0][name]):
            ql, qr = (
                np.asarray(side[name][i], np.float64)
                for side in (states[1].left_basis, states[1].right_basis)
            )
            assert_eigenbasis(ql, g @ g.T, tolerance)
            assert_eigenbasis(qr, g.T @ g, tolerance)
            bases = some_signs(rng, ql), some_signs(rng, qr)
            given = [each[name][i] for each in gradients]
            for t, p in enumerate(reference(given, bases, 3, nesterov)):
                error = np.abs(updates[t][name][i] - p).max() / np.linalg.norm(p)
                assert error < tolerance, (name, i, t)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("names", "nesterov"), [([*SHAPES][:-1], True), (["row"], False)]
)
def test_ten_steps(rng, names, nesterov):
    """Rounding, 1e-16, times 1000 for divisions by small entries and for QR."""
    assert_ten_steps(rng, names, jnp.float64, 1e-13, nesterov)


def test_ten_steps_in_float32(rng):
    """From 1e-7, times 100: the largest errors are rarer among fewer entries."""
    assert_ten_steps(rng, ["tall", "stack"], jnp.float32, 1e-5)


def test_the_bases_rest_between_refreshments(rng):
    """New at updates 0, 3 and 6, all their columns of length 1."""
    _, states = run(scale_by_soap(**OWN, frequency=3), draw_leaf(rng))
    for side in ("left_basis", "right_basis"):
        bases = [np.asarray(getattr(state, side)[0]) for state in states]
        assert not bases[0].any()
        for t, (old, new) in enumerate(itertools.pairwise(bases)):
            assert (old == new).all() == (t % 3 > 0)
            np.testing.assert_allclose(new.T @ new, np.eye(len(new)), atol=1e-6)


def operations(jaxpr, conditional=False):
    """The names of a program's primitives, and whether they are under a condition."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        yield name, conditional
        for value in jax.tree.leaves(tuple(equation.params.values())):
            if hasattr(value, "jaxpr"):
                yield from operations(value.jaxpr, conditional or name == "cond")


def test_decompositions_are_under_the_condition(rng):
    tx, (gradient,) = scale_by_soap(), draw_leaf(rng, count=1)
    program = jax.make_jaxpr(tx.update)(gradient, tx.init(gradient))
    found = set(operations(program.jaxpr))
    assert ("dot_general", False) in found
    for name in ("eigh", "qr", "sort"):
        assert (name, True) in found
        assert (name, False) not in found


def polar_updates(tx, gradients, orthogonalizer):
    polar = optax.stateless(lambda update, _: orthogonalize(update, orthogonalizer))
    return run(optax.chain(tx, polar), gradients)[0]


class TestWhatItReducesTo:
    """Cases in which there is a formula."""

    def test_the_first_update_is_momentums(self, rng):
        gradients = draw_leaf(rng, count=1)
        [update], _ = run(scale_by_soap(**OWN, frequency=3), gradients)
        # (1 - mu) (1 + mu) G, in float32.
        np.testing.assert_allclose(update, (1 - MU**2) * gradients[0], rtol=1e-6)

    @pytest.mark.usefixtures("x64")
    def test_a_constant_gradient_has_its_polar_factor(self, rng):
        """G' is the diagonal of singular values, and all of U' / sqrt(V) is one."""
        g = rng.normal(size=(6, 4))
        updates, _ = run(scale_by_soap(**OWN, frequency=3), [jnp.asarray(g)] * 5)
        for update in updates[1:]:
            factor = np.asarray(update) / np.linalg.norm(update) * 2  # of rank 4
            # 1e-16 beside the diagonal, divided by eps.
            np.testing.assert_allclose(factor, oracles.polar(g), atol=1e-7)

    def test_a_large_epsilon_makes_it_muon(self, rng):
        gradients = draw_leaf(rng)
        tx = scale_by_soap(**{**OWN, "eps": 1e8}, frequency=3)
        muon = scale_by_muon(MU, orthogonalizer=Svd(), scale=None)
        found = polar_updates(tx, gradients, Svd())
        for update, expected in zip(found, run(muon, gradients)[0], strict=True):
            # float32, and the condition of U.
            np.testing.assert_allclose(update, expected, atol=1e-5)

    @pytest.mark.usefixtures("x64")
    def test_it_turns_with_the_gradients(self, rng):
        """Of A^T G B it is A^T P B: qr(A^T L A A^T Q) = A^T qr(L Q)."""
        a, b = (np.linalg.qr(rng.normal(size=(5, 5)))[0] for _ in range(2))
        gradients = draw_leaf(rng, (5, 5), dtype=jnp.float64)
        tx = scale_by_soap(**OWN, frequency=2)
        updates, _ = run(tx, gradients)
        turned, _ = run(tx, [jnp.asarray(a.T @ g @ b) for g in gradients])
        for one, other in zip(updates, turned, strict=True):
            # As in ten steps, and eigenvectors of close eigenvalues.
            np.testing.assert_allclose(other, a.T @ one @ b, atol=1e-11)

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
    def test_one_sided_it_turns_on_the_shorter_side(self, rng, shape):
        short = np.linalg.qr(rng.normal(size=(4, 4)))[0]
        a, b = (short if n == 4 else np.eye(n) for n in shape)
        gradients = draw_leaf(rng, shape, dtype=jnp.float64)
        tx = scale_by_soap(**OWN, frequency=2, one_sided=True)
        updates, states = run(tx, gradients)
        turned, _ = run(tx, [jnp.asarray(a.T @ g @ b) for g in gradients])
        for one, other in zip(updates, turned, strict=True):
            np.testing.assert_allclose(other, a.T @ one @ b, atol=1e-11)
        sizes = {getattr(states[0], field).size for field in FIELDS}
        assert sizes == {24, 16, 1}

    def test_signs_of_eigenvectors_do_not_matter(self, rng):
        *gradients, last = draw_leaf(rng)
        tx = scale_by_soap(**OWN, frequency=3)
        state = run(tx, gradients)[1][-1]
        other = state.replace(
            left_basis=some_signs(rng, state.left_basis),
            right_basis=some_signs(rng, state.right_basis),
        )
        (one, _), (two, _) = tx.update(last, state), tx.update(last, other)
        np.testing.assert_array_equal(one, two)

    def test_one_decay_for_both_unless_told(self, rng):
        gradients = draw_leaf(rng)
        common = dict(momentum=MU, frequency=3, beta2=BETA2)
        for update, same in zip(
            run(scale_by_soap(**common), gradients)[0],
            run(scale_by_soap(**common, statistics_beta=BETA2), gradients)[0],
            strict=True,
        ):
            np.testing.assert_array_equal(update, same)

    def test_scheduled_momentum(self, rng):
        """Of mu = 0 from the third update on, no gradient before is left in it."""
        gradients = draw_leaf(rng)
        scheduled = scale_by_soap(
            **{**OWN, "momentum": lambda count: jnp.where(count < 2, MU, 0.0)},
            frequency=3,
        )
        without = scale_by_soap(**{**OWN, "momentum": 0.0}, frequency=3)
        pairs = [run(tx, gradients)[0] for tx in (scheduled, without)]
        for t, (one, other) in enumerate(zip(*pairs, strict=True)):
            assert np.allclose(one, other, rtol=1e-6) == (t >= 2)


class TestSides:
    """`max_dim`: what is not preconditioned has the identity for a basis."""

    def reduced(self, rng, shape, max_dim):
        gradients = draw_leaf(rng, shape)
        tx = scale_by_soap(**OWN, frequency=3, max_dim=max_dim)
        updates, states = run(tx, gradients)
        sizes = {field: getattr(states[-1], field).size for field in FIELDS}
        bases = (
            np.asarray(side[0], np.float64) if side.ndim else None
            for side in (states[1].left_basis, states[1].right_basis)
        )
        gradients = [np.asarray(g, np.float64) for g in gradients]
        expected = reference(gradients, tuple(bases), 3)
        for update, p in zip(updates, expected, strict=True):
            # As ten steps in float32.
            np.testing.assert_allclose(update, p, atol=1e-5 * np.linalg.norm(p))
        return sizes

    def test_one_side(self, rng):
        assert self.reduced(rng, (6, 4), 5) == {
            "second_moment": 24,
            "left": 1,
            "right": 16,
            "left_basis": 1,
            "right_basis": 16,
        }
        assert self.reduced(rng, (4, 6), 5)["left"] == 16

    def test_neither_side(self, rng):
        gradients = draw_leaf(rng)
        updates, states = run(scale_by_soap(**OWN, frequency=3, max_dim=3), gradients)
        for update, u in zip(updates, directions(gradients), strict=True):
            np.testing.assert_allclose(update, u, rtol=1e-5, atol=1e-7)
        assert {getattr(states[-1], field).shape for field in FIELDS} == {()}

    def test_empty_matrices(self):
        tree = {"a": jnp.ones((0, 3)), "b": jnp.ones((2, 0))}
        updates, states = run(scale_by_soap(), [tree, tree])
        assert types(updates[1]) == types(tree)
        assert types(states[2]) == types(states[0])


def test_gradients_unlike_the_state():
    tx = scale_by_soap()
    state = tx.init({"a": jnp.ones((2, 3))})
    for gradients in ({"b": jnp.ones((2, 3))}, {"a": jnp.ones((2, 4))}):
        with pytest.raises(ValueError, match="gradients unlike"):
            tx.update(gradients, state)
    with pytest.raises(ValueError, match="gradients unlike"):  # another max_dim
        scale_by_soap(max_dim=2).update({"a": jnp.ones((2, 3))}, state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, "momentum=1.0 is out of range"),
        ({"nesterov": 1}, "nesterov=1 is no bool"),
        ({"beta2": 1.0}, "beta2=1.0 is out of range"),
        ({"beta2": lambda t: 0.9}, "beta2=.* takes no schedule"),
        ({"statistics_beta": -0.1}, "statistics_beta=-0.1 is out of range"),
        ({"eps": -1e-8}, "eps=-1e-08 is out of range"),
        ({"frequency": 0}, "frequency=0 must be a positive int"),
        ({"frequency": 2.0}, r"frequency=2.0 must be a positive int\.$"),
        ({"max_dim": True}, "max_dim=True must be a positive int"),
        ({"one_sided": None}, "one_sided=None is no bool"),
        ({"momentum_dtype": "int8"}, "momentum_dtype='int8' cannot be computed in"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        scale_by_soap(**arguments)


def test_leaves_that_are_no_matrices():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"scale_by_soap takes matrices[\s\S]*bias"):
        scale_by_soap().init(params)


def test_injected_numbers(rng):
    """All that are not compiled in."""
    gradients = draw_leaf(rng)
    tx = optax.inject_hyperparams(scale_by_soap, static_args=("frequency", "max_dim"))(
        **OWN, frequency=3
    )
    plain, _ = run(scale_by_soap(**OWN, frequency=3), gradients)
    for one, other in zip(run(tx, gradients)[0], plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    with pytest.raises(ValueError, match=r"frequency=.* static_args"):
        optax.inject_hyperparams(scale_by_soap)(frequency=3).init(gradients[0])


def test_names():
    flat, _ = jax.tree_util.tree_flatten_with_path(
        scale_by_soap().init({"kernel": jnp.ones((2, 3))})
    )
    names = {f".{field}['kernel']" for field in ("momentum", *FIELDS)}
    assert {jax.tree_util.keystr(path) for path, _ in flat} == {".count", *names}
