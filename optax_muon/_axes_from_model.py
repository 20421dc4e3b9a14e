"""Matrix axes that are read off the model itself, not off the names of its leaves."""

import importlib
from types import ModuleType
from typing import Any

import jax

from optax_muon._model_choices import ModelChoices
from optax_muon._model_leaves import decide


def axes_from_nnx(
    model: Any, *, adamw: Any = (), others: Any = None, wrt: Any = None
) -> dict[Any, Any]:
    """The matrix axes of an NNX model's parameters, as its layers are configured.

    Muon takes the kernels of linear layers, einsums, convolutions and what is made of
    them: attention, recurrent cells, LoRA's two factors, each a linear layer. AdamW
    takes embeddings, tied or not, norms, biases and vectors, convolutions with one
    input channel a group, and by their names, as in `flax_matrix_axes`, output heads,
    input embeddings and tables of positions. A layer's own name counts: for all that is
    inside a module, say `adamw="head"`. A router of experts is a linear layer like
    others, Muon's here as by the default rule; `adamw="router"` is the other choice.

    Axes that a layer's configuration does not imply are those of stacked layers, made
    by `nnx.vmap` or `nnx.scan`: every layer, and every expert, is a matrix of its own.
    Where lengths coincide, as with 32 layers of 32 heads, the other parameters of the
    same layer tell, or it is an error: no model tells how far its stacks reach, and
    those side by side may lie along other axes. Groups of a convolution and the fused
    gates of `OptimizedLSTMCell` and `GRUCell` are matrices side by side
    (`fan_out_parts`), as if each had a leaf of its own.

    Args:
      model: a `flax.nnx.Module`, its variables arrays or, by `nnx.eval_shape`, shapes.
      adamw: what goes to AdamW beside all that, such as output heads of other names: a
        pattern (a regular expression of whole components of a path, joined by "/"), a
        class of modules, a module of the model, or a sequence of such.
      others: of parameters that no layer of Flax explains, or whose stacked axes
        lengths do not tell: a rule (path, leaf) -> MatrixAxes | None, or a dictionary
        from patterns, classes and modules to MatrixAxes | None. The axes are those of
        the whole leaf. Vectors and scalars need none, they are AdamW's; but stacks of
        them in modules of your own do, as {MyNorm: None}.
      wrt: which variables, as in `nnx.Optimizer`; None is `nnx.Param`.

    Returns:
      Nested dictionaries of MatrixAxes | None with the paths of
      `nnx.state(model, wrt)`, to be passed as `matrix_axes`, and to be changed if you
      know better.

    Raises:
      ValueError: lists all parameters that are undecided, with path, shape, module,
        reason and remedy; or entries of `adamw` or `others` that meet no parameter.
      TypeError: no NNX module; arguments of other types.
      ImportError: Flax is not installed.

    >>> from flax import nnx
    >>> layer = nnx.LinearGeneral(8, (2, 4), rngs=nnx.Rngs(0))
    >>> axes_from_nnx(layer)
    {'bias': None, 'kernel': MatrixAxes(fan_in=(0,), fan_out=(1, 2))}
    """
    leaves_of_nnx = _with_flax("axes_from_nnx", "nnx")
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"model has type {type(model).__name__}, which is no flax.nnx.Module; pass "
            "the model itself, not its state (axes_from_linen takes Linen modules)."
        )
    choices = ModelChoices(adamw, others, nnx.Module)
    found = leaves_of_nnx.leaves_of_nnx(model, nnx.Param if wrt is None else wrt)
    axes = decide([leaf for _, leaf in found], choices, "axes_from_nnx")
    tree: dict[Any, Any] = {}
    for (names, _), entry in zip(found, axes, strict=True):
        node = tree
        for name in names[:-1]:
            node = node.setdefault(name, {})
        node[names[-1]] = entry
    return tree


def axes_from_linen(
    module: Any,
    *inputs: Any,
    adamw: Any = (),
    others: Any = None,
    rngs: Any = None,
    **kwargs: Any,
) -> Any:
    """The matrix axes of a Linen module's parameters, as the modules inside imply.

    `module.init` is evaluated for shapes alone, which takes no memory, and every
    parameter is decided by the module that makes it: see `axes_from_nnx`. Stacked axes
    are those that a parameter has outside of `nn.scan` and `nn.vmap` and not inside;
    where lengths coincide, the other parameters inside tell.

    Args:
      module: a `flax.linen.Module`.
      inputs, kwargs: those of its `__call__`, or of another `method=`. Arrays may be
        given by `jax.ShapeDtypeStruct`.
      adamw, others: as in `axes_from_nnx`, but no modules: patterns and classes.
      rngs: of `module.init`; None is one key, for all of its streams.

    Returns:
      A tree of MatrixAxes | None like `module.init(...)["params"]`, to be passed as
      `matrix_axes`, and to be changed if you know better.

    Raises:
      ValueError, TypeError, ImportError: as `axes_from_nnx`.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> axes_from_linen(nn.Einsum((8, 2, 4), "btd,dhk->bthk"), jnp.ones((1, 3, 8)))
    {'bias': None, 'kernel': MatrixAxes(fan_in=(0,), fan_out=(1, 2))}
    """
    leaves_of_linen = _with_flax("axes_from_linen", "linen")
    import flax.linen as nn

    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module={module!r} is no instance of flax.linen.Module; pass a module, "
            "such as MyModel(...) (axes_from_nnx takes NNX modules)."
        )
    choices = ModelChoices(adamw, others, None)
    params, leaves = leaves_of_linen.leaves_of_linen(
        module, inputs, kwargs, jax.random.key(0) if rngs is None else rngs
    )
    axes = decide(leaves, choices, "axes_from_linen")
    structure = jax.tree.structure(params, is_leaf=leaves_of_linen.is_box)
    return jax.tree.unflatten(structure, axes)


def _with_flax(function: str, which: str) -> ModuleType:
    """The module of this package that needs Flax."""
    try:
        return importlib.import_module(f"optax_muon._leaves_of_{which}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "flax":
            raise
        raise ImportError(
            f"{function} reads Flax models, and Flax is not installed: "
            "pip install 'optax_muon[flax]'."
        ) from error
