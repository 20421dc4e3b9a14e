"""Attention that also tells its largest logits, for `qk_clip`."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_muon._casts import at_least_float32


def dot_product_attention_with_max_logits(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    broadcast_dropout: bool = True,
    precision: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention, and the largest logit of each query head, from one query key^T.

      L = scale query key^T + bias,    output = dropout(softmax(L)) value
      max_logits[head] = max of L[..., head, i, j] over batch and unmasked i, j

    L and its softmax are at least float32, and L is held whole: no fused kernel of JAX
    tells its maximum. max_logits is what `qk_clip` takes: signed, what softmax sees,
    before dropout. No gradient flows through it. Under jit, with the batch sharded over
    devices, it is the maximum over all of them; inside your own `jax.shard_map`, take
    `jax.lax.pmax`.

    Args:
      query: [..., query_length, heads, head_dim].
      key: [..., key_length, key_heads, head_dim]; key_heads divides heads, and
        neighbouring query heads share a key head.
      value: [..., key_length, key_heads, value_dim].
      bias: added to the logits; broadcast to [..., heads, query_length, key_length].
      mask: likewise; pairs where it is False or 0 are left out.
      is_causal: leave out pairs with j > i, too.
      scale: None is 1 / sqrt(head_dim).
      dropout_rng, dropout_rate: drop that share of the softmax; 0 needs no key.
      broadcast_dropout: drop the same pairs in all heads and batches.
      precision: of both products, as `jax.lax.Precision`.

    Returns:
      output [..., query_length, heads, value_dim] in value's dtype, and max_logits
      [heads], -inf for a head whose pairs are all masked.

    Raises:
      ValueError: heads that do not fit, or dropout without a key.

    >>> q = jnp.array([[[3.0, 0.0]], [[0.0, -2.0]]])  # [length, heads, head_dim]
    >>> output, max_logits = dot_product_attention_with_max_logits(q, q, q, scale=1.0)
    >>> print(max_logits)
    [9.]
    """
    if query.shape[-2] % key.shape[-2] or value.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"query has {query.shape[-2]} heads, key {key.shape[-2]} and value "
            f"{value.shape[-2]}; key and value need equally many, a divisor of the "
            "query's."
        )
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = scale * _logits(query, key, precision)
    if bias is not None:
        logits += bias
    seen = _seen(logits, mask, is_causal)
    over = tuple(axis for axis in range(logits.ndim) if axis != logits.ndim - 3)
    largest = jnp.max(jax.lax.stop_gradient(logits), over, initial=-jnp.inf, where=seen)
    if seen is not True:  # finite, so that a row without pairs is no NaN
        logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits)
    if dropout_rate:
        weights = _dropped(weights, dropout_rng, dropout_rate, broadcast_dropout)
    return _averages(weights.astype(value.dtype), value, precision), largest


