"""Real architectures in Linen, small, to read matrix axes off.

All sizes differ, so that no mix-up of axes can hide in a coincidence.
"""

import flax.linen as nn
import jax.numpy as jnp

WIDTH, HEADS, KEY_HEADS, HEAD_DIM, HIDDEN = 8, 4, 2, 3, 20
VOCABULARY, LAYERS, EXPERTS, BUCKETS, CLASSES = 11, 3, 5, 6, 10


class LlamaBlock(nn.Module):
    """Grouped queries and a gated MLP, as a body of `nn.scan`."""

    @nn.compact
    def __call__(self, x, _):
        y = nn.RMSNorm(name="attention_norm")(x)
        q = nn.DenseGeneral((HEADS, HEAD_DIM), use_bias=False, name="q_proj")(y)
        kv = (KEY_HEADS, HEAD_DIM)
        k = nn.DenseGeneral(kv, use_bias=False, name="k_proj")(y)
        v = nn.DenseGeneral(kv, use_bias=False, name="v_proj")(y)
        y = nn.dot_product_attention(q, *(jnp.repeat(x, 2, axis=-2) for x in (k, v)))
        out = nn.DenseGeneral(WIDTH, axis=(-2, -1), use_bias=False, name="o_proj")
        x = x + out(y)
        y = nn.RMSNorm(name="mlp_norm")(x)
        gate = nn.Dense(HIDDEN, use_bias=False, name="gate_proj")(y)
        up = nn.Dense(HIDDEN, use_bias=False, name="up_proj")(y)
        down = nn.Dense(WIDTH, use_bias=False, name="down_proj")
        return x + down(nn.silu(gate) * up), None


class Llama(nn.Module):
    """Layers stacked by `nn.scan` along `axis`."""

    axis: int = 0

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH, name="embed_tokens")(tokens)
        scan = nn.scan(
            nn.remat(LlamaBlock),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=LAYERS,
        )
        x, _ = scan(name="layers")(x, None)
        x = nn.RMSNorm(name="norm")(x)
        return nn.Dense(VOCABULARY, use_bias=False, name="lm_head")(x)


class ViTBlock(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, qkv_features=12)(y)
        y = nn.Dense(HIDDEN)(nn.LayerNorm()(x))
        y = nn.Dropout(0.1, deterministic=not train)(nn.gelu(y))
        return x + nn.Dense(WIDTH)(y)


class ViT(nn.Module):
    """Images of three channels; what reads them is named `patches`."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(WIDTH, (2, 2), strides=(2, 2), name=self.patches)(images)
        x = x.reshape(x.shape[0], -1, WIDTH)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, WIDTH))
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
        shape = (1, x.shape[1], WIDTH)
        x = x + self.param("pos_embedding", nn.initializers.normal(), shape)
        for _ in range(2):
            x = ViTBlock()(x, train)
        return nn.Dense(CLASSES, name="head")(nn.LayerNorm()(x)[:, 0])

    patches: str = "patches"


class ResNetBlock(nn.Module):
    features: int
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.features, (3, 3), use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=False)(y))
        y = nn.Conv(
            self.features, (3, 3), feature_group_count=self.groups, use_bias=False
        )(y)
        y = nn.BatchNorm(use_running_average=False)(y)
        return y + nn.Conv(self.features, (1, 1), use_bias=False, name="shortcut")(x)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(4, (5, 5), use_bias=False, name="stem")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        x = ResNetBlock(6)(x)
        x = ResNetBlock(12, groups=2)(x)
        return nn.Dense(CLASSES, name="classifier")(x.mean((1, 2)))


class Expert(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(WIDTH, name="down")(nn.gelu(nn.Dense(HIDDEN, name="up")(x)))


class Mixture(nn.Module):
    """Every expert sees all tokens; the router weighs what they say."""

    @nn.compact
    def __call__(self, x, _=None):
        weights = nn.softmax(nn.Dense(EXPERTS, use_bias=False, name="router")(x))
        experts = nn.vmap(
            Expert,
            in_axes=None,
            axis_size=EXPERTS,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )(name="experts")
        return x + jnp.einsum("ebtd,bte->btd", experts(x), weights), None


class MoE(nn.Module):
    """Experts stacked by `nn.vmap` in layers stacked by `nn.scan`."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(VOCABULARY, WIDTH, name="embed")
        scan = nn.scan(
            Mixture,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
        )
        x, _ = scan(name="layers")(embed(tokens), None)
        return embed.attend(x)


class T5Layer(nn.Module):
    crosses: bool

    @nn.compact
    def __call__(self, x, memory, bias):
        options = {"qkv_features": 12, "use_bias": False}
        y = nn.RMSNorm(name="norm_self")(x)
        function = nn.dot_product_attention
        x = x + nn.MultiHeadDotProductAttention(
            HEADS,
            **options,
            attention_fn=lambda *a, **k: function(*a, **{**k, "bias": bias}),
            name="self_attention",
        )(y)
        if self.crosses:
            cross = nn.MultiHeadDotProductAttention(
                HEADS, **options, name="cross_attention"
            )
            x = x + cross(nn.RMSNorm(name="norm_cross")(x), memory)
        y = nn.Dense(HIDDEN, use_bias=False, name="wi")(nn.RMSNorm(name="norm_ff")(x))
        return x + nn.Dense(WIDTH, use_bias=False, name="wo")(nn.relu(y))


class T5Stack(nn.Module):
    crosses: bool

    @nn.compact
    def __call__(self, x, memory=None):
        buckets = jnp.abs(jnp.arange(x.shape[1])[:, None] - jnp.arange(x.shape[1]))
        bias = nn.Embed(BUCKETS, HEADS, name="relative_bias")(buckets)
        for i in range(2):
            layer = T5Layer(self.crosses, name=f"layer_{i}")
            x = layer(x, memory, bias.transpose(2, 0, 1)[None])
        return nn.RMSNorm(name="norm")(x)


class T5(nn.Module):
    """One table of embeddings for encoder, decoder and logits."""

    def setup(self):
        self.shared = nn.Embed(VOCABULARY, WIDTH)
        self.encoder = T5Stack(crosses=False)
        self.decoder = T5Stack(crosses=True)

    def __call__(self, inputs, targets):
        memory = self.encoder(self.shared(inputs))
        return self.shared.attend(self.decoder(self.shared(targets), memory))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.OptimizedLSTMCell(7), name="lstm")(x)
        x = nn.RNN(nn.GRUCell(9), name="gru")(x)
        return nn.Dense(CLASSES, name="logits")(x)
