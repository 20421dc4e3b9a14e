"""axes_from_linen on real architectures: every leaf is what its layer computes."""

import jax
import jax.numpy as jnp
import pytest

import optax_muon
from tests import architecture_tables as tables
from tests import architectures_linen as models
from tests import flax_models, routing_cases
from tests.architecture_tables import check, flat
from tests.routing_cases import table_of

TOKENS = jax.ShapeDtypeStruct((2, 5), jnp.int32)
IMAGES = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
SERIES = jax.ShapeDtypeStruct((2, 4, 5), jnp.float32)

CASES = {
    "llama": (models.Llama(), (TOKENS,), tables.LLAMA),
    "llama along 1": (models.Llama(axis=1), (TOKENS,), tables.LLAMA_ALONG_1),
    "vit": (models.ViT(), (IMAGES, True), tables.VIT_LINEN),
    "resnet": (models.ResNet(), (IMAGES,), tables.RESNET_LINEN),
    "moe": (models.MoE(), (TOKENS,), tables.MOE),
    "t5": (models.T5(), (TOKENS, TOKENS), tables.T5),
    "recurrent": (models.Recurrent(), (SERIES,), tables.RECURRENT_LINEN),
}


def params_of(model, *inputs):
    arrays = [x for x in inputs if isinstance(x, jax.ShapeDtypeStruct)]
    flags = [x for x in inputs if not isinstance(x, jax.ShapeDtypeStruct)]
    return jax.eval_shape(
        lambda arrays: model.init(jax.random.key(0), *arrays, *flags), arrays
    )["params"]


@pytest.mark.parametrize(("model", "inputs", "table"), CASES.values(), ids=CASES)
def test_architecture(model, inputs, table):
    axes = optax_muon.axes_from_linen(model, *inputs)
    check(params_of(model, *inputs), axes, table)


ROUTED = {
    "linen mlp": (flax_models.LinenMLP(), (jnp.ones((1, 6)),)),
    "linen mlp, partitioned": (routing_cases.PARTITIONED_MLP, (jnp.ones((1, 6)),)),
    "linen cnn": (flax_models.LinenCNN(), (jnp.ones((1, 8, 8, 1)),)),
    "linen gpt": (flax_models.LinenGPT(None), (TOKENS,)),
    "linen gpt, scan": (flax_models.LinenGPT(0), (TOKENS,)),
    "linen gpt, scan along 1": (flax_models.LinenGPT(1), (TOKENS,)),
    "linen gpt, scan along -1": (flax_models.LinenGPT(-1), (TOKENS,)),
    "linen rnn": (flax_models.LinenRNN(), (SERIES,)),
}


@pytest.mark.parametrize("name", ROUTED)
def test_as_the_default_rule_where_that_decides(name):
    case = (routing_cases.CASES | routing_cases.OTHER_AXES)[name]
    module, inputs = ROUTED[name]
    axes = optax_muon.axes_from_linen(module, *inputs)
    assert table_of(optax_muon.plan(case.build(), axes)) == case.expected


def test_the_tree_is_that_of_the_parameters():
    model = models.T5()
    params = params_of(model, TOKENS, TOKENS)
    axes = optax_muon.axes_from_linen(model, TOKENS, TOKENS)
    leaves = jax.tree.map(lambda x: None, params)
    entries = jax.tree.map(lambda x: None, axes)
    assert entries == leaves


def test_a_name_of_embeddings_decides_for_patches_as_in_the_default_rule():
    model = models.ViT(patches="patch_embed")
    axes = flat(optax_muon.axes_from_linen(model, IMAGES, train=True))
    assert axes["patch_embed/kernel"] is None
    params = {"patch_embed": {"kernel": jnp.ones((2, 2, 3, 8))}}
    assert optax_muon.plan(params).leaves[0].optimizer == "adamw"


def test_it_works_in_an_update():
    model = models.MoE()
    params = model.init(jax.random.key(0), jnp.zeros((2, 5), int))["params"]
    axes = optax_muon.axes_from_linen(model, TOKENS)
    tx = optax_muon.muon(0.1, orthogonalizer=lambda x: x, matrix_axes=axes)
    updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
