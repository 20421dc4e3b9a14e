"""Llama-like models whose parameters carry logical names of their axes.

In Linen and NNX, with grouped queries, gate and up in one kernel, and experts. All
sizes differ, and so do the vocabularies: T5X's in Linen, MaxText's in NNX.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

WIDTH, HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 10, 4, 2, 6, 14
LAYERS, EXPERTS, VOCABULARY, TIME = 3, 5, 11, 7

KERNEL, ZEROS = nn.initializers.lecun_normal(), nn.initializers.zeros


class LinenLayer(nn.Module):
    """Attention with biases, and experts beside a gated layer that all tokens take."""

    @nn.compact
    def __call__(self, x):
        x = x + self.attention(Norm(name="norm")(x))
        fused = self.named("wi", KERNEL, "embed mlp_activations mlp", WIDTH, 2, HIDDEN)
        gate, up = jnp.moveaxis(jnp.einsum("btd,dah->btah", x, fused), 2, 0)
        down = self.named("wo", KERNEL, "mlp embed", HIDDEN, WIDTH)
        return x + (nn.silu(gate) * up) @ down + self.experts(x)

    def named(self, name, init, names, *shape):
        boxed = nn.with_logical_partitioning(init, tuple(names.split()))
        return self.param(name, boxed, shape)

    def attention(self, x):
        query = self.project(x, "query", HEADS, "heads", "kv")
        key = self.project(x, "key", KV_HEADS, "kv_heads", "head_dim")
        value = self.project(x, "value", KV_HEADS, "kv_heads", "head_dim")
        x = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        out = self.named("out", KERNEL, "heads kv embed", HEADS, HEAD_DIM, WIDTH)
        return jnp.einsum("bthk,hkd->btd", x, out)

    def project(self, x, name, heads, *names):
        kernel = nn.with_logical_partitioning(KERNEL, ("embed", *names))
        bias = nn.with_logical_partitioning(ZEROS, names)
        shape = (heads, HEAD_DIM)
        return nn.DenseGeneral(shape, kernel_init=kernel, bias_init=bias, name=name)(x)

    def experts(self, x):
        router = self.named("router", KERNEL, "embed expert", WIDTH, EXPERTS)
        up = self.named("up", KERNEL, "expert embed mlp", EXPERTS, WIDTH, HIDDEN)
        bias = self.named("bias", ZEROS, "expert mlp", EXPERTS, HIDDEN)
        down = self.named("down", KERNEL, "expert mlp embed", EXPERTS, HIDDEN, WIDTH)
        hidden = nn.silu(jnp.einsum("btd,edh->bteh", x, up) + bias)
        out = jnp.einsum("bteh,ehd->bted", hidden, down)
        return jnp.einsum("bte,bted->btd", nn.softmax(x @ router), out)


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        return nn.RMSNorm(scale_init=scale, name="rms")(x)


class LinenLlama(nn.Module):
    """Layers stacked along `scan_axis` by `nn.scan`; None for separate layers."""

    scan_axis: int | None = None

    @nn.compact
    def __call__(self, tokens):
        table = nn.with_logical_partitioning(KERNEL, ("vocab", "embed"))
        x = nn.Embed(VOCABULARY, WIDTH, embedding_init=table, name="embed")(tokens)
        if self.scan_axis is None:
            for i in range(LAYERS):
                x = LinenLayer(name=f"layer_{i}")(x)
        else:
            scan = nn.scan(
                lambda layer, x, _: (layer(x), None),
                variable_axes={"params": self.scan_axis},
                split_rngs={"params": True},
                length=LAYERS,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = scan(LinenLayer(name="layers"), x, None)
        head = nn.with_logical_partitioning(KERNEL, ("embed", "vocab"))
        return nn.Dense(VOCABULARY, kernel_init=head, name="to_tokens")(x)


def kernel(*names):
    return nnx.with_partitioning(KERNEL, names)


class NNXLayer(nnx.Module):
    """Latent attention (DeepSeek's, without its norms), and experts."""

    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(
            WIDTH,
            scale_init=nnx.with_partitioning(nnx.initializers.ones, ("norm",)),
            rngs=rngs,
        )
        self.wq_a = nnx.Linear(
            WIDTH, 8, kernel_init=kernel("embed", "q_lora"), rngs=rngs
        )
        self.wq_b = nnx.LinearGeneral(
            8,
            (HEADS, HEAD_DIM),
            kernel_init=kernel("q_lora", "q_heads", "kv"),
            bias_init=nnx.with_partitioning(ZEROS, ("q_heads", "kv")),
            rngs=rngs,
        )
        self.wkv = nnx.Param(
            KERNEL(rngs.params(), (WIDTH, 2, HEADS, HEAD_DIM)),
            out_sharding=("embed", "qkv", "kv_heads", "kv_head_dim"),
        )
        self.out = nnx.LinearGeneral(
            (HEADS, HEAD_DIM),
            WIDTH,
            axis=(-2, -1),
            kernel_init=kernel("heads", "kv", "embed"),
            rngs=rngs,
        )
        self.wi = nnx.Param(
            KERNEL(rngs.params(), (EXPERTS, WIDTH, HIDDEN)),
            out_sharding=("exp", "embed_no_exp", "mlp"),
        )
        self.wo = nnx.Param(
            KERNEL(rngs.params(), (EXPERTS, HIDDEN, WIDTH)),
            out_sharding=("exp", "mlp", "embed_no_exp"),
        )

    def __call__(self, x):
        query = self.wq_b(self.wq_a(self.norm(x)))
        key_value = jnp.einsum("btd,dnhk->nbthk", x, self.wkv)
        x = x + self.out(jax.nn.dot_product_attention(query, *key_value))
        hidden = nnx.silu(jnp.einsum("btd,edh->bteh", x, self.wi))
        return x + jnp.einsum("bteh,ehd->btd", hidden, self.wo)


class NNXLlama(nnx.Module):
    """Layers made by `nnx.vmap` along `scan_axis`, or a list of them."""

    def __init__(self, rngs, scan_axis=None):
        self.embed = nnx.Embed(
            VOCABULARY, WIDTH, embedding_init=kernel("vocab", "embed"), rngs=rngs
        )
        if scan_axis is None:
            self.blocks = nnx.List([NNXLayer(rngs) for _ in range(LAYERS)])
        else:
            make = nnx.vmap(
                NNXLayer,
                out_axes=scan_axis,
                transform_metadata={nnx.PARTITION_NAME: "layers"},
            )
            self.layers = nnx.split_rngs(splits=LAYERS)(make)(rngs)
        self.scan_axis = scan_axis
        self.dropout = nnx.Dropout(0.1, rngs=rngs)  # random state is no parameter

    def __call__(self, tokens):
        x = self.embed(tokens)
        if self.scan_axis is None:
            for layer in self.blocks:
                x = layer(x)
        else:
            axes = (nnx.Carry, self.scan_axis)
            scan = nnx.scan(
                in_axes=axes,
                out_axes=nnx.Carry,
                transform_metadata={nnx.PARTITION_NAME: "layers"},
            )
            x = scan(lambda x, layer: layer(x))(x, self.layers)
        return self.embed.attend(x)


def linen_params(scan_axis=None):
    """Boxed parameters, as shapes."""
    model, tokens = LinenLlama(scan_axis), jnp.zeros((1, TIME), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


def nnx_model(scan_axis=None):
    """A model of shapes."""
    with nnx.use_eager_sharding(False):  # logical names are no mesh axes
        return nnx.eval_shape(lambda: NNXLlama(nnx.Rngs(0), scan_axis))
