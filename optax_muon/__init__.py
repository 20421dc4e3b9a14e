"""Muon for JAX: one optax gradient transformation, right on every leaf.

The pipeline, in the order of the code:

    gradient -> route (_routing, _resolution) -> momentum (_momentum)
      -> [ view as matrices (_placement) -> stack (_stacking)
           -> move shards to owners (_exchange) -> polar factor (_functions)
           -> move back (_exchange) -> unstack (_splitting)
           -> normalize neurons (_normalize) -> scale by shape (_scaling) ]
      -> decay (_decay) -> learning rate -> update

of shards, before anything is moved:

    argument or types (_sharding, _shardings_of) -> placement of a matrix (_placement)
      -> who does what (_division) -> collectives (_mesh_axes)

and of orthogonalization by Newton-Schulz:

    configuration (_orthogonalizers) -> coefficients (_coefficients, _polynomials)
      -> form for the shape (_choice, _cost, _rounding)
      -> iteration (_newton_schulz) -> _products

`scale_by_muon` is the middle of it, `muon` the whole, `orthogonalize` the part from
stack to unstack; `plan` shows the routing and `explain` what runs for a shape.

Convention: a matrix is [fan_in, fan_out], as Flax kernels are.
"""

from optax_muon._choice import Choice as Choice
from optax_muon._coefficients import COEFFICIENTS as COEFFICIENTS
from optax_muon._matrix_axes import MatrixAxes as MatrixAxes
from optax_muon._matrix_axes import UndecidedLeafError as UndecidedLeafError
from optax_muon._muon import MuonState as MuonState
from optax_muon._muon import find_state as find_state
from optax_muon._muon import scale_by_muon as scale_by_muon
from optax_muon._normalize import normalize_neurons as normalize_neurons
from optax_muon._orthogonalize import orthogonalize as orthogonalize
from optax_muon._orthogonalizers import NewtonSchulz as NewtonSchulz
from optax_muon._orthogonalizers import Qdwh as Qdwh
from optax_muon._orthogonalizers import Svd as Svd
from optax_muon._orthogonalizers import explain as explain
from optax_muon._plan import plan as plan
from optax_muon._polar_express import (
    polar_express_coefficients as polar_express_coefficients,
)
from optax_muon._recipes import muon as muon
from optax_muon._routing import flax_matrix_axes as flax_matrix_axes
from optax_muon._routing import fused as fused
from optax_muon._routing import stacked as stacked
from optax_muon._scaling import scale_by_shape as scale_by_shape
from optax_muon._shampoo import scale_by_shampoo as scale_by_shampoo
from optax_muon._sharding import KeepOut as KeepOut
from optax_muon._shardings_of import shardings_of as shardings_of

# For documentation tools and `from optax_muon import *`: the names above.
__all__ = [name for name in dir() if not name.startswith("_")]
