"""QK-clip: which entries of which leaves, by rules and by descriptions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_muon import (
    QKLeaf,
    clip_qk,
    flax_qk_leaves,
    mla_qk_leaves,
    stacked,
)
from tests.qk_cases import (
    CONTENT,
    EXACT,
    HEAD_DIM,
    HEADS,
    RANK,
    ROTARY,
    TOKENS,
    VALUE,
    D,
    attention,
    gammas,
)
from tests.recipes import assert_identical


@pytest.mark.usefixtures("x64")
class TestLatentAttention:
    @staticmethod
    def params(rng, merged, bias):
        def layer(features):
            shapes = {"kernel": (RANK, HEADS, features), "bias": (HEADS, features)}
            leaves = {
                name: jnp.asarray(rng.normal(size=shape))
                for name, shape in shapes.items()
                if name == "kernel" or bias
            }
            if merged:
                return {k: v.reshape(*v.shape[:-2], -1) for k, v in leaves.items()}
            return leaves

        return {
            "q_b_proj": layer(CONTENT + ROTARY),
            "kv_b_proj": layer(CONTENT + VALUE),
            "kv_a_proj_with_mqa": {"kernel": jnp.ones((D, RANK + ROTARY))},
            "k_rope": {"kernel": jnp.ones((D, ROTARY))},
        }

    @staticmethod
    def logits(params, x):
        """Content and rotary products (rotations change no part of the argument)."""

        def heads(name):
            leaves = {k: np.asarray(v) for k, v in params[name].items()}
            out = x @ leaves["kernel"].reshape(RANK, -1)
            out = out + leaves.get("bias", np.zeros(1)).reshape(-1)
            return out.reshape(TOKENS, HEADS, -1)

        q, k = heads("q_b_proj"), heads("kv_b_proj")[..., :CONTENT]
        shared = x @ np.ones((RANK, ROTARY))
        content = np.einsum("ihf,jhf->hij", q[..., :CONTENT], k)
        return content + np.einsum("ihf,jf->hij", q[..., CONTENT:], shared)

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("merged", [False, True])
    def test_logits_shrink_by_gamma(self, rng, merged, bias):
        params, x = self.params(rng, merged, bias), rng.normal(size=(TOKENS, RANK))
        before = self.logits(params, x)
        largest = before.max((1, 2))
        tau = float(np.median(largest))
        rule = mla_qk_leaves(content=CONTENT, rotary=ROTARY, value=VALUE)
        tree, logits = {"layer": {"attn": params}}, {"layer": {"attn": largest}}
        clipped = clip_qk(tree, logits, tau=tau, rule=rule)["layer"]["attn"]
        gamma = gammas(largest, tau, HEADS)[:, None, None]
        # Sums of RANK and features products, of entries up to 10, round on both sides.
        np.testing.assert_allclose(self.logits(clipped, x), gamma * before, atol=1e-12)
        values = [
            tree["kv_b_proj"]["kernel"].reshape(RANK, HEADS, -1)[..., CONTENT:]
            for tree in (clipped, params)
        ]
        assert_identical(*values)
        for name in ("kv_a_proj_with_mqa", "k_rope"):
            assert_identical(clipped[name], params[name])

    def test_content_key_alone(self, rng):
        """`k_up` without values, beside a query without a latent of its own."""
        params = self.params(rng, False, True)
        fused = params.pop("kv_b_proj")
        params["k_up"] = {k: v[..., :CONTENT] for k, v in fused.items()}
        params["q_proj"] = params.pop("q_b_proj")
        rule = mla_qk_leaves(content=CONTENT, rotary=ROTARY, value=VALUE)
        clipped = clip_qk(params, jnp.full(HEADS, 400.0), rule=rule)
        for leaf, value in clipped["k_up"].items():
            np.testing.assert_allclose(value, 0.5 * params["k_up"][leaf], **EXACT)
        ratio = clipped["q_proj"]["bias"] / params["q_proj"]["bias"]
        np.testing.assert_allclose(ratio[:, :CONTENT], 0.5, **EXACT)
        np.testing.assert_allclose(ratio[:, CONTENT:], 0.25, **EXACT)


Q, K, V = 6, 2, 2  # heads of the fused leaves below
SHARE = Q // K


def per_group(q, k, v):
    """[..., key heads, query heads of a group + 1 + 1, head_dim]"""
    q = q.reshape(*q.shape[:-2], K, SHARE, HEAD_DIM)
    return np.concatenate([q, k[..., None, :], v[..., None, :]], axis=-2)


def flat(x, axes):
    return x.reshape(*x.shape[:-axes], -1)


FUSED = {
    "heads": (
        lambda q, k, v: np.concatenate([q, k, v], axis=-2),
        {"parts": (("query", Q), ("key", K), (None, V)), "along": -2},
    ),
    "heads merged with features": (
        lambda q, k, v: flat(np.concatenate([q, k, v], axis=-2), 2),
        {
            "parts": tuple(
                (role, n * HEAD_DIM)
                for role, n in (("query", Q), ("key", K), (None, V))
            ),
            "heads": -1,
            "head_width": HEAD_DIM,
        },
    ),
    "groups": (
        per_group,
        {"parts": (("query", SHARE), ("key", 1), (None, 1)), "heads": -3, "along": -2}
        | {"group": SHARE},
    ),
    "groups merged with parts": (
        lambda q, k, v: per_group(q, k, v).reshape(*q.shape[:-2], -1, HEAD_DIM),
        {
            "parts": (("query", SHARE), ("key", 1), (None, 1)),
            "heads": -2,
            "along": -2,
            "head_width": SHARE + 2,
            "group": SHARE,
        },
    ),
    "all merged": (
        lambda q, k, v: flat(per_group(q, k, v), 3),
        {
            "parts": tuple(
                (role, n * HEAD_DIM)
                for role, n in (("query", SHARE), ("key", 1), (None, 1))
            ),
            "heads": -1,
            "head_width": (SHARE + 2) * HEAD_DIM,
            "group": SHARE,
        },
    ),
}
EQUAL = {  # as many key heads as query heads
    "features": (
        lambda q, k, v: np.concatenate([q, k, v], axis=-1),
        {"parts": tuple((role, HEAD_DIM) for role in ("query", "key", None))},
    ),
    "an axis of three": (
        lambda q, k, v: np.stack([q, k, v], axis=-3),
        {"parts": (("query", 1), ("key", 1), (None, 1)), "along": -3},
    ),
    "an axis of three, merged heads": (
        lambda q, k, v: flat(np.stack([q, k, v], axis=-3), 2),
        {"parts": (("query", 1), ("key", 1), (None, 1)), "along": -2}
        | {"heads": -1, "head_width": HEAD_DIM},
    ),
}


@pytest.mark.usefixtures("x64")
class TestLeaves:
    @pytest.mark.parametrize("leaf", ["kernel", "bias"])
    @pytest.mark.parametrize("name", [*FUSED, *EQUAL])
    def test_fused(self, rng, name, leaf):
        """A fused leaf gets what its parts get apart."""
        fuse, fields = (FUSED | EQUAL)[name]
        params = attention(rng, Q, K if name in FUSED else Q)
        logits = jnp.asarray(rng.uniform(50, 400, Q))
        apart = clip_qk(params, logits)
        before, expected = (
            fuse(*(np.asarray(tree[n][leaf]) for n in ("query", "key", "value")))
            for tree in (params, apart)
        )

        def rule(path, leaf):
            return QKLeaf("", **fields)

        fused = clip_qk(jnp.asarray(before), logits, rule=rule)
        assert_identical(fused, jnp.asarray(expected))

    @pytest.mark.parametrize(
        ("axis", "heads"), [(0, (4, 4)), (1, (6, 2)), (-1, (6, 2))], ids=str
    )
    def test_scanned(self, rng, axis, heads):
        """Layers stacked along an axis get what each gets alone."""
        layers = [attention(rng, *heads) for _ in range(3)]
        logits = jnp.asarray(rng.uniform(50, 400, (3, heads[0])))
        alone = [clip_qk(p, s) for p, s in zip(layers, logits, strict=True)]
        together, expected = (
            {"layers": {"attn": jax.tree.map(lambda *x: jnp.stack(x, axis), *trees)}}
            for trees in (layers, alone)
        )
        rule = stacked("layers", axis, inner=flax_qk_leaves)
        found = clip_qk(together, {"layers": {"attn": logits}}, rule=rule)
        assert_identical(found, expected)

    def test_scans_of_scans(self, rng):
        """`max_logits` has the outer layers first, wherever their axes are."""
        layers = [[attention(rng) for _ in range(2)] for _ in range(3)]
        logits = jnp.asarray(rng.uniform(50, 400, (3, 2, 4)))

        def stack(trees):
            inner = [jax.tree.map(lambda *x: jnp.stack(x, 1), *row) for row in trees]
            return jax.tree.map(lambda *x: jnp.stack(x, 2), *inner)

        alone = [
            [clip_qk(p, s) for p, s in zip(row, values, strict=True)]
            for row, values in zip(layers, logits, strict=True)
        ]
        rule = stacked("outer", 2, stacked("inner", 1, flax_qk_leaves))
        found = clip_qk(
            {"outer": {"inner": stack(layers)}},
            {"outer": {"inner": {"max_logits": logits}}},
            rule=rule,
        )
        assert_identical(found, {"outer": {"inner": stack(alone)}})

    def test_mla_scanned(self, rng):
        params = TestLatentAttention.params(rng, True, True)
        rule = mla_qk_leaves(content=CONTENT, rotary=ROTARY, value=VALUE)
        logits = jnp.asarray(rng.uniform(50, 400, (2, HEADS)))
        alone = [clip_qk(params, s, rule=rule) for s in logits]
        together, expected = (
            {"layers": jax.tree.map(lambda *x: jnp.stack(x), *trees)}
            for trees in ([params, params], alone)
        )
        rule = stacked("layers", inner=rule)
        assert_identical(clip_qk(together, {"layers": logits}, rule=rule), expected)

    @pytest.mark.parametrize("heads", [None, -2], ids=["no axis", "an axis of one"])
    def test_one_head(self, rng, heads):
        """A matrix that is one head, scaled as a whole."""
        w = jnp.asarray(rng.normal(size=(D, HEAD_DIM)))
        leaf = w if heads is None else w[:, None]

        def rule(path, _):
            return QKLeaf("", path[0].key, heads=heads)

        params = {"query": leaf, "key": leaf}
        clipped = clip_qk(params, jnp.array([400.0]), rule=rule, alpha=0.25)
        for name, power in (("query", 0.25), ("key", 0.75)):
            expected = 0.25**power * params[name]
            np.testing.assert_allclose(clipped[name], expected, **EXACT)

    def test_multi_query_key_without_an_axis_of_heads(self, rng):
        params = attention(rng, 4, 1, bias=False)
        logits = jnp.array([10.0, 50.0, 400.0, 200.0])
        expected = clip_qk(params, logits)
        bare = {"query": params["query"], "key": params["key"]["kernel"][:, 0]}

        def rule(path, leaf):
            return QKLeaf("", path[0].key, heads=-2 if len(leaf.shape) == 3 else None)

        found = clip_qk(bare, logits, rule=rule)
        assert_identical(found["key"], expected["key"]["kernel"][:, 0])
        assert_identical(found["query"], expected["query"])
