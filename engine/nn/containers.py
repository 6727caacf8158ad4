"""Modules that hold modules (or parameters): Sequential, ModuleList, ModuleDict, ParameterList."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, TypeVar

from ..tensor import Tensor
from .layers import activation_of, can_take_activation
from .module import Module
from .parameter import Parameter

S = TypeVar("S", bound="_Indexed")


class _Indexed(Module):
    """What Sequential and ModuleList share: modules under the names "0", "1", … or names of one's own."""

    _modules: dict[str, Module]  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def _name_at(self, index: int) -> str:
        names = list(self._modules)
        if not -len(names) <= index < len(names):
            raise IndexError(f"index {index} is out of range for {type(self).__name__} of length {len(names)}")
        return names[index]

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._from(list(self._modules.items())[index])
        return self._modules[self._name_at(index)]

    def _from(self, items: list[tuple[str, Module]]) -> Module:
        raise NotImplementedError

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, self._name_at(index), module)

    def __delitem__(self, index: int | slice) -> None:
        names = list(self._modules)[index] if isinstance(index, slice) else [self._name_at(index)]
        for name in names:
            del self._modules[name]
        self._renumber(self)

    def _renumber(self, modules: Iterable[Module]) -> None:
        self._modules = {str(i): module for i, module in enumerate(list(modules))}

    def append(self: S, module: Module) -> S:
        """Add a module at the end; returns this container."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self: S, modules: Iterable[Module]) -> S:
        """Add modules at the end; returns this container."""
        for module in list(modules):
            self.append(module)
        return self

    def __iadd__(self: S, modules: Iterable[Module]) -> S:
        return self.extend(modules)

    def insert(self: S, index: int, module: Module) -> S:
        """Add a module before the one at ``index``; all are numbered anew. Returns this container.

        Raises:
            TypeError: not a Module. IndexError: beyond either end.
        """
        if not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__}.insert: expected a Module, got {type(module).__name__}")
        if not -len(self) <= index <= len(self):
            raise IndexError(f"index {index} is out of range for {type(self).__name__} of length {len(self)}")
        modules = list(self)
        modules.insert(index, module)
        self._renumber(modules)
        return self

    def pop(self, index: int) -> Module:
        """Remove the module at ``index`` and return it."""
        module: Module = self[index]
        del self[index]
        return module


class Sequential(_Indexed):
    """Modules called one after the other, each with the result of the one before.

    ``Sequential(a, b, …)`` numbers them; ``Sequential(OrderedDict([("name", a), …]))`` names them. A slice of
    one is a Sequential of the same modules under the same names.
    """

    def __init__(self, *modules: Any):
        super().__init__()
        named = modules[0].items() if len(modules) == 1 and isinstance(modules[0], Mapping) else enumerate(modules)
        for name, module in named:
            self.add_module(str(name), module)

    def _from(self, items: list[tuple[str, Module]]) -> Module:
        return type(self)(OrderedDict(items))

    def forward(self, input: Any) -> Any:
        """The result of the last module; ``input`` itself if there is none.

        A Linear and the activation behind it are one kernel, unless a hook asks for what lies between them.
        """
        linear: Any = None  # it waits for what follows
        for module in self._modules.values():
            if linear is not None:
                name = activation_of(module)
                input = linear.activated(input, name)
                linear = None
                if name is not None:
                    continue
            if can_take_activation(module):
                linear = module
            else:
                input = module(input)
        return input if linear is None else linear(input)


class ModuleList(_Indexed):
    """A list of modules that are registered; it has no ``forward``."""

    def __init__(self, modules: Iterable[Module] | None = None):
        super().__init__()
        self.extend(modules or ())

    def _from(self, items: list[tuple[str, Module]]) -> Module:
        return type(self)(module for _, module in items)

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *other])

    def __repr__(self) -> str:
        """As a Module's, but a run of modules that look the same takes one line: ``(0-3): 4 x …``."""
        runs: list[tuple[int, int, str]] = []  # first, last, what each looks like
        for i, module in enumerate(self):
            look = repr(module)
            if runs and runs[-1][2] == look:
                runs[-1] = (runs[-1][0], i, look)
            else:
                runs.append((i, i, look))
        lines = [
            f"  ({first}): {look}" if first == last else f"  ({first}-{last}): {last - first + 1} x {look}"
            for first, last, look in runs
        ]
        inside = "".join("\n" + line.replace("\n", "\n  ") for line in lines)
        return f"{type(self).__name__}({inside}\n)" if lines else f"{type(self).__name__}()"


class ModuleDict(Module):
    """A dictionary from names to modules that are registered; it has no ``forward``."""

    _modules: dict[str, Module]  # type: ignore[assignment]

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] | None = None):
        super().__init__()
        self.update(modules or {})

    def __getitem__(self, key: str) -> Module:
        return self._modules[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.add_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: object) -> bool:
        return key in self._modules

    def keys(self) -> KeysView[str]:
        """The names, in the order of their first assignment."""
        return self._modules.keys()

    def values(self) -> ValuesView[Module]:
        """The modules, in the order of their names' first assignment."""
        return self._modules.values()

    def items(self) -> ItemsView[str, Module]:
        """Names and modules."""
        return self._modules.items()

    def pop(self, key: str) -> Module:
        """Remove the module of that name and return it."""
        return self._modules.pop(key)

    def clear(self) -> None:
        """Remove all."""
        self._modules.clear()

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Set the modules of a mapping, or of (name, module) pairs."""
        for key, module in modules.items() if isinstance(modules, (Mapping, ModuleDict)) else modules:
            self[key] = module


class ParameterList(Module):
    """A list of parameters that are registered; tensors put in become Parameters."""

    def __init__(self, values: Iterable[Tensor] | None = None):
        super().__init__()
        self.extend(values or ())

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parameters.values())

    def _name_at(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for ParameterList of length {len(self)}")
        return str(index % len(self))

    def __getitem__(self, index: int) -> Any:
        return self._parameters[self._name_at(index)]

    def __setitem__(self, index: int, value: Tensor) -> None:
        self.register_parameter(self._name_at(index), value if isinstance(value, Parameter) else Parameter(value))

    def append(self, value: Tensor) -> ParameterList:
        """Add a parameter at the end; returns this list."""
        self.register_parameter(str(len(self)), value if isinstance(value, Parameter) else Parameter(value))
        return self

    def extend(self, values: Iterable[Tensor]) -> ParameterList:
        """Add parameters at the end; returns this list."""
        for value in list(values):
            self.append(value)
        return self

    def extra_repr(self) -> str:
        """One line per parameter."""
        return "\n".join(
            f"  ({i}): Parameter containing: [{p.dtype} of size {'x'.join(map(str, p.shape))}"
            + (f" ({p.device})]" if p.device.type == "cuda" else "]")
            for i, p in enumerate(self)
        )
