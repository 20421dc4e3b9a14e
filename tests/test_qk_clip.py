"""QK-clip: gamma, dtypes, and the place in an optimizer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_muon import (
    clip_qk,
    muon,
    qk_clip,
)
from tests.layouts import mesh_of
from tests.qk_cases import (
    EPS,
    EXACT,
    HEAD_DIM,
    TOKENS,
    D,
    attention,
    blocks,
    gammas,
    logits_of_blocks,
)
from tests.recipes import assert_identical, types


def logits_of(params, x):
    """[heads, tokens, tokens] in float64; neighbouring query heads share a key head."""
    q, k = (
        np.einsum("td,dhf->htf", x, np.asarray(params[name]["kernel"], np.float64))
        + np.asarray(params[name].get("bias", 0.0), np.float64)[..., None, :]
        for name in ("query", "key")
    )
    k = np.repeat(k, len(q) // len(k), axis=0)
    return q @ np.swapaxes(k, 1, 2) / np.sqrt(HEAD_DIM)


def update(tx, params, updates, max_logits):
    """The parameters after a step of `tx`."""
    updates, _ = tx.update(updates, tx.init(params), params, max_logits=max_logits)
    return optax.apply_updates(params, updates)


@pytest.mark.usefixtures("x64")
class TestGamma:
    @pytest.mark.parametrize(
        ("heads", "key_heads", "alpha"),
        [(4, 4, 0.5), (6, 3, 0.5), (6, 3, 0.3), (6, 1, 1.0), (4, 4, 0.0), (1, 1, 0.5)],
        ids=str,
    )
    def test_logits_shrink_by_gamma(self, rng, heads, key_heads, alpha):
        """Each logit, kernels and biases together; the largest of a group gets tau."""
        params, x = attention(rng, heads, key_heads), rng.normal(size=(TOKENS, D))
        before = logits_of(params, x)
        largest = before.max((1, 2))
        tau = float(np.median(largest)) if heads > 1 else largest[0] / 3
        gamma = gammas(largest, tau, key_heads)
        clipped = clip_qk(params, largest, tau=tau, alpha=alpha)
        after = logits_of(clipped, x)
        # Sums of D and HEAD_DIM products, of entries up to 10, round on both sides.
        np.testing.assert_allclose(after, gamma[:, None, None] * before, atol=1e-12)
        grouped = after.max((1, 2)).reshape(key_heads, -1).max(1)
        expected = np.minimum(largest.reshape(key_heads, -1).max(1), tau)
        np.testing.assert_allclose(grouped, expected, rtol=1e-13)
        assert (gamma < 1).any()
        for name, power in (("query", alpha), ("key", 1 - alpha)):
            each = gamma[:: 1 if name == "query" else heads // key_heads, None] ** power
            for leaf, value in clipped[name].items():
                np.testing.assert_allclose(value, each * params[name][leaf], **EXACT)
        assert_identical(clipped["value"], params["value"])

    def test_the_step_is_clipped_with_its_decay(self, rng):
        """W <- gamma (W + U), of which the chain gives the difference from W."""
        params, step = attention(rng), attention(rng)
        largest = np.array([50.0, 200.0, 400.0, 100.0])
        new = update(qk_clip(100.0), params, step, jnp.asarray(largest))
        whole = clip_qk(optax.apply_updates(params, step), largest)
        for name in ("query", "key", "value"):
            for leaf, value in new[name].items():
                # W + (U + (gamma - 1)(W + U)), of entries up to 10, cancels.
                np.testing.assert_allclose(value, whole[name][leaf], atol=100 * EPS)

    @pytest.mark.parametrize(
        "value", [99.0, 100.0, 0.0, -5e3, np.nan, np.inf, -np.inf], ids=str
    )
    def test_heads_within_tau_keep_every_bit(self, rng, value):
        params, step = attention(rng), attention(rng)
        signed_zero = step["key"]["kernel"].at[0, 0, 0].set(-0.0)
        step["key"]["kernel"] = signed_zero
        logits = jnp.array([value, 300.0, value, value])
        updates, _ = qk_clip().update(step, (), params, max_logits=logits)
        clipped = clip_qk(params, logits)
        others = np.array([0, 2, 3])
        for name in ("query", "key"):
            for leaf in ("kernel", "bias"):
                for new, old in ((updates, step), (clipped, params)):
                    new, old = new[name][leaf], old[name][leaf]
                    assert_identical(new[..., others, :], old[..., others, :])
                    assert np.isfinite(new).all()
                    assert not np.allclose(new[..., 1, :], old[..., 1, :])

    def test_nan_in_a_group_leaves_it_to_the_others(self, rng):
        params = attention(rng, 4, 2)
        clipped = clip_qk(params, jnp.array([np.nan, 400.0, 10.0, np.nan]))
        ratio = clipped["query"]["kernel"][0, :, 0] / params["query"]["kernel"][0, :, 0]
        np.testing.assert_allclose(ratio, [0.5, 0.5, 1, 1], **EXACT)

    def test_arrays_and_schedules(self, rng):
        params = attention(rng)
        zeros, logits = optax.tree.zeros_like(params), jnp.full(4, 400.0)
        tx = qk_clip(lambda count: 100.0 / (count + 1), alpha=jnp.float64(0.5))
        state = tx.init(params)
        for step in range(3):
            updates, state = tx.update(zeros, state, params, max_logits=logits)
            fixed = qk_clip(jnp.float64(100.0 / (step + 1)))
            expected, _ = fixed.update(zeros, (), params, max_logits=logits)
            assert_identical(updates, expected)
        assert state.count == 3
        assert fixed.init(params) == optax.EmptyState()


class TestDtypes:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
    def test_products_are_rounded_once(self, rng, dtype):
        params = attention(rng, dtype=dtype)
        largest = np.array([50.0, 300.0, 170.0, 1e4], np.float32)
        clipped = clip_qk(params, largest)
        factor = np.minimum(1, 100 / largest) ** np.float32(0.5)
        for name in ("query", "key"):
            for leaf, value in params[name].items():
                product = factor[:, None] * np.asarray(value, np.float32)
                assert_identical(clipped[name][leaf], jnp.asarray(product, dtype))

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
    def test_updates_keep_their_dtype(self, rng, dtype):
        params, step = attention(rng, dtype=dtype), attention(rng, dtype=dtype)
        largest = np.array([50.0, 300.0, 170.0, 1e4])
        updates, _ = qk_clip().update(step, (), params, max_logits=largest)
        factor = np.minimum(1, 100 / largest) ** 0.5
        eps = float(jnp.finfo(dtype).eps)
        for name in ("query", "key"):
            for leaf, value in updates[name].items():
                assert value.dtype == dtype
                w, u = (np.asarray(t[name][leaf], float) for t in (params, step))
                expected = factor[:, None] * (w + u) - w
                # One rounding to the dtype, beside float32's of entries up to 10.
                bound = eps / 2 * np.abs(expected) + 1e-5
                assert (np.abs(np.asarray(value, float) - expected) <= bound).all()


def test_updates_unlike_the_parameters(rng):
    params = attention(rng)
    with pytest.raises(ValueError, match="gradients unlike"):
        qk_clip().update({"a": 1.0}, (), params, max_logits=jnp.ones(4))


# Compiles fast, and decays.
PLAIN = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))


class TestInOptimizers:
    """Last in a chain, and in optax's wrappers."""

    @pytest.fixture
    def case(self, rng):
        return blocks(rng), blocks(rng), logits_of_blocks(rng)

    @staticmethod
    def step(tx, case):
        params, gradients, logits = case
        tx = optax.with_extra_args_support(tx)
        state = tx.init(params)
        updates, _ = jax.jit(tx.update)(gradients, state, params, max_logits=logits)
        return optax.apply_updates(params, updates)

    def assert_clipped(self, found, case, optimizer=PLAIN):
        """`found` is a step of `optimizer`, clipped, and not that step itself."""
        step = self.step(optimizer, case)
        expected = clip_qk(step, case[2])
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            # Some float32 roundings, in programs fused otherwise, of entries up to 10.
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
        kernels = [t["blocks"]["1"]["attn"]["key"]["kernel"] for t in (found, step)]
        assert np.abs(kernels[0] - kernels[1]).max() > 0.1

    def test_after_muon(self, case):
        optimizer = muon(0.1, weight_decay=0.1, orthogonalizer=jnp.sign)
        new = self.step(optax.chain(optimizer, qk_clip()), case)
        self.assert_clipped(new, case, optimizer)

    @pytest.mark.parametrize("wrapper", ["masked", "partition", "inject", "if_finite"])
    def test_wrapped(self, case, wrapper):
        def is_attention(tree):
            return jax.tree_util.tree_map_with_path(
                lambda path, _: "attn" in jax.tree_util.keystr(path), tree
            )

        def labels(tree):
            return jax.tree.map(lambda a: "a" if a else "b", is_attention(tree))

        parts = {"a": qk_clip(), "b": optax.identity()}
        clip = {
            "masked": lambda: optax.masked(qk_clip(), is_attention),
            "partition": lambda: optax.partition(parts, labels),
            "inject": lambda: optax.inject_hyperparams(qk_clip)(tau=100.0),
            "if_finite": lambda: optax.apply_if_finite(qk_clip(), 3),
        }[wrapper]()
        self.assert_clipped(self.step(optax.chain(PLAIN, clip), case), case)

    def test_a_masked_key_is_an_error(self, case):
        def no_keys(tree):
            return jax.tree_util.tree_map_with_path(
                lambda path, _: "key']" not in jax.tree_util.keystr(path), tree
            )

        with pytest.raises(ValueError, match="leaves of query and of key, unmasked"):
            optax.masked(qk_clip(), no_keys).init(case[0])

    def test_multi_steps_with_the_maximum_so_far(self, case):
        params, gradients, logits = case
        tx = optax.MultiSteps(optax.chain(PLAIN, qk_clip()), every_k_schedule=2)
        state, new = tx.init(params), params
        parts = [jax.tree.map(lambda s, x=x: x * s, logits) for x in (1.0, 0.5)]
        so_far = parts[0]
        for part in parts:
            so_far = jax.tree.map(jnp.maximum, so_far, part)
            updates, state = tx.update(gradients, state, new, max_logits=so_far)
            new = optax.apply_updates(new, updates)
        self.assert_clipped(new, case)

    def test_no_second_compilation(self, case):
        params, gradients, logits = case
        tx = optax.chain(PLAIN, qk_clip(optax.linear_schedule(100.0, 50.0, 4)))
        traced = []

        @jax.jit
        def change(gradients, state, params, max_logits):
            traced.append(1)
            return tx.update(gradients, state, params, max_logits=max_logits)

        state = tx.init(params)
        updates, new = change(gradients, state, params, logits)
        assert types(new) == types(state)
        assert types(updates) == types(params)
        change(gradients, new, params, logits)
        assert len(traced) == 1

    def test_numpy_arrays(self, case):
        params, gradients, logits = case
        expected, _ = qk_clip().update(gradients, (), params, max_logits=logits)
        found, _ = qk_clip().update(
            *jax.tree.map(np.asarray, (gradients, (), params)),
            max_logits=jax.tree.map(np.asarray, logits),
        )
        assert_identical(found, expected)
        assert_identical(
            clip_qk(*jax.tree.map(np.asarray, (params, logits))),
            clip_qk(params, logits),
        )

    def test_no_attention_and_no_logits(self):
        params = {"up": {"kernel": jnp.ones((2, 3))}}
        updates, _ = qk_clip().update(params, (), params, max_logits={})
        assert_identical(updates, params)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spread_logits", [False, True], ids=["copies", "by head"])
