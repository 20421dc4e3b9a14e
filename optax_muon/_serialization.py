"""Lets flax.serialization see inside the states, which are chex dataclasses.

Unregistered, `to_bytes` fails on them and `to_state_dict` quietly returns the object.
Flax is optional, and to import it takes longer than all of this library: states are
registered when somebody else imports flax.serialization, or has done so.
"""

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_FLAX = "flax.serialization"
_states: list[Any] = []


def register_state(cls: Any) -> Any:
    """Class decorator: registers the dataclass `cls` with flax.serialization."""
    _states.append(cls)
    if _FLAX in sys.modules:
        _register(_flax_serialization(), cls)
    return cls


def _register(serialization: Any, cls: Any) -> None:
    serialization.register_serialization_state(cls, _to_dict, _from_dict)


def _flax_serialization() -> Any:
    """The module; if another thread is still importing it, wait for that."""
    return importlib.import_module(_FLAX)


class _Finder(MetaPathFinder):
    """Finds flax.serialization where the finders after this one do."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != _FLAX:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                spec.loader = spec.loader and _RegisteringLoader(spec.loader)
                return spec
        return None


class _RegisteringLoader(Loader):
    """Runs the module as its own loader does, then registers all states."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None  # who imports a module gives it its spec
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        for cls in _states:
            _register(module, cls)


# First, as finders that come before it would hide Flax from it.
sys.meta_path.insert(0, _Finder())


def _to_dict(state: Any) -> dict[str, Any]:
    serialization = _flax_serialization()
    return {
        field.name: serialization.to_state_dict(getattr(state, field.name))
        for field in dataclasses.fields(state)
    }


def _from_dict(state: Any, stored: Any) -> Any:
    serialization = _flax_serialization()
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
