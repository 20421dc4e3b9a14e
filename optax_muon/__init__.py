"""Muon for JAX: one optax gradient transformation, right on every leaf.

The pipeline, in the order of the code:

    gradient -> route (_route, _resolution; _rules, _combinators, _axes_from_model,
                       _axes_from_logical, _haiku)
      -> momentum (_trace, _momentum; _soap) -> balance neurons (_norms)
      -> [ view as matrices (_placement) -> stack (_stacking)
           -> move shards to owners (_exchange) -> polar factor (_functions, _parts)
           -> move back (_exchange) -> unstack (_splitting) ]
      -> normalize (_normalize, _norms, _dual_norm) -> scale by shape (_scaling)
      -> decay, learning rate (_decay), or a step on a sphere (_hyperball)
      -> clip queries and keys (_qk_clip) -> update

of shards, before anything is moved:

    argument or types (_sharding, _shardings_of) -> placement of a matrix (_placement)
      -> who does what (_division) -> collectives (_mesh_axes)

of axes that are read off a model:

    its leaves (_leaves_of_nnx, _leaves_of_linen, _leaves_of_equinox)
      -> what layers say of them (_layers)
      -> stacked axes (_stack_axes) -> a decision for each (_model_leaves)

of orthogonalization by Newton-Schulz:

    configuration (_orthogonalizers) -> coefficients (_coefficients, _polynomials)
      -> form for the shape (_choice, _cost, _rounding)
      -> iteration (_newton_schulz) -> _products

and of what is recorded of a run, on request:

    monitor (_monitor, _watch) -> numbers of each matrix (_measurements)
      -> singular values by products with vectors (_singular_values, _bidiagonal)
      -> read_records (_records)

`scale_by_muon` is the middle of it, `muon` the whole, `orthogonalize` the part in
brackets; other whole optimizers are in `_published`, `_published_chains`, `_scion` and
`_like_optax`. `plan` shows the routing and what a step costs, `explain` what runs for a
shape; `python -m optax_muon` (_cli) does so from a shell. `optax_muon.plot` draws.

Convention: a matrix is [fan_in, fan_out], as Flax kernels are.
"""

from optax_muon._attention import (
    dot_product_attention_with_max_logits as dot_product_attention_with_max_logits,
)
from optax_muon._attention import (
    sowing_dot_product_attention as sowing_dot_product_attention,
)
from optax_muon._axes_from_logical import LOGICAL_RULES as LOGICAL_RULES
from optax_muon._axes_from_logical import axes_from_logical as axes_from_logical
from optax_muon._axes_from_model import axes_from_equinox as axes_from_equinox
from optax_muon._axes_from_model import axes_from_linen as axes_from_linen
from optax_muon._axes_from_model import axes_from_nnx as axes_from_nnx
from optax_muon._choice import Choice as Choice
from optax_muon._coefficients import COEFFICIENTS as COEFFICIENTS
from optax_muon._combinators import fused as fused
from optax_muon._combinators import stacked as stacked
from optax_muon._convert import from_optax_state as from_optax_state
from optax_muon._convert import to_optax_state as to_optax_state
from optax_muon._decay import (
    add_independent_weight_decay as add_independent_weight_decay,
)
from optax_muon._decay import add_weight_decay as add_weight_decay
from optax_muon._dion2 import scale_by_dion2 as scale_by_dion2
from optax_muon._dual_norm import scale_by_dual_norm as scale_by_dual_norm
from optax_muon._haiku import haiku_matrix_axes as haiku_matrix_axes
from optax_muon._hyperball import step_on_hyperball as step_on_hyperball
from optax_muon._like_optax import like_optax as like_optax
from optax_muon._lmo import NormBall as NormBall
from optax_muon._lmo import flax_norm_balls as flax_norm_balls
from optax_muon._lmo import scale_by_lmo as scale_by_lmo
from optax_muon._matrix_axes import MatrixAxes as MatrixAxes
from optax_muon._matrix_axes import UndecidedLeafError as UndecidedLeafError
from optax_muon._monitor import monitor as monitor
from optax_muon._muon import scale_by_muon as scale_by_muon
from optax_muon._normalize import normalize_entries as normalize_entries
from optax_muon._normalize import normalize_neurons as normalize_neurons
from optax_muon._norms import equilibrate as equilibrate
from optax_muon._norms import snap_frobenius as snap_frobenius
from optax_muon._orthogonalize import orthogonalize as orthogonalize
from optax_muon._orthogonalize import orthogonalize_updates as orthogonalize_updates
from optax_muon._orthogonalizers import NewtonSchulz as NewtonSchulz
from optax_muon._orthogonalizers import Qdwh as Qdwh
from optax_muon._orthogonalizers import Svd as Svd
from optax_muon._orthogonalizers import explain as explain
from optax_muon._plan import Plan as Plan
from optax_muon._plan_rows import PlanBucket as PlanBucket
from optax_muon._plan_rows import PlanLeaf as PlanLeaf
from optax_muon._planning import plan as plan
from optax_muon._polar_express import (
    polar_express_coefficients as polar_express_coefficients,
)
from optax_muon._published import deepseek_v4 as deepseek_v4
from optax_muon._published import keller_jordan as keller_jordan
from optax_muon._published import moonlight as moonlight
from optax_muon._published import muon_clip as muon_clip
from optax_muon._published import normuon as normuon
from optax_muon._published_chains import muon_hyperball as muon_hyperball
from optax_muon._published_chains import soap_muon as soap_muon
from optax_muon._published_chains import speedrun as speedrun
from optax_muon._qk_clip import clip_qk as clip_qk
from optax_muon._qk_clip import qk_clip as qk_clip
from optax_muon._qk_leaves import QKLeaf as QKLeaf
from optax_muon._qk_rules import flax_qk_leaves as flax_qk_leaves
from optax_muon._qk_rules import mla_qk_leaves as mla_qk_leaves
from optax_muon._recipes import muon as muon
from optax_muon._records import MonitorState as MonitorState
from optax_muon._records import read_records as read_records
from optax_muon._route import route as route
from optax_muon._rules import flax_matrix_axes as flax_matrix_axes
from optax_muon._scaling import scale_by_shape as scale_by_shape
from optax_muon._scion import scion as scion
from optax_muon._shampoo import scale_by_shampoo as scale_by_shampoo
from optax_muon._sharding import KeepOut as KeepOut
from optax_muon._shardings_of import shardings_of as shardings_of
from optax_muon._soap import scale_by_soap as scale_by_soap
from optax_muon._soap_state import SoapState as SoapState
from optax_muon._trace import MuonState as MuonState
from optax_muon._trace import accumulate_momentum as accumulate_momentum
from optax_muon._trace import find_state as find_state

# For documentation tools and `from optax_muon import *`: the names above.
__all__ = [name for name in dir() if not name.startswith("_")]
