"""Lets flax.serialization see inside the states, which are chex dataclasses.

Unregistered, `to_bytes` fails on them and `to_state_dict` quietly returns the object.
Flax is optional: without it there is nothing to register.
"""

import dataclasses
import importlib
import importlib.util
from typing import Any

# A Flax that is there but does not import is an error, not an absence.
_HAS_FLAX = importlib.util.find_spec("flax") is not None
serialization: Any = (
    importlib.import_module("flax.serialization") if _HAS_FLAX else None
)


def register_state(cls: Any) -> Any:
    """Class decorator: registers the dataclass `cls` with flax.serialization."""
    if serialization is not None:
        serialization.register_serialization_state(cls, _to_dict, _from_dict)
    return cls


def _to_dict(state: Any) -> dict[str, Any]:
    return {
        field.name: serialization.to_state_dict(getattr(state, field.name))
        for field in dataclasses.fields(state)
    }


def _from_dict(state: Any, stored: Any) -> Any:
    names = {field.name for field in dataclasses.fields(state)}
    if not isinstance(stored, dict) or set(stored) != names:
        found = sorted(stored) if isinstance(stored, dict) else type(stored).__name__
        raise ValueError(
            f"The stored {type(state).__name__} has fields {found}, expected "
            f"{sorted(names)}, at path {serialization.current_path()}: it was written "
            "by another optimizer or version."
        )
    return dataclasses.replace(
        state,
        **{
            name: serialization.from_state_dict(getattr(state, name), part, name)
            for name, part in stored.items()
        },
    )
