"""Matrix axes that are read off the model itself, not off the names of its leaves."""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax

from optax_muon._boxes import is_box
from optax_muon._model_choices import ModelChoices
from optax_muon._model_leaves import ModelLeaf, decide

_LIBRARIES = {
    "nnx": ("flax", "Flax"),
    "linen": ("flax", "Flax"),
    "equinox": ("equinox", "Equinox"),
}


def axes_from_nnx(
    model: Any, *, adamw: Any = (), others: Any = None, wrt: Any = None
) -> dict[Any, Any]:
    """The matrix axes of an NNX model's parameters, as its layers are configured.

    Muon takes the kernels of linear layers, einsums, convolutions and what is made of
    them: attention, recurrent cells, LoRA's two factors, each a linear layer. AdamW
    takes embeddings, tied or not, norms, biases and vectors, convolutions with one
    input channel a group, and layers whose names say, as in `flax_matrix_axes`, that
    they are output heads, input embeddings or tables of positions. A layer's own name
    counts: for all that is inside a module, say `adamw="head"`. A parameter that no
    layer of Flax makes is AdamW's where it is a vector, or where its own name says that
    it is an embedding or a table of positions, such as `pos_embedding`; else it is an
    error. A router of experts is a linear layer like others, Muon's here as by the
    default rule; `adamw="router"` is the other choice.

    Layers are read as they are configured: an equation given to `nnx.Einsum` at the
    call, or a subclass whose `__call__` reads its kernel in another way, is not seen.
    Change the tree that comes back for those.

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
    leaves_of_nnx = _reader("axes_from_nnx", "nnx")
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"model has type {type(model).__name__}, which is no flax.nnx.Module; pass "
            "the model itself, not its state (axes_from_linen takes Linen modules)."
        )
    wrt = nnx.Param if wrt is None else wrt
    try:
        nnx.filterlib.to_predicate(wrt)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"wrt={wrt!r} is no filter of NNX's; pass a class of variables, such as "
            "nnx.LoRAParam, or None for nnx.Param."
        ) from error
    choices = ModelChoices(adamw, others, nnx.Module)
    found = leaves_of_nnx.leaves_of_nnx(model, wrt)
    return _decided(found, choices, "axes_from_nnx")


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
    leaves_of_linen = _reader("axes_from_linen", "linen")
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
    structure = jax.tree.structure(params, is_leaf=is_box)
    return jax.tree.unflatten(structure, axes)


def axes_from_equinox(
    model: Any, *, adamw: Any = (), others: Any = None
) -> dict[str, Any]:
    """The matrix axes of an Equinox model's parameters, as its layers are configured.

    Muon takes the weights of `Linear`, [out, in], and of convolutions, transposed ones
    too, [out, in, *window] as [in * window, out]; AdamW all that `axes_from_nnx` gives
    it. The last layer of an `eqx.nn.MLP` has no name that tells that it is an output
    layer: where it is, say `adamw=model.layers[-1]`. The gates of `LSTMCell` and
    `GRUCell`, and the groups of a convolution, are matrices side by side. An array in
    `eqx.nn.Shared` is what all layers that read it say it is. Axes that a layer's
    configuration does not imply are those of layers made by `eqx.filter_vmap`: every
    layer is a matrix of its own.

    Args:
      model: an Equinox module, or a dictionary, list or tuple of them; arrays may be
        abstract (`eqx.filter_eval_shape`).
      adamw, others: as in `axes_from_nnx`.

    Returns:
      Nested dictionaries of MatrixAxes | None, by the names of fields, keys, and the
      numbers of items: `matrix_axes` where the parameters are
      `eqx.filter(model, eqx.is_inexact_array)`.

    Raises:
      ValueError, TypeError, ImportError: as `axes_from_nnx`.

    >>> import equinox as eqx
    >>> model = eqx.nn.MLP(8, 4, 32, depth=1, key=jax.random.key(0))
    >>> axes = axes_from_equinox(model, adamw=model.layers[-1])
    >>> axes["layers"]["0"]
    {'weight': MatrixAxes(fan_in=(1,), fan_out=(0,)), 'bias': None}
    >>> import optax_muon
    >>> tx = optax_muon.muon(3e-3, matrix_axes=axes)
    >>> state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    """
    leaves_of_equinox = _reader("axes_from_equinox", "equinox")
    import equinox as eqx

    modules = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, eqx.Module))
    if not any(isinstance(module, eqx.Module) for module in modules):
        raise TypeError(
            f"model={model!r:.60} holds no equinox.Module; pass the model itself, not "
            "its arrays alone, whose names do not tell what they are."
        )
    choices = ModelChoices(adamw, others, eqx.Module)
    return _decided(
        leaves_of_equinox.leaves_of_equinox(model), choices, "axes_from_equinox"
    )


def _decided(
    found: Sequence[tuple[tuple[Any, ...], ModelLeaf]],
    choices: ModelChoices,
    function: str,
) -> dict[Any, Any]:
    """Nested dictionaries of what is decided of leaves with these names."""
    axes = decide([leaf for _, leaf in found], choices, function)
    tree: dict[Any, Any] = {}
    for (names, _), entry in zip(found, axes, strict=True):
        node = tree
        for name in names[:-1]:
            node = node.setdefault(name, {})
        node[names[-1]] = entry
    return tree


def _reader(function: str, which: str) -> ModuleType:
    """The module of this package that needs Flax or Equinox."""
    try:
        return importlib.import_module(f"optax_muon._leaves_of_{which}")
    except ModuleNotFoundError as error:
        package, library = _LIBRARIES[which]
        if (error.name or "").split(".")[0] != package:
            raise
        raise ImportError(
            f"{function} reads models of {library}, which is not installed: "
            f"pip install 'optax_muon[{package}]'."
        ) from error
