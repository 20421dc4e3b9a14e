"""Flax models, in Linen and NNX, with the layers that people train.

All sizes of a layer differ, and heads * head_dim is not the width, so that no mix-up of
axes can hide in a coincidence.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

WIDTH, HEADS, HEAD_DIM, HIDDEN = 8, 2, 6, 20
LAYERS, VOCABULARY, TIME = 3, 11, 5
QKV = HEADS * HEAD_DIM
INPUTS, UNITS = 5, 7


class LinenMLP(nn.Module):
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(9, kernel_init=self.kernel_init)(x))
        x = nn.relu(nn.Dense(10, use_bias=False)(x))
        return nn.Dense(4, name="classifier")(nn.LayerNorm()(x))


class NNXMLP(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List(
            [nnx.Linear(6, 9, rngs=rngs), nnx.Linear(9, 10, use_bias=False, rngs=rngs)]
        )
        self.norm = nnx.RMSNorm(10, rngs=rngs)
        self.mlp = nnx.Sequential(nnx.Linear(10, 7, rngs=rngs), nnx.relu)
        self.value = nnx.Param(jnp.ones((7, 5)))  # named as NNX's own `.value`
        self.head = nnx.Linear(5, 4, rngs=rngs)


class LinenCNN(nn.Module):
    """Images of one channel; 2-D, then 1-D, then 3-D convolutions."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        x = nn.Conv(6, (3, 2))(x)
        x = nn.Conv(6, (3, 3), feature_group_count=6, name="depthwise_conv")(x)
        x = nn.Conv(8, (3, 3), feature_group_count=2, name="grouped_conv")(x)
        x = nn.ConvTranspose(5, (2, 2))(x)
        x = nn.Conv(7, (3,))(x.reshape(x.shape[0], -1, 5))
        x = nn.Conv(14, (3,), feature_group_count=7, name="conv1d")(x)
        x = nn.Conv(9, (1, 2, 3))(x.reshape(x.shape[0], 4, 4, -1, 14))
        return nn.Dense(10, name="logits")(x.mean((1, 2, 3)))


class NNXCNN(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List(
            [
                nnx.Conv(1, 4, (3, 3), rngs=rngs),
                nnx.Conv(4, 6, (3, 2), rngs=rngs),
                nnx.Conv(6, 6, (3, 3), feature_group_count=6, rngs=rngs),
            ]
        )
        self.bn = nnx.BatchNorm(6, rngs=rngs)
        self.conv1d = nnx.Conv(6, 7, (3,), rngs=rngs)
        self.conv3d = nnx.Conv(7, 9, (1, 2, 3), rngs=rngs)
        self.linear = nnx.Linear(9, 5, rngs=rngs)
        self.classifier = nnx.Linear(5, 10, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.relu(conv(x))
        x = self.conv1d(self.bn(x).reshape(x.shape[0], -1, 6))
        x = self.conv3d(x.reshape(x.shape[0], 2, 2, -1, 7))
        return self.classifier(nnx.relu(self.linear(x.mean((1, 2, 3)))))


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        attention = nn.MultiHeadDotProductAttention(
            HEADS, qkv_features=QKV, name="attention"
        )
        x = x + attention(nn.LayerNorm(name="norm")(x))
        return x + nn.Dense(WIDTH, name="down")(nn.gelu(nn.Dense(HIDDEN, name="up")(x)))


class LinenGPT(nn.Module):
    """Layers stacked along `scan_axis` by `nn.scan`; None for separate layers."""

    scan_axis: int | None = None

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH, name="embed")(tokens)
        x = x + self.param("pos_embed", nn.initializers.normal(), (TIME, WIDTH))
        if self.scan_axis is None:
            for i in range(LAYERS):
                x = LinenBlock(name=f"block_{i}")(x)
        else:
            scan = nn.scan(
                lambda layer, x, _: (layer(x), None),
                variable_axes={"params": self.scan_axis},
                split_rngs={"params": True},
                length=LAYERS,
            )
            x, _ = scan(LinenBlock(name="layers"), x, None)
        return nn.Dense(VOCABULARY, name="lm_head")(x)


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, qkv_features=QKV, decode=False, rngs=rngs
        )
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


class NNXGPT(nnx.Module):
    """Layers made by `nnx.vmap` and run by `nnx.scan`, or a list of them."""

    def __init__(self, rngs, scan_axis=None):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.pos_embed = nnx.Param(jnp.zeros((TIME, WIDTH)))
        if scan_axis is None:
            self.blocks = nnx.List([NNXBlock(rngs) for _ in range(LAYERS)])
        else:
            make = nnx.vmap(NNXBlock, in_axes=0, out_axes=scan_axis)
            self.layers = nnx.split_rngs(splits=LAYERS)(make)(rngs)
        self.scan_axis = scan_axis
        self.lm_head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.pos_embed
        if self.scan_axis is None:
            for layer in self.blocks:
                x = layer(x)
        else:
            axes = (nnx.Carry, self.scan_axis)
            scan = nnx.scan(in_axes=axes, out_axes=nnx.Carry)
            x = scan(lambda x, layer: layer(x))(x, self.layers)
        return self.lm_head(x)


class LinenRNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.GRUCell(UNITS))(nn.RNN(nn.LSTMCell(UNITS))(x))


class NNXRNN(nnx.Module):
    def __init__(self, rngs):
        self.lstm = nnx.LSTMCell(INPUTS, UNITS, rngs=rngs)
        self.gru = nnx.GRUCell(INPUTS, UNITS, rngs=rngs)
