"""The architectures of `architectures_linen` in NNX, as what they are made of."""

import jax.numpy as jnp
from flax import nnx

from tests.architectures_linen import (
    BUCKETS,
    CLASSES,
    EXPERTS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KEY_HEADS,
    LAYERS,
    VOCABULARY,
    WIDTH,
)


def linear(inputs, outputs, rngs):
    return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)


class LlamaBlock(nnx.Module):
    def __init__(self, rngs):
        def heads(count):
            return nnx.LinearGeneral(
                WIDTH, (count, HEAD_DIM), use_bias=False, rngs=rngs
            )

        self.attention_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.q_proj = heads(HEADS)
        self.k_proj, self.v_proj = heads(KEY_HEADS), heads(KEY_HEADS)
        self.o_proj = nnx.LinearGeneral(
            (HEADS, HEAD_DIM), WIDTH, axis=(-2, -1), use_bias=False, rngs=rngs
        )
        self.mlp_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.gate_proj = linear(WIDTH, HIDDEN, rngs)
        self.up_proj = linear(WIDTH, HIDDEN, rngs)
        self.down_proj = linear(HIDDEN, WIDTH, rngs)


def stack(make, count, rngs, axis=0):
    """Modules of one kind stacked by `nnx.vmap` along `axis` of their leaves."""
    made = nnx.vmap(make, in_axes=0, out_axes=axis)
    return nnx.split_rngs(splits=count)(made)(rngs)


class Llama(nnx.Module):
    def __init__(self, rngs, axis=0):
        self.embed_tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = stack(LlamaBlock, LAYERS, rngs, axis)
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.lm_head = linear(WIDTH, VOCABULARY, rngs)


class ViTBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm_1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, qkv_features=12, decode=False, rngs=rngs
        )
        self.norm_2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(WIDTH, HIDDEN, rngs=rngs),
            nnx.gelu,
            nnx.Dropout(0.1, rngs=rngs),
            nnx.Linear(HIDDEN, WIDTH, rngs=rngs),
        )


class ViT(nnx.Module):
    def __init__(self, rngs):
        self.patches = nnx.Conv(3, WIDTH, (2, 2), strides=(2, 2), rngs=rngs)
        self.cls = nnx.Param(jnp.zeros((1, 1, WIDTH)))
        self.pos_embedding = nnx.Param(jnp.zeros((1, 5, WIDTH)))
        self.blocks = nnx.List([ViTBlock(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)


class ResNetBlock(nnx.Module):
    def __init__(self, inputs, features, groups, rngs):
        options = {"use_bias": False, "rngs": rngs}
        self.conv_1 = nnx.Conv(inputs, features, (3, 3), **options)
        self.norm_1 = nnx.BatchNorm(features, rngs=rngs)
        self.conv_2 = nnx.Conv(
            features, features, (3, 3), feature_group_count=groups, **options
        )
        self.norm_2 = nnx.BatchNorm(features, rngs=rngs)
        self.shortcut = nnx.Conv(inputs, features, (1, 1), **options)


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 4, (5, 5), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.block_0 = ResNetBlock(4, 6, 1, rngs)
        self.block_1 = ResNetBlock(6, 12, 2, rngs)
        self.classifier = nnx.Linear(12, CLASSES, rngs=rngs)


class Expert(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)


class Mixture(nnx.Module):
    def __init__(self, rngs):
        self.router = linear(WIDTH, EXPERTS, rngs)
        self.experts = stack(Expert, EXPERTS, rngs)


class MoE(nnx.Module):
    """Experts stacked by `nnx.vmap`, in layers stacked by another."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = stack(Mixture, LAYERS, rngs)


class T5Layer(nnx.Module):
    def __init__(self, crosses, rngs):
        def attention():
            return nnx.MultiHeadAttention(
                HEADS, WIDTH, 12, use_bias=False, decode=False, rngs=rngs
            )

        self.norm_self = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.self_attention = attention()
        if crosses:
            self.norm_cross = nnx.RMSNorm(WIDTH, rngs=rngs)
            self.cross_attention = attention()
        self.norm_ff = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.wi = linear(WIDTH, HIDDEN, rngs)
        self.wo = linear(HIDDEN, WIDTH, rngs)


class T5Stack(nnx.Module):
    def __init__(self, crosses, rngs):
        self.relative_bias = nnx.Embed(BUCKETS, HEADS, rngs=rngs)
        self.layer_0 = T5Layer(crosses, rngs)
        self.layer_1 = T5Layer(crosses, rngs)
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)


class T5(nnx.Module):
    def __init__(self, rngs):
        self.shared = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.encoder = T5Stack(False, rngs)
        self.decoder = T5Stack(True, rngs)


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(5, 7, rngs=rngs))
        self.plain = nnx.RNN(nnx.LSTMCell(7, 7, rngs=rngs))
        self.gru = nnx.RNN(nnx.GRUCell(7, 9, rngs=rngs))
        self.logits = nnx.Linear(9, CLASSES, rngs=rngs)
