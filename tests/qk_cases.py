"""Parameters of attentions, and gamma as the paper has it, to test QK-clip with."""

import jax.numpy as jnp
import numpy as np

# The sizes of an attention all differ, so that no mix-up of axes can hide; then MLA's.
D, HEAD_DIM, TOKENS = 7, 5, 8
CONTENT, ROTARY, VALUE, RANK, HEADS = 4, 2, 3, 6, 5
EPS = float(np.finfo(np.float64).eps)
# Two roots, or a power and its complement, and three products: some roundings of gamma.
EXACT = {"rtol": 20 * EPS, "atol": 0}


def gammas(logits, tau, key_heads):
    """Algorithm 1 of arXiv 2507.20534, each query head; a group shares the least."""
    largest = logits.reshape(key_heads, -1).max(1)
    gamma = np.where(largest > tau, tau / largest, 1)
    return np.repeat(gamma, len(logits) // key_heads)


def attention(rng, heads=4, key_heads=4, bias=True, dtype=None):
    """Flax's parameters of an attention, query and value as well."""

    def layer(heads):
        names = {"kernel": (D, heads, HEAD_DIM), "bias": (heads, HEAD_DIM)}
        if not bias:
            del names["bias"]
        return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in names.items()}

    return {"query": layer(heads), "key": layer(key_heads), "value": layer(key_heads)}


def blocks(rng, dtype=None):
    """Two layers, an embedding and an MLP."""
    return {
        "embed": {"embedding": jnp.asarray(rng.normal(size=(9, D)), dtype)},
        "blocks": {
            str(i): {
                "attn": attention(rng, dtype=dtype),
                "up": {"kernel": jnp.asarray(rng.normal(size=(D, 8)), dtype)},
            }
            for i in range(2)
        },
    }


def logits_of_blocks(rng):
    return {
        "blocks": {
            str(i): {"attn": {"max_logits": jnp.asarray(rng.uniform(50, 400, 4))}}
            for i in range(2)
        }
    }


def attention_reference(q, k, v, bias=0.0, mask=True, scale=None):
    """Output and largest logits in float64; pairs that are masked count as -inf."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[-2] // x.shape[-2], axis=-2) for x in (k, v))
    scale = 1 / np.sqrt(q.shape[-1]) if scale is None else scale
    logits = scale * np.einsum("...qhd,...khd->...hqk", q, k) + bias
    logits = np.where(mask, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    over = tuple(a for a in range(logits.ndim) if a != logits.ndim - 3)
    return np.einsum("...hqk,...khd->...qhd", weights, v), logits.max(over)
