"""Attention that tells its largest logits, alone and beside Flax's functions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_muon import dot_product_attention_with_max_logits as attend
from optax_muon import (
    sowing_dot_product_attention,
)
from tests.layouts import mesh_of
from tests.qk_cases import attention_reference

BATCH, QUERIES, KEYS, HEADS, DIM = 3, 5, 7, 6, 8


def arrays(rng, key_heads=HEADS, dtype=jnp.float32, batch=(BATCH,)):
    shapes = (
        (*batch, QUERIES, HEADS, DIM),
        (*batch, KEYS, key_heads, DIM),
        (*batch, KEYS, key_heads, DIM),
    )
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


class TestFunction:
    @pytest.mark.parametrize(
        ("batch", "key_heads"), [((), HEADS), ((3,), 2), ((2, 3), 1)], ids=str
    )
    def test_output_and_largest_logits(self, rng, batch, key_heads):
        qkv = arrays(rng, key_heads, batch=batch)
        mask = rng.random((*batch, HEADS, QUERIES, KEYS)) < 0.5
        mask[..., 0] = True  # no row without a key
        bias = rng.normal(size=(HEADS, QUERIES, KEYS))
        causal = np.tri(QUERIES, KEYS, dtype=bool)
        for arguments, (more, seen) in {
            "plain": ({}, (0.0, True)),
            "bias": ({"bias": jnp.asarray(bias, jnp.float32)}, (bias, True)),
            "mask": ({"mask": jnp.asarray(mask)}, (0.0, mask)),
            "mask of floats": ({"mask": jnp.asarray(mask, "float32")}, (0.0, mask)),
            "causal": ({"is_causal": True}, (0.0, causal)),
            "both": ({"is_causal": True, "mask": mask}, (0.0, mask & causal)),
        }.values():
            output, largest = attend(*qkv, **arguments)
            expected, logits = attention_reference(*qkv, more, seen)
            # float32, of sums of a few products of entries up to 4.
            np.testing.assert_allclose(output, expected, atol=5e-6)
            np.testing.assert_allclose(largest, logits, rtol=1e-6, atol=1e-6)

    def test_signed_and_scaled(self):
        """Not the largest magnitude; -8 is below 2, and a head may stay negative."""
        q = jnp.array([[[1.0], [1.0]], [[2.0], [3.0]]])
        k = jnp.array([[[-4.0], [-4.0]], [[1.0], [-5.0]]])
        _, largest = attend(q, k, k, scale=10.0)
        np.testing.assert_array_equal(largest, [20.0, -40.0])

    def test_what_is_masked_does_not_count(self, rng):
        q, k, v = arrays(rng)
        k = k.at[:, 2].multiply(1e4)
        seen = np.arange(KEYS) != 2
        output, largest = attend(q, k, v, mask=jnp.asarray(seen))
        expected, logits = attention_reference(q, k, v, mask=seen)
        np.testing.assert_allclose(output, expected, atol=5e-6)
        np.testing.assert_allclose(largest, logits, rtol=1e-6)

    def test_all_masked(self, rng):
        """No NaN: softmax is then even, as in Flax, and the largest logit -inf."""
        q, k, v = arrays(rng)
        mask = np.ones((HEADS, 1, 1), bool)
        mask[1] = False
        output, largest = attend(q, k, v, mask=jnp.asarray(mask))
        assert largest[1] == -jnp.inf
        assert np.isfinite(largest[jnp.array([0, 2, 3, 4, 5])]).all()
        mean = jnp.broadcast_to(v[:, :, 1].mean(1)[:, None], output[:, :, 1].shape)
        np.testing.assert_allclose(output[:, :, 1], mean, atol=1e-6)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
    def test_dtypes(self, rng, dtype, x64):
        qkv = arrays(rng, 2, dtype)
        output, largest = attend(*qkv)
        expected, logits = attention_reference(*qkv)
        assert output.dtype == dtype
        assert largest.dtype == ("float64" if dtype == "float64" else "float32")
        # The logits are not rounded to 16 bits; softmax and output are, once each.
        rtol = 1e-13 if dtype == "float64" else 1e-6
        np.testing.assert_allclose(largest, logits, rtol=rtol)
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(output, expected, atol=8 * eps)

    def test_gradients(self, rng):
        """As of the plain attention; none through the largest logits."""
        qkv = arrays(rng)

        def ours(*qkv):
            output, largest = attend(*qkv)
            return (output**2).sum() + 3 * largest.sum()

        def plain(*qkv):
            return (nn.dot_product_attention(*qkv) ** 2).sum()

        for a, b in zip(
            jax.grad(ours, (0, 1, 2))(*qkv),
            jax.grad(plain, (0, 1, 2))(*qkv),
            strict=True,
        ):
            # float32 sums of up to 60 products.
            np.testing.assert_allclose(a, b, atol=1e-5)

    def test_queries_and_keys_are_multiplied_once(self, rng):
        q, k, v = arrays(rng)
        program = jax.jit(attend).lower(q, k, v).as_text()
        assert program.count("stablehlo.dot_general") == 2

    def test_over_devices(self, rng):
        """Of the whole batch, which is sharded, and of heads where these are."""
        mesh = mesh_of("fsdp4_tensor2", AxisType.Auto)
        qkv = arrays(rng, 2, batch=(8,))
        spec = NamedSharding(mesh, P("fsdp", None, "tensor"))
        output, largest = jax.jit(attend)(*jax.device_put(qkv, spec))
        expected, logits = attention_reference(*qkv)
        np.testing.assert_allclose(output, expected, atol=5e-6)
        np.testing.assert_allclose(largest, logits, rtol=1e-6)

    def test_errors(self, rng):
        q, k, v = arrays(rng, 2)
        with pytest.raises(ValueError, match="6 heads, key 4 and value 4"):
            attend(q, *(x[..., [0, 1, 1, 0], :] for x in (k, v)))
        with pytest.raises(ValueError, match="6 heads, key 2 and value 1"):
            attend(q, k, v[..., :1, :])
        with pytest.raises(ValueError, match="needs dropout_rng"):
            attend(q, k, v, dropout_rate=0.5)
        with pytest.raises(ValueError, match="not supported"):
            sowing_dot_product_attention(q, k, v, qk_attn_weights_einsum=jnp.einsum)


class TestLikeFlax:
    """The same outputs as Flax's own attention functions."""

    @pytest.mark.parametrize(
        "theirs", [nn.dot_product_attention, nnx.dot_product_attention]
    )
    @pytest.mark.parametrize("broadcast", [True, False])
    def test_dropout(self, rng, theirs, broadcast):
        """With the key, also the same pairs are dropped."""
        arguments = {
            "dropout_rng": jax.random.key(1),
            "dropout_rate": 0.3,
            "broadcast_dropout": broadcast,
        }
        qkv = arrays(rng)
        for deterministic in (True, False):
            found, expected = (
                f(*qkv, deterministic=deterministic, **arguments)
                for f in (sowing_dot_product_attention, theirs)
            )
            np.testing.assert_allclose(found, expected, atol=5e-6)  # float32

    @pytest.mark.parametrize(
        "theirs", [nn.dot_product_attention, nnx.dot_product_attention]
    )
    @pytest.mark.parametrize("dtype", [None, "bfloat16"])
    def test_dtype(self, rng, theirs, dtype):
        q, k, v = arrays(rng)
        found, expected = (
            f(q.astype("bfloat16"), k, v, dtype=dtype)
            for f in (sowing_dot_product_attention, theirs)
        )
        assert found.dtype == expected.dtype
        eps = float(jnp.finfo(found.dtype).eps)
        # Theirs rounds queries, logits and softmax as well, of size up to 4.
        np.testing.assert_allclose(
            np.asarray(found, float), np.asarray(expected, float), atol=16 * eps + 5e-6
        )
