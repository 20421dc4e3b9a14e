"""The field: all that compete, by name.

To add one, add it to `variants` or `competitors`; nothing else has to know. One that is
changed needs a new name, or `convergence.py --forget NAME`: its rows are another's.
"""

import functools

import optax_muon
from contestants import SHARED, Contestant, recipe
from rivals import ADAMW, CONTRIB, SPLIT, absent, rollfast_muon

muon = functools.partial(optax_muon.muon, **SHARED)
DEFAULT = recipe("muon", "muon()", muon, everywhere=True)


def variants() -> tuple[Contestant, ...]:
    """The default with one part changed."""
    normalizer = optax_muon.normalize_neurons()
    return (
        recipe(
            "normalize_neurons",
            "muon(normalizer=normalize_neurons())",
            functools.partial(muon, normalizer=normalizer),
        ),
    )


@functools.cache
def competitors() -> dict[str, Contestant]:
    """All that can run here."""
    peers = () if absent() else (rollfast_muon(),)
    found = (DEFAULT, *variants(), ADAMW, SPLIT, CONTRIB, *peers)
    return {one.name: one for one in found}
