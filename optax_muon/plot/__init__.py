"""Figures: maps of coefficient tables, spectra, a plan's shares, and diagnostics.

    import optax_muon.plot  # the extra `plot`: pip install 'optax_muon[plot]'

Every function returns a matplotlib `Figure`, ready for `savefig`, which needs no
display and leaves pyplot alone; a notebook shows it. With `axes=` it draws into axes of
yours, and returns their figure.
"""

from optax_muon.plot._plan import plan as plan
from optax_muon.plot._records import records as records
from optax_muon.plot._singular_values import singular_values as singular_values
from optax_muon.plot._spectra import spectra as spectra

__all__ = ["plan", "records", "singular_values", "spectra"]
