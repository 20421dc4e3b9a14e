"""axes_from_nnx on real architectures: every leaf is what its layer computes."""

import jax
import numpy as np
import pytest
from flax import nnx

import optax_muon
from optax_muon import MatrixAxes
from tests import architecture_tables as tables
from tests import architectures_nnx as models
from tests import flax_models, routing_cases
from tests.architecture_tables import check, flat
from tests.routing_cases import random_like, random_model, table_of

CASES = {
    "llama": (models.Llama, tables.LLAMA),
    "vit": (models.ViT, tables.VIT_NNX),
    "resnet": (models.ResNet, tables.RESNET_NNX),
    "moe": (models.MoE, tables.MOE),
    "t5": (models.T5, tables.T5),
    "recurrent": (models.Recurrent, tables.RECURRENT_NNX),
}


@pytest.mark.parametrize(("build", "table"), CASES.values(), ids=CASES)
def test_architecture(build, table):
    model = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    params = nnx.state(model, nnx.Param)
    axes = optax_muon.axes_from_nnx(model)
    check(params, axes, table)
    check(nnx.to_pure_dict(params), axes, table)


ROUTED = {
    "nnx cnn": flax_models.NNXCNN,
    "nnx gpt": flax_models.NNXGPT,
    "nnx gpt, scan": lambda rngs: flax_models.NNXGPT(rngs, 0),
    "nnx gpt, scan along 1": lambda rngs: flax_models.NNXGPT(rngs, 1),
    "nnx gpt, scan along -1": lambda rngs: flax_models.NNXGPT(rngs, -1),
    "nnx rnn": flax_models.NNXRNN,
    "nnx mlp": flax_models.NNXMLP,
}


@pytest.mark.parametrize("name", ROUTED)
def test_as_the_default_rule_where_that_decides(name):
    case = (routing_cases.CASES | routing_cases.OTHER_AXES)[name]
    model = nnx.eval_shape(lambda: ROUTED[name](nnx.Rngs(0)))
    others = {"value": MatrixAxes()} if name == "nnx mlp" else None
    axes = optax_muon.axes_from_nnx(model, others=others)
    assert table_of(optax_muon.plan(case.build(), axes)) == case.expected


def test_in_nnx_optimizer():
    """The updates are those of bare arrays with the same axes as a rule."""
    model = random_model(models.MoE)
    axes = optax_muon.axes_from_nnx(model)

    def rule(path, leaf):
        row = tables.MOE["/".join(optax_muon._matrix_axes.path_names(path))]
        return row and row[0]

    def tx(matrix_axes):
        return optax_muon.muon(0.1, orthogonalizer=lambda x: x, matrix_axes=matrix_axes)

    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    gradients = random_like(nnx.state(model, nnx.Param), seed=1)
    bare = nnx.to_pure_dict(gradients)
    updates, _ = tx(rule).update(bare, tx(rule).init(params), params)
    expected = jax.tree.map(lambda p, u: p + u, params, updates)
    optimizer = nnx.Optimizer(model, tx(axes), wrt=nnx.Param)
    optimizer.update(model, gradients)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, after, expected)


def of_one_block(axis):
    """A rule for stacked blocks, by what one block says of its parameters."""
    block = nnx.eval_shape(lambda: models.LlamaBlock(nnx.Rngs(0)))
    one = flat(optax_muon.axes_from_nnx(block))

    def inner(path, leaf):
        return one["/".join(optax_muon._matrix_axes.path_names(path)[1:])]

    return optax_muon.stacked("layers", axis, inner)


@pytest.mark.parametrize("layers", [models.HEADS, models.HEAD_DIM, models.WIDTH])
@pytest.mark.parametrize("axis", [0, 1])
def test_as_many_layers_as_something_else(layers, axis):
    """As in Llama 2 7B, of 32 layers and 32 heads: a rule decides what is open."""
    model = nnx.eval_shape(
        lambda: models.stack(models.LlamaBlock, layers, nnx.Rngs(0), axis)
    )
    model = nnx.Dict(layers=model)
    table = tables.LLAMA_ALONG_1 if axis else tables.LLAMA
    expected = {
        path: row and (*row[:2], layers)
        for path, row in table.items()
        if path.startswith("layers/")
    }
    axes = optax_muon.axes_from_nnx(model, others=of_one_block(axis))
    check(nnx.state(model, nnx.Param), axes, expected)


def test_llama_along_1():
    model = nnx.eval_shape(lambda: models.Llama(nnx.Rngs(0), axis=1))
    axes = optax_muon.axes_from_nnx(model, others=of_one_block(1))
    check(nnx.state(model, nnx.Param), axes, tables.LLAMA_ALONG_1)


class Two(nnx.Module):
    """Two stacks, along axes of their own: nothing tells them from one."""

    def __init__(self, rngs, length):
        def layer(inputs):
            return lambda rngs: nnx.Linear(inputs, 5, use_bias=False, rngs=rngs)

        self.enc = models.stack(layer(4), 4, rngs, axis=1)
        self.dec = models.stack(layer(3), length, rngs)
        self.norm = nnx.RMSNorm(4, rngs=rngs)


@pytest.mark.parametrize("length", [4, 6])
def test_stacks_side_by_side_do_not_tell(length):
    model = nnx.eval_shape(lambda: Two(nnx.Rngs(0), length))
    with pytest.raises(ValueError, match=r"  enc/kernel .* any of \(0,\) or \(1,\)\n"):
        optax_muon.axes_from_nnx(model)


class Containers(nnx.Module):
    def __init__(self, rngs):
        def layer():
            return nnx.Linear(2, 3, use_bias=False, rngs=rngs)

        self.dict = nnx.data({"items": layer(), "values": {"0": layer()}})
        self.tuple = nnx.data((layer(), [layer()]))
        self.list = nnx.List([layer(), nnx.Dict(keys=layer())])
        self.alias = self.list[0]
        self.sequential = nnx.Sequential(layer(), nnx.relu)


@pytest.mark.parametrize("graph", [True, False])
def test_containers(graph):
    model = nnx.eval_shape(lambda: Containers(nnx.Rngs(0)))
    if not graph:
        del model.alias  # a tree has no two names of one module
    dense = (tables.DENSE, (2, 3), 1)
    paths = ["dict/items", "dict/values/0", "tuple/0", "tuple/1/0", "list/1/keys"]
    paths += ["alias" if graph else "list/0", "sequential/layers/0"]
    with nnx.set_graph_mode(graph):
        params, axes = nnx.state(model, nnx.Param), optax_muon.axes_from_nnx(model)
    check(params, axes, {f"{path}/kernel": dense for path in paths})


def test_arrays_and_shapes_say_the_same():
    shapes = nnx.eval_shape(lambda: models.Recurrent(nnx.Rngs(0)))
    arrays = random_model(models.Recurrent)
    assert optax_muon.axes_from_nnx(arrays) == optax_muon.axes_from_nnx(shapes)