def sowing_dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    is_causal: bool = False,
    qk_attn_weights_einsum: Any = None,
    attn_weights_value_einsum: Any = None,
) -> jax.Array:
    """The attention_fn of Flax's attentions that records max_logits for `qk_clip`.

    For `flax.linen.MultiHeadDotProductAttention` and `flax.nnx.MultiHeadAttention`.
    Called with sow_weights=True, these pass themselves as `module`, and the largest
    logits are sown there as the intermediate "max_logits", the maximum over all calls
    of the module. They come out of

      _, state = model.apply(variables, x, mutable=["intermediates"])           # Linen
      _, max_logits = nnx.capture(model, nnx.Intermediate)(x)                   # NNX

    and go, `state["intermediates"]` or `max_logits`, to `qk_clip` as they are, if
    nothing else is sown. `nn.scan` needs "intermediates": 0 in variable_axes. NNX
    outside `nnx.capture` would keep the maximum of all steps, and warns.

    Args:
      query, key, value, bias, mask, broadcast_dropout, dropout_rng, dropout_rate,
        precision, is_causal: as in `dot_product_attention_with_max_logits`.
      deterministic: no dropout.
      dtype: of the computation; None is the one that query, key and value promote to.
      module: the module that sows, or None, which records nothing.
      qk_attn_weights_einsum, attn_weights_value_einsum: refused; Linen has them for
        quantization.

    Returns:
      As Flax's own, [..., query_length, heads, value_dim].

    Raises:
      ValueError: einsums, heads that do not fit, or dropout without a key.

    >>> q = jnp.ones((2, 5, 4, 8))
    >>> sowing_dot_product_attention(q, q, q).shape
    (2, 5, 4, 8)
    """
    if qk_attn_weights_einsum or attn_weights_value_einsum:
        raise ValueError(
            "qk_attn_weights_einsum and attn_weights_value_einsum are not supported; "
            "leave them None, or write an attention_fn that sows 'max_logits' itself."
        )
    dtype = jnp.result_type(query, key, value) if dtype is None else dtype
    output, max_logits = dot_product_attention_with_max_logits(
        query.astype(dtype),
        key.astype(dtype),
        value.astype(dtype),
        bias=bias,
        mask=mask,
        is_causal=is_causal,
        dropout_rng=dropout_rng,
        dropout_rate=0.0 if deterministic else dropout_rate,
        broadcast_dropout=broadcast_dropout,
        precision=precision,
    )
    if module is not None:
        # A name, which both libraries know, and not a type, so that Flax is not needed.
        module.sow(
            "intermediates",
            "max_logits",
            max_logits,
            reduce_fn=jnp.maximum,
            init_fn=lambda: -jnp.inf,
        )
    return output


def _seen(
    logits: Float[Array, "*batch h q k"], mask: jax.Array | None, is_causal: bool
) -> jax.Array | bool:
    """Which pairs take part: True, or something that broadcasts to the logits."""
    seen = True if mask is None else jnp.asarray(mask) != 0
    queries, keys = logits.shape[-2:]
    return seen & jnp.tri(queries, keys, dtype=bool) if is_causal else seen


def _dropped(
    weights: Float[Array, "*batch h q k"],
    key: jax.Array | None,
    rate: float,
    broadcast: bool,
) -> Float[Array, "*batch h q k"]:
    """Each weight 0 with probability `rate`, else as much larger."""
    if key is None:
        raise ValueError(f"dropout_rate={rate} needs dropout_rng, a key of jax.random.")
    shape = weights.shape[-2:] if broadcast else weights.shape
    kept = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(kept, weights / (1.0 - rate), 0)


def _logits(
    query: Float[Array, "*batch q h d"],
    key: Float[Array, "*batch k g d"],
    precision: Any,
) -> Float[Array, "*batch h q k"]:
    """query key^T, accumulated and kept in at least float32."""
    product = partial(
        jnp.einsum,
        precision=precision,
        preferred_element_type=at_least_float32(jnp.result_type(query, key)),
    )
    if query.shape[-2] == key.shape[-2]:
        return product("...qhd,...khd->...hqk", query, key)
    logits = product("...qgrd,...kgd->...grqk", _grouped(query, key, -2), key)
    return logits.reshape(*logits.shape[:-4], query.shape[-2], *logits.shape[-2:])


def _averages(
    weights: Float[Array, "*batch h q k"],
    value: Float[Array, "*batch k g d"],
    precision: Any,
) -> Float[Array, "*batch q h d"]:
    """Of the values, by the weights."""
    product = partial(jnp.einsum, precision=precision)
    heads = weights.shape[-3]
    if heads == value.shape[-2]:
        return product("...hqk,...khd->...qhd", weights, value)
    averages = product("...grqk,...kgd->...qgrd", _grouped(weights, value, -3), value)
    return averages.reshape(*averages.shape[:-3], heads, averages.shape[-1])


def _grouped(x: jax.Array, shared: jax.Array, axis: int) -> jax.Array:
    """`x`, its heads along `axis` as [key_heads, heads that share one]."""
    axis += x.ndim
    return x.reshape(*x.shape[:axis], shared.shape[-2], -1, *x.shape[axis + 1 :])
