"""Variables that NNX modules share: every path and every holder counts."""

from typing import NamedTuple

import flax.struct
import pytest
from flax import nnx

from optax_muon import MatrixAxes, axes_from_nnx
from tests.architecture_tables import flat

DENSE = MatrixAxes(0, 1)


class Shared(nnx.Module):
    """A linear layer or its kernel, under a second name."""

    def __init__(self, first, second, *, kernel):
        layer = nnx.Linear(8, 100, use_bias=False, rngs=nnx.Rngs(0))
        setattr(self, first, layer)
        setattr(self, second, layer.kernel if kernel else layer)


@pytest.mark.parametrize("other", ["a", "z"])
@pytest.mark.parametrize(("name", "kernel"), [("lm_head", False), ("wte", True)])
def test_heads_and_embeddings_win(other, name, kernel):
    (axes,) = flat(axes_from_nnx(Shared(other, name, kernel=kernel))).values()
    assert axes is None


@pytest.mark.parametrize("other", ["a", "z"])
def test_adamw_meets_each_name(other):
    model = Shared(other, "router", kernel=False)
    assert list(flat(axes_from_nnx(model)).values()) == [DENSE]
    assert list(flat(axes_from_nnx(model, adamw="router")).values()) == [None]


@pytest.mark.parametrize("other", ["a", "z"])
def test_unknown_holders_are_an_error(other):
    model = Shared(other, "mixing", kernel=True)
    with pytest.raises(ValueError, match="shared with a module that is no known"):
        axes_from_nnx(model)
    for name in ("mixing", other):
        (axes,) = flat(axes_from_nnx(model, others={name: DENSE})).values()
        assert axes == DENSE


def test_modules_that_refer_to_each_other():
    model = Shared("a", "b", kernel=False)
    model.a.parent = model
    (axes,) = flat(axes_from_nnx(model)).values()
    assert axes == DENSE


@flax.struct.dataclass
class Struct:
    layer: nnx.Linear


class Tuple(NamedTuple):
    layer: nnx.Linear


@pytest.mark.parametrize("container", [Struct, Tuple])
def test_nodes_of_pytrees_between_modules(container):
    def layer():
        return nnx.Linear(8, 8, use_bias=False, rngs=nnx.Rngs(0))

    shared = layer()
    model = nnx.Dict(nodes=nnx.data(container(shared)), head=shared)
    assert list(flat(axes_from_nnx(model)).values()) == [None]
    model = nnx.Dict(nodes=nnx.data(container(layer())))
    assert flat(axes_from_nnx(model)) == {"nodes/layer/kernel": DENSE}