def test_sharded(rng, kind, spread_logits):
    """Eight devices: the same numbers, where they were, and nothing is moved."""
    mesh = mesh_of("fsdp4_tensor2", kind)
    params = {
        "query": {"kernel": jnp.asarray(rng.normal(size=(8, 4, 6)), jnp.float32)},
        "key": {"kernel": jnp.asarray(rng.normal(size=(8, 2, 6)), jnp.float32)},
    }
    largest = jnp.array([50.0, 400.0, 60.0, 70.0])
    expected, _ = qk_clip().update(params, (), params, max_logits=largest)
    where = NamedSharding(mesh, P("fsdp", "tensor"))
    there = jax.device_put(params, where)
    spec = P("tensor") if spread_logits else P()
    logits = jax.device_put(largest, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        change = jax.jit(lambda u, p, s: qk_clip().update(u, (), p, max_logits=s)[0])
        program = change.lower(there, there, logits).compile()
        results = [program(there, there, logits)]
        results.append(qk_clip().update(there, (), there, max_logits=logits)[0])
    for found in results:
        for name in ("query", "key"):
            leaf = found[name]["kernel"]
            assert leaf.sharding.is_equivalent_to(where, 3)
            # float32, by programs that are fused otherwise.
            np.testing.assert_allclose(leaf, expected[name]["kernel"], rtol=1e-6)
    collectives = re.findall(r"all-\w+|collective-\w+", program.as_text())
    assert spread_logits or not collectives
