"""like_optax: the updates of optax.contrib.muon, through this library's pipeline."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_muon import _checks
from optax_muon._alike import checked_against_moments, checked_against_parameters
from optax_muon._casts import in_parameters_dtype
from optax_muon._decay import decay_mask
from optax_muon._dimension_numbers import (
    DimensionNumbersLike,
    as_iterated,
    rule_from_numbers,
)
from optax_muon._moments import keep_sharding
from optax_muon._momentum import DEBIASED, accumulate, momentum_weights
from optax_muon._muon import scale_by_muon
from optax_muon._optax_iteration import STANDARD, optax_iteration
from optax_muon._placement import whole_leaves
from optax_muon._resolution import ADAM, MUON, labels
from optax_muon._rules import Rule
from optax_muon._scaling import scale_by_shape
from optax_muon._sharding import ShardingLike, read_layout


def like_optax(
    learning_rate: _checks.ScalarOrSchedule,
    ns_coeffs: Any = STANDARD,
    ns_steps: Any = 5,
    beta: _checks.Scalar = 0.95,
    eps: _checks.Scalar = 1e-8,
    weight_decay: _checks.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    adam_b1: _checks.Scalar = 0.9,
    adam_b2: _checks.Scalar = 0.999,
    adam_eps_root: _checks.Scalar = 0.0,
    adam_weight_decay: _checks.Scalar = 0.0,
    adam_learning_rate: _checks.ScalarOrSchedule | None = None,
    muon_weight_dimension_numbers: DimensionNumbersLike = None,
    consistent_rms: _checks.Scalar | None = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformationExtraArgs:
    """`optax.contrib.muon`, argument for argument and update for update.

    What it adds is how the updates come about: matrices of one shape go through one
    iteration, and sharded ones move to owners instead of being gathered (`sharding`).
    `from_optax_state` makes its state of optax's. Without a schedule of the decay, mask
    and `consistent_rms` it is one of `muon` as well.

    Of the leaves that `muon_weight_dimension_numbers` does not send to AdamW, with
    gradient G and trace M in step t, for every matrix [fan_in, fan_out]:

      M <- beta M + (1 - beta) G
      D = beta M / (1 - beta^(t + 1)) + (1 - beta) G / (1 - beta^t) if nesterov
          else M / (1 - beta^t)
      O = p_k(... p_1(D / (||D||_F + eps))),   p_i(x) = a_i x + b_i x^3 + c_i x^5
      O <- <D, O> O if adaptive
      update = -learning_rate (scale(fan_in, fan_out) O + weight_decay W)

    These updates equal optax 0.2.8's up to rounding, some 1e-6 of a leaf's largest
    entry in float32. Narrower leaves are iterated on in their own dtype as well, but
    sums are float32. Products of float32 run at full precision on every platform, where
    optax leaves that to `jax_default_matmul_precision`.

    Args:
      learning_rate: a float, a scalar array, or a schedule of the step.
      ns_coeffs: (a, b, c) of every step; or rows of them, one a step; or "standard",
        Keller Jordan's, or "dion", which is our "you_jiacheng". They are not checked to
        be safe, as those of `NewtonSchulz` are.
      ns_steps: how many steps; of rows, all are taken, and may not be more than this.
      beta: decay of M, in [0, 1).
      eps: added to the norm, and AdamW's epsilon.
      weight_decay: decoupled decay of the matrices: a float, a scalar array, or a
        schedule.
      weight_decay_mask: a tree of bools (or prefix), or a function that gives one;
        False leaves a matrix without decay. It is not AdamW's.
      mu_dtype: dtype of M and of AdamW's first moment; None: each parameter's own.
      nesterov: whether D and AdamW (NAdamW, then) look one gradient ahead.
      adaptive: multiply by the dual norm <D, O>, as optax does: one sum over a whole
        leaf, the matrices of a batch together.
      preconditioning: "frobenius" as above; "spectral" with the largest singular value
        for the norm; "aol", rows divided by the roots of their sums in |D D^T|, which
        changes the polar factor; "schatten", the Schatten-4 norm. The last two know no
        eps.
      adam_b1, adam_b2, adam_eps_root, adam_weight_decay: of `optax.adamw`.
      adam_learning_rate: AdamW's own; None takes `learning_rate`.
      muon_weight_dimension_numbers: a tree (or prefix) of
        `optax.contrib.MuonDimensionNumbers | None`, None being AdamW; a function of
        the parameters that gives one; or None: every leaf of rank 2 is a matrix,
        embeddings and heads among them, and AdamW takes the others.
      consistent_rms: c for scale = c sqrt(max(fan_in, fan_out)); None for
        sqrt(max(1, fan_out / fan_in)).
      sharding: how all the parameters lie on a mesh, as in `muon`.

    Returns:
      The transformation; `find_state` finds the `MuonState` in its state. Updates have
      the parameters' dtype. `update` needs params.

    Raises:
      ValueError, TypeError: bad arguments; at init, one error that lists every leaf
        that its dimension numbers do not fit; complex and integer leaves.

    >>> params = {"kernel": jnp.eye(4, 8), "bias": jnp.zeros(8)}
    >>> ours, theirs = like_optax(0.01), optax.contrib.muon(0.01)
    >>> updates, _ = ours.update(params, ours.init(params), params)
    >>> expected, _ = theirs.update(params, theirs.init(params), params)
    >>> bool(jnp.allclose(updates["kernel"], expected["kernel"], atol=1e-8))
    True

    References:
      DeepMind, optax 0.2.8, optax.contrib.muon, 2026.
      Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
    """
    _check(learning_rate, adam_learning_rate, beta, adam_b1, adam_b2, consistent_rms)
    _checks.check_bool("adaptive", adaptive)
    stored_dtype = _checks.float_dtype("mu_dtype", mu_dtype)
    decay_of = decay_mask("weight_decay_mask", weight_decay_mask)
    iteration = optax_iteration(ns_coeffs, ns_steps, eps, preconditioning)

    def matrices(rule: Rule) -> optax.GradientTransformation:
        core = scale_by_muon(
            beta,
            nesterov=nesterov,
            momentum_form=DEBIASED,
            momentum_dtype=stored_dtype,
            orthogonalizer=iteration,
            scale=None,
            matrix_axes=as_iterated(rule),
            sharding=sharding,
        )
        return optax.chain(
            _times_dual_norms(core, beta, nesterov, sharding) if adaptive else core,
            optax.identity(),  # the place of muon's normalizer: its state fits here
            _scale(consistent_rms, rule, sharding),
            optax.add_decayed_weights(weight_decay, decay_of),
            optax.scale_by_learning_rate(learning_rate),
        )

    others = optax.adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        b1=adam_b1,
        b2=adam_b2,
        eps=eps,
        eps_root=adam_eps_root,
        mu_dtype=stored_dtype,
        weight_decay=adam_weight_decay,
        nesterov=nesterov,
    )
    others = keep_sharding(checked_against_moments(others), sharding, "like_optax")

    def routed(tree: Any) -> optax.GradientTransformationExtraArgs:
        rule = rule_from_numbers(muon_weight_dimension_numbers, tree, sharding)
        _, whole = whole_leaves(tree, sharding, "like_optax")
        return optax.partition(
            {MUON: matrices(rule), ADAM: others}, labels(whole, rule)
        )

    def init(params: Any) -> Any:
        return routed(params).init(params)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        return routed(updates).update(updates, state, params, **extra_args)

    tx = optax.GradientTransformationExtraArgs(init, update)
    return checked_against_parameters("like_optax", in_parameters_dtype(tx))


def _check(
    learning_rate: Any, adam_learning_rate: Any, beta: Any, b1: Any, b2: Any, rms: Any
) -> None:
    _checks.check_scalar("learning_rate", learning_rate)
    if adam_learning_rate is not None:
        _checks.check_scalar("adam_learning_rate", adam_learning_rate)
    _checks.check_coefficient("beta", beta)
    _checks.check_coefficient("adam_b1", b1)
    _checks.check_coefficient("adam_b2", b2)
    if rms is not None:
        _checks.check_coefficient("consistent_rms", rms, below=math.inf)


def _scale(
    consistent_rms: Any, rule: Rule, sharding: ShardingLike
) -> optax.GradientTransformation:
    if consistent_rms is None:
        return scale_by_shape("width", rule, sharding)
    # In two parts, because inject_hyperparams traces numbers.
    return optax.chain(
        scale_by_shape("sqrt_max", rule, sharding), optax.scale(consistent_rms)
    )


def _times_dual_norms(
    core: optax.GradientTransformation,
    beta: Any,
    nesterov: bool,
    sharding: ShardingLike,
) -> optax.GradientTransformation:
    """`core`, each leaf O of its updates times <D, O>, D being the direction.

    The dual norm of the spectral norm (Bernstein, Newhouse, arXiv 2409.20325), but of a
    leaf, as optax sums it, and not of each matrix.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        steps, new_state = core.update(updates, state, params)
        step = optax.safe_increment(state.count)
        weights = momentum_weights(beta, 1 - beta, DEBIASED, step)
        layout = read_layout(updates, sharding, "like_optax")
        leaves, treedef = jax.tree.flatten(steps)
        trees = (jax.tree.leaves(tree) for tree in (updates, state.momentum))
        scaled = []
        for index, (o, g, m) in enumerate(zip(leaves, *trees, strict=True)):
            g, m = jnp.asarray(g), jnp.asarray(m)
            _, direction = accumulate(g, m, weights, nesterov=nesterov)
            norm = jnp.sum(direction * o)
            over = tuple(name for axes in layout.entered(index) for name in axes)
            norm = jax.lax.psum(norm, over) if over else norm
            scaled.append((norm * o).astype(o.dtype))
        return jax.tree.unflatten(treedef, scaled), new_state

    return optax.GradientTransformation(core.init, update)
