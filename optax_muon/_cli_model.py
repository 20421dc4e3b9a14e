"""`--from module:function`: the user's parameters, and what says which are matrices."""

import argparse
import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from optax_muon._axes_from_model import (
    axes_from_equinox,
    axes_from_linen,
    axes_from_nnx,
)
from optax_muon._cli_arguments import UsageError, library_errors
from optax_muon._cli_progress import Progress
from optax_muon._matrix_axes import path_name

RETURNS = """\
The function is called without arguments, and returns one of
  parameters       a tree of arrays or jax.ShapeDtypeStruct, as optax_muon.plan takes
  an NNX model     its nnx.Param, with axes as axes_from_nnx(model) reads them
  an Equinox model, or a list or dictionary of them: its inexact arrays, with axes as
                   axes_from_equinox(model) reads them
  (module, *inputs)  a Linen module and what its __call__ takes: its parameters, with
                   axes as axes_from_linen(module, *inputs) reads them
Shapes are enough (jax.eval_shape, nnx.eval_shape), and take no memory. With --axes the
axes are those instead, and the model is not asked for any."""


class Model(NamedTuple):
    """What `optax_muon.plan` is given, and the call that trains so."""

    params: Any
    matrix_axes: Any
    call: str


def add_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """`--from` and `--axes`."""
    parser.add_argument(
        "--from",
        dest="source",
        metavar="MODULE:FUNCTION",
        required=required,
        help="makes the parameters; MODULE is found from the current folder",
    )
    parser.add_argument(
        "--axes",
        metavar="MODULE:NAME",
        help="matrix_axes: a rule or a tree, such as optax_muon:haiku_matrix_axes",
    )


def read(source: str, axes: str | None) -> Model:
    """Call the user's function, and see what it returned.

    Raises:
      UsageError: there is no such module or name; it cannot be called without
        arguments; it returned no parameters; its layers do not tell the axes.
    """
    with _current_folder_on_path():
        function = _callable(source)
        if axes is not None:
            rule = _named("--axes", axes)
        with Progress(f"calling {source}"):
            result = function()
    with Progress("reading the model"):
        params, read_axes, call = _model(result)
        _check(source, params)
        if axes is None:
            rule = _axes_of_model(read_axes, call)
            argument = "" if call is None else f", matrix_axes=optax_muon.{call}"
        else:
            argument = f", matrix_axes={axes.replace(':', '.')}"
    return Model(params, rule, f"optax_muon.muon(learning_rate{argument})")


def _callable(source: str) -> Callable[[], Any]:
    function = _named("--from", source)
    if not callable(function):
        raise UsageError(
            f"--from {source}: that is of type {type(function).__name__}, and cannot "
            "be called; name a function that returns the parameters."
        )
    with contextlib.suppress(ValueError):  # some callables in C have no signature
        signature = inspect.signature(function)
        try:
            signature.bind()
        except TypeError as error:
            raise UsageError(
                f"--from {source}: it takes {signature}, and is called without "
                f"arguments ({error}); name one that needs none."
            ) from error
    return function


def _named(option: str, source: str) -> Any:
    """What `MODULE:NAME` names; errors inside the module are the user's to see."""
    module_name, colon, name = source.partition(":")
    if not (colon and module_name and name):
        raise UsageError(
            f"{option} {source}: no module and name; write MODULE:NAME, as in "
            "my_model:parameters."
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{module_name}.".startswith(f"{missing}."):
            raise
        raise UsageError(
            f"{option} {source}: there is no module {missing!r} in {os.getcwd()} or "
            "among those installed; change to its folder, or give its dotted name."
        ) from error
    if not hasattr(module, name):
        names = [
            known
            for known, value in vars(module).items()
            if not known.startswith("_") and not inspect.ismodule(value)
        ]
        raise UsageError(
            f"{option} {source}: module {module_name!r} has no {name!r}; it has "
            f"{', '.join(names) or 'no public names'}."
        )
    return getattr(module, name)


def _model(result: Any) -> tuple[Any, Callable[[], Any], str | None]:
    """The parameters, what reads their axes off the model, and the call that does.

    Axes are not read before they are asked for: `--axes` is for models that do not
    tell them.
    """
    # Whoever returns a model of Flax or Equinox has imported it.
    nnx, linen = sys.modules.get("flax.nnx"), sys.modules.get("flax.linen")
    if "equinox" in sys.modules and (params := _of_equinox(result)) is not None:
        return params, lambda: axes_from_equinox(result), "axes_from_equinox(model)"
    if nnx is not None and isinstance(result, nnx.Module):
        params = nnx.state(result, nnx.Param)
        return params, lambda: axes_from_nnx(result), "axes_from_nnx(model)"
    if linen is None:
        return result, lambda: None, None
    first, *inputs = result if isinstance(result, tuple) and result else (result,)
    if not isinstance(first, linen.Module):
        return result, lambda: None, None
    if not inputs:
        raise UsageError(
            f"a Linen module has no parameters before it has seen an input; return "
            f"(module, *inputs) where only {type(first).__name__}(...) was returned."
        )
    variables = jax.eval_shape(first.init, jax.random.key(0), *inputs)
    call = "axes_from_linen(module, *inputs)"
    return variables["params"], lambda: axes_from_linen(first, *inputs), call


def _axes_of_model(read_axes: Callable[[], Any], call: str | None) -> Any:
    try:
        with library_errors():
            return read_axes()
    except UsageError as error:
        raise UsageError(
            f"{error}\nHere: --axes MODULE:NAME, a tree or rule of yours, such as what "
            f"optax_muon.{call} returns with others=."
        ) from error


def _of_equinox(result: Any) -> Any:
    """The parameters, if there are modules of Equinox; else None."""
    import equinox as eqx

    from optax_muon._leaves_of_equinox import is_parameter

    parts = jax.tree.leaves(result, is_leaf=lambda x: isinstance(x, eqx.Module))
    is_model = any(isinstance(part, eqx.Module) for part in parts)
    return eqx.filter(result, is_parameter) if is_model else None


def _check(source: str, params: Any) -> None:
    leaves = jax.tree.leaves_with_path(params)
    if not leaves:
        raise UsageError(
            f"--from {source}: it returned {params!r:.80}, without any parameters; "
            "return them, as a tree of arrays or shapes."
        )
    bad = [
        f"{path_name(path)} ({type(leaf).__name__})"
        for path, leaf in leaves
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
    ]
    if bad:
        raise UsageError(
            f"--from {source}: no arrays or shapes in what it returned: "
            f"{', '.join(bad)}; return parameters alone, an NNX or Equinox model, "
            "or a Linen module with its inputs."
        )


@contextlib.contextmanager
def _current_folder_on_path() -> Iterator[None]:
    """As `python -m` has it, unless it was told not to."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before
