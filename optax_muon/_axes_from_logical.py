"""axes_from_logical: which axes are a matrix's, by the names that a model gives them.

Logical names say what an axis is ("embed", "mlp", "heads"), and where it lies says on
which side: Flax's kernels have their inputs first. So a rule for a name is a kind of
axis, and the kinds of a leaf's axes, in their order, decide it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from optax_muon._boxes import axis_names, is_box, params_of
from optax_muon._matrix_axes import MatrixAxes, UndecidedLeafError, path_name
from optax_muon._model_choices import ModelChoices

STACK, EXPERTS, SIDE, HEADS, HEAD_DIM, TABLE = KINDS = (
    "stack",
    "experts",
    "side",
    "heads",
    "head_dim",
    "table",
)

# The names of T5X (`standard_logical_axis_rules`, `moe_partitioning`) and of MaxText
# (`logical_axis_rules` of its base configuration, `kernel_axes` of its layers).
_NAMES = {
    STACK: "layers dense_layers moe_layers stack stage stages "
    "qkv mlp_activations num_activations",
    EXPERTS: "exp expert experts",
    SIDE: "embed embed_no_exp mlp expert_mlp joined_kv norm "
    "q_lora q_lora_up_proj kv_lora kv_lora_up_proj",
    HEADS: "heads q_heads kv_heads",
    HEAD_DIM: "kv head_dim kv_head_dim",
    TABLE: "vocab relpos_buckets abspos_buckets",
}

# Not only a Mapping to type checkers: those have no |.
LOGICAL_RULES: MappingProxyType[Any, Any] = MappingProxyType(
    {name: kind for kind, names in _NAMES.items() for name in names.split()}
)
"""The rules of `axes_from_logical` for the names that T5X and MaxText use."""


def axes_from_logical(
    rules: Mapping[Any, Any] = LOGICAL_RULES, *, adamw: Any = (), others: Any = None
) -> Callable[[Any], Any]:
    """Reads matrix axes off parameters that carry logical names of their axes.

    The result is a function: call it on the parameters with their names, once, and
    pass the tree that it returns as `matrix_axes`. (Training sees bare arrays, which
    have no names.) `rules` says of every name what kind of axis it is:

    - "side": by itself one side of a matrix ("embed", "mlp");
    - "heads", "head_dim": a head_dim after heads joins them to one side;
    - "stack": a batch of separate matrices ("layers"; "qkv" of a fused kernel);
    - "experts": a batch too, unless it comes last: then the outputs of a router;
    - "table": the whole leaf goes to AdamW ("vocab").

    Batches apart, a leaf with two sides is a matrix, inputs first, as Flax's kernels
    are; with one side or none it is a vector and goes to AdamW, as all leaves of rank
    0 and 1. ("embed", "heads", "kv") is embed x (heads kv), ("layers", "heads", "kv")
    the biases of queries. Scans and vmaps of Flax name the axis that they add if told
    to (`metadata_params`, `transform_metadata`), but where it is counted from the end,
    Flax 0.12 puts its name one place too early: count it from the front. (An axis of
    -1 is an error where sizes of layers differ; other sizes cannot tell.)

    A key of `rules` may also be the names of a whole leaf, with a `MatrixAxes`, or None
    for AdamW: {("embed", None): MatrixAxes(0, 1)}.

    Args:
      rules: kinds by name; `LOGICAL_RULES | {"hidden": "side"}` adds one.
      adamw: what goes to AdamW whatever its names are: a pattern (a regular expression
        of whole components of a path, joined by "/"), or a sequence of such.
      others: of leaves of rank 2 and more without any names, which are errors without
        it: a rule (path, leaf) -> MatrixAxes | None, such as `flax_matrix_axes`, or a
        dictionary from patterns to MatrixAxes | None.

    Returns:
      A function of the parameters with names: a tree of Linen's boxes
      (`nn.with_logical_partitioning`, `nn.with_partitioning`), from `model.init` or
      `jax.eval_shape` of it, before `nn.unbox`; an NNX module, whose `nnx.Param`s
      count, or a state (`out_sharding`, which `nnx.with_partitioning` writes). It
      returns a tree like them of MatrixAxes | None, and raises ValueError: one error
      that lists every leaf with names that `rules` lacks, with more than two sides,
      with more or fewer names than axes, or without names; or if no leaf has any, or
      an entry of `adamw` or `others` meets none.

    Raises:
      TypeError: `rules` that are no mapping from names to kinds; other arguments of
        other types.

    >>> import flax.linen as nn
    >>> init = nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp"))
    >>> model = nn.Dense(8, kernel_init=init)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4)))
    >>> axes_from_logical()(variables["params"])
    {'bias': None, 'kernel': MatrixAxes(fan_in=(0,), fan_out=(1,))}
    """
    _check_rules(rules)
    ModelChoices(adamw, others, None, classes=False)  # refuses what they must not be

    def axes_of(named: Any, *more: Any) -> Any:
        if more:  # called as a rule, once for each leaf
            raise TypeError(
                "axes_from_logical(rules) is no rule for matrix_axes: call it on the "
                "parameters that carry the names, and pass what it returns, as in "
                "matrix_axes=axes_from_logical(rules)(model)."
            )
        choices = ModelChoices(adamw, others, None, classes=False)
        return _axes_of_tree(params_of(named), rules, choices)

    return axes_of


def _axes_of_tree(named: Any, rules: Mapping[Any, Any], choices: ModelChoices) -> Any:
    flat, treedef = jax.tree_util.tree_flatten_with_path(named, is_leaf=is_box)
    if flat and not any(axis_names(leaf) for _, leaf in flat):
        raise ValueError(
            f"axes_from_logical found names of axes at none of {len(flat)} leaves. "
            "Pass Linen's variables before nn.unbox, or an NNX model whose parameters "
            "have out_sharding (nnx.with_partitioning)."
        )
    _check_places_of_stacks([leaf for _, leaf in flat], rules)
    found, failures = [], []
    for path, leaf in flat:
        try:
            found.append(_axes_of_leaf(path, leaf, rules, choices))
        except UndecidedLeafError as error:
            shapes = ", ".join(str(jnp.shape(x)) for x in jax.tree.leaves(leaf))
            names = axis_names(leaf) or "no names"
            failures.append(f"  {path_name(path)}  {shapes} {names}: {error}")
    if failures:
        raise ValueError(
            "axes_from_logical cannot decide these leaves:\n"
            + "\n".join(failures)
            + "\nAdd what is missing to the rules: optax_muon.LOGICAL_RULES | {name: "
            f"kind}}, with a kind of {KINDS}, or | {{names: MatrixAxes(...) or None}} "
            "for all leaves with exactly these names; others=, a rule such as "
            "optax_muon.flax_matrix_axes, decides leaves without names."
        )
    choices.check_used("axes_from_logical")
    return jax.tree.unflatten(treedef, found)


def _check_places_of_stacks(leaves: list[Any], rules: Mapping[Any, Any]) -> None:
    """Raise if a stack's name lies before the last axis and its length on the last.

    `list.insert(-1, name)`, which Flax 0.12 calls for scans along -1, does that.
    """
    named = [
        (axis_names(leaf), jnp.shape(array))
        for leaf in leaves
        for array in jax.tree.leaves(leaf)[:1]
    ]
    for stack in {name for names, _ in named for name in names}:
        if rules.get(stack) != STACK:
            continue
        mine = [(names, shape) for names, shape in named if stack in names]
        if any(names[-2:-1] != (stack,) or len(names) != len(x) for names, x in mine):
            continue
        lengths, ends = ({shape[at] for _, shape in mine} for at in (-2, -1))
        if len(lengths) > 1 and len(ends) == 1:
            raise ValueError(
                f"axes_from_logical: {stack!r} names axes of lengths {sorted(lengths)}"
                ", all of them just before a last axis of length "
                f"{ends.pop()}. So Flax names an axis that nn.scan or nnx.vmap adds at "
                "-1: one place too early. Count that axis from the front, or give "
                "matrix_axes a tree of your own."
            )


def _axes_of_leaf(
    path: Any, leaf: Any, rules: Mapping[Any, Any], choices: ModelChoices
) -> MatrixAxes | None:
    arrays = jax.tree.leaves(leaf)
    if len(arrays) > 1:
        raise UndecidedLeafError(f"one box around {len(arrays)} arrays")
    if choices.sends_to_adamw((path,), ()):
        return None
    if not arrays or len(jnp.shape(arrays[0])) < 2:
        return None
    shape, names = jnp.shape(arrays[0]), axis_names(leaf)
    if not names:
        array = jax.ShapeDtypeStruct(shape, jnp.result_type(arrays[0]))
        reason = UndecidedLeafError("nothing says what its axes are")
        return choices.of_others((path,), array, (), reason)
    if len(names) != len(shape):
        raise UndecidedLeafError(
            f"{len(names)} names for {len(shape)} axes; transforms name new axes by "
            "their metadata, partition_name"
        )
    axes = _axes_of_names(names, rules)
    if axes is not None:
        axes.view(shape)  # raises unless they fit
    return axes


def _axes_of_names(
    names: tuple[Any, ...], rules: Mapping[Any, Any]
) -> MatrixAxes | None:
    if names in rules:
        return rules[names]
    unknown = [name for name in names if not isinstance(name, str) or name not in rules]
    if unknown:
        raise UndecidedLeafError(f"the rules do not say what {unknown} are")
    kinds = [rules[name] for name in names]
    if TABLE in kinds:
        return None
    sides = _sides(kinds)
    if len(sides) > 2:
        told = ", ".join(" ".join(names[axis] for axis in side) for side in sides)
        raise UndecidedLeafError(f"{len(sides)} sides, where a matrix has two: {told}")
    return MatrixAxes(*sides) if len(sides) == 2 else None


def _sides(kinds: list[str]) -> list[tuple[int, ...]]:
    """The axes of each side, in order; batch axes, wherever they lie, are left out."""
    axes = [axis for axis, kind in enumerate(kinds) if kind != STACK]
    sides: list[tuple[int, ...]] = []
    before = None
    for place, axis in enumerate(axes):
        kind = kinds[axis]
        if kind == EXPERTS and place < len(axes) - 1:
            continue
        if kind == HEAD_DIM and before == HEADS:
            sides[-1] += (axis,)
        else:
            sides.append((axis,))
        before = kind
    return sides


def _check_rules(rules: Any) -> None:
    entries = rules.items() if isinstance(rules, Mapping) else [("rules", rules)]
    bad = [f"{name!r}: {rule!r:.40}" for name, rule in entries if not _fits(name, rule)]
    if bad or not isinstance(rules, Mapping):
        raise TypeError(
            f"rules must map names to kinds of axes, {KINDS}, or all names of a leaf, "
            "as a tuple, to a MatrixAxes or None; they are no mapping or hold\n  "
            + "\n  ".join(bad)
            + "\nMesh axes, as in Flax's own rules, do not say what an axis is; and "
            "parameters come second: axes_from_logical(rules)(parameters)."
        )


def _fits(name: Any, rule: Any) -> bool:
    if isinstance(name, tuple):
        return rule is None or type(rule) is MatrixAxes
    return isinstance(name, str) and isinstance(rule, str) and rule in KINDS
