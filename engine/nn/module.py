"""Module: a tree of parameters, buffers and submodules that is filled by plain attribute assignment.

The three registries (``_parameters``, ``_buffers``, ``_modules``) hold what was assigned; every walk over the
tree below goes through ``named_modules`` and ``_named_members``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from .. import storage
from ..autograd import no_grad
from ..tensor import Tensor
from .parameter import Parameter

M = TypeVar("M", bound="Module")


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict(strict=False)`` could not match, by name."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


class HookHandle:
    """What ``register_forward_hook`` returns: ``remove()`` takes the hook off again."""

    def __init__(self, hooks: dict[HookHandle, Any]):
        self._hooks = hooks

    def remove(self) -> None:
        """Take the hook off; a second call does nothing."""
        self._hooks.pop(self, None)


class Module:
    """Base class of layers and models: assign parameters and modules in ``__init__``, compute in ``forward``.

    Args are the subclass's own; it must call ``super().__init__()`` before it assigns a parameter or a
    module.
    """

    training: bool

    def __init__(self) -> None:
        self._parameters: dict[str, Parameter | None] = {}
        self._buffers: dict[str, Tensor | None] = {}
        self._modules: dict[str, Module | None] = {}
        self._non_persistent: set[str] = set()
        self._forward_hooks: dict[HookHandle, Callable[..., Any]] = {}
        self.training = True

    # --- calling --------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; every subclass defines it."""
        raise NotImplementedError(f'Module [{type(self).__name__}] is missing the required "forward" function')

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.forward(*args, **kwargs)
        if not self._forward_hooks:
            return result
        for hook in tuple(self._forward_hooks.values()):  # a hook may remove itself
            changed = hook(self, args, result)
            result = result if changed is None else changed
        return result

    def register_forward_hook(self, hook: Callable[[Any, tuple[Any, ...], Any], Any]) -> HookHandle:
        """Call ``hook(module, args, output)`` after forward; its result, unless None, replaces the output."""
        handle = HookHandle(self._forward_hooks)
        self._forward_hooks[handle] = hook
        return handle

    # --- registration ---------------------------------------------------------------------------------------

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter under ``name``; None reserves the name (a layer without bias).

        Raises:
            AttributeError: before ``Module.__init__``. KeyError: a name with a dot, an empty or a taken one.
            TypeError: not a Parameter. ValueError: a result of other tensors instead of a leaf.
        """
        self._check_name("parameter", name, "_parameters")
        if param is not None and not isinstance(param, Parameter):
            raise _cannot_assign(param, "parameter", name, "nn.Parameter or None expected")
        if param is not None and param.grad_fn is not None:
            raise ValueError(f"parameter '{name}' must be a leaf tensor, got the result of {param.grad_fn!r}")
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that moves with the module but is not trained; in ``state_dict()`` if persistent.

        Raises:
            AttributeError, KeyError, TypeError: as ``register_parameter``.
        """
        self._check_name("buffer", name, "_buffers")
        if tensor is not None and not isinstance(tensor, Tensor):
            raise _cannot_assign(tensor, "buffer", name, "Tensor or None expected")
        self._buffers[name] = tensor
        (self._non_persistent.discard if persistent else self._non_persistent.add)(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a submodule under ``name``; None reserves the name.

        Raises:
            AttributeError, KeyError, TypeError: as ``register_parameter``.
        """
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"add_module: expected a Module as '{name}', got {_typename(module)}")
        self._check_name("module", name, "_modules")
        self._modules[name] = module

    def _check_name(self, kind: str, name: str, registry: str) -> None:
        if registry not in self.__dict__:
            raise AttributeError(f"cannot assign {kind} before Module.__init__() call")
        if not isinstance(name, str):
            raise TypeError(f"{kind} name should be a string, got {_typename(name)}")
        if not name or "." in name:
            raise KeyError(f"{kind} name can't be empty or contain \".\", got '{name}'")
        if hasattr(self, name) and name not in self.__dict__[registry]:
            raise KeyError(f"attribute '{name}' already exists")

    def __setattr__(self, name: str, value: Any) -> None:
        state = self.__dict__
        parameters = state.get("_parameters", {})
        if isinstance(value, Parameter):
            self._take_over(name, "parameter", "_parameters")
            self.register_parameter(name, value)
        elif isinstance(value, Module) and name not in parameters:
            self._take_over(name, "module", "_modules")
            self.add_module(name, value)
        elif name in parameters:
            self.register_parameter(name, value)
        elif name in state.get("_modules", ()):
            if value is not None:
                raise _cannot_assign(value, "child module", name, "nn.Module or None expected")
            state["_modules"][name] = None
        elif name in state.get("_buffers", ()):
            self.register_buffer(name, value, name not in self._non_persistent)
        else:
            object.__setattr__(self, name, value)

    def _take_over(self, name: str, kind: str, registry: str) -> None:
        """Forget whatever else ``name`` stood for, so that ``registry`` may have it."""
        if registry not in self.__dict__:
            raise AttributeError(f"cannot assign {kind} before Module.__init__() call")
        for other in ("_parameters", "_buffers", "_modules"):
            if other != registry:
                self.__dict__[other].pop(name, None)
        self._non_persistent.discard(name)
        self.__dict__.pop(name, None)

    def __getattr__(self, name: str) -> Any:  # reached only where ordinary lookup finds nothing
        state = self.__dict__
        for registry in ("_parameters", "_buffers", "_modules"):
            if registry in state and name in state[registry]:
                return state[registry][name]
        hint = "" if "_modules" in state else " (was super().__init__() called?)"
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'{hint}")

    def __delattr__(self, name: str) -> None:
        for registry in (self._parameters, self._buffers, self._modules):
            if name in registry:
                del registry[name]
                self._non_persistent.discard(name)
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parameters, *self._buffers, *self._modules})

    # --- walking the tree -----------------------------------------------------------------------------------

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """This module and all below it with their dotted names, each module once."""
        yield from self._walk(prefix, set() if remove_duplicate else None)

    def _walk(self, prefix: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, child in self._modules.items():
            if child is not None:
                yield from child._walk(_dotted(prefix, name), seen)

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules with their names, each once."""
        seen: set[int] = set()
        for name, child in self._modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                yield name, child

    def children(self) -> Iterator[Module]:
        """The direct submodules."""
        return (child for _, child in self.named_children())

    def _named_members(self, registry: str, prefix: str, recurse: bool, once: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, module in self.named_modules(prefix, once) if recurse else [(prefix, self)]:
            for name, member in getattr(module, registry).items():
                if member is not None and id(member) not in seen:
                    if once:
                        seen.add(id(member))
                    yield _dotted(path, name), member

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """The parameters with their dotted names; a shared one comes once, if ``remove_duplicate``."""
        return self._named_members("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters of this module and, with ``recurse``, of all below it."""
        return (param for _, param in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The buffers with their dotted names."""
        return self._named_members("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers of this module and, with ``recurse``, of all below it."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def apply(self: M, fn: Callable[[Module], Any]) -> M:
        """Call ``fn`` on every module below, then on this one; returns this module."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # --- modes and gradients --------------------------------------------------------------------------------

    def train(self: M, mode: bool = True) -> M:
        """Put this module and all below it in training mode (dropout active), or out of it."""
        if not isinstance(mode, bool):
            raise ValueError(f"train: expected the mode as a bool, got {mode!r}")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """The same as ``train(False)``."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Set ``requires_grad`` of every parameter."""
        for param in self.parameters():
            param.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of every parameter, or fill them with zeros."""
        for param in self.parameters():
            if param.grad is not None:
                param.grad = None if set_to_none else param.grad.detach().zero_()

    # --- moving and converting ------------------------------------------------------------------------------

    def to(self: M, *args: Any, device: Any = None, dtype: Any = None, non_blocking: bool = False) -> M:
        """Move parameters, their gradients and buffers to a device, the floating ones to a dtype; in place.

        ``to(device)``, ``to(dtype)``, ``to(device, dtype)``, ``to(tensor)``, or by keyword. ``non_blocking``
        is a hint that is not needed here.

        Raises:
            TypeError: a dtype that is not floating.
        """
        where, kind = _device_and_dtype(args, device, dtype)
        if kind is not None and not kind.is_floating_point:
            raise TypeError(f"{type(self).__name__}.to: expected a floating dtype, got {kind}")

        def convert(t: Tensor) -> Tensor:
            t = t if where is None else t.to(where)
            return t.to(kind) if kind is not None and t.dtype.is_floating_point else t

        with no_grad():
            for module in self.modules():
                for param in module._parameters.values():
                    if param is not None:
                        # The Parameter object stays: optimisers hold on to it.
                        moved = convert(param.data)
                        if moved._array is not param._array:
                            param.data = moved
                            param.grad = None if param.grad is None else convert(param.grad)
                for name, buffer in module._buffers.items():
                    module._buffers[name] = None if buffer is None else convert(buffer)
        return self

    def float(self: M) -> M:
        """Convert the floating parameters and buffers to float32."""
        return self.to(storage.float32)

    def double(self: M) -> M:
        """Convert the floating parameters and buffers to float64."""
        return self.to(storage.float64)

    def half(self: M) -> M:
        """Convert the floating parameters and buffers to float16."""
        return self.to(storage.float16)

    def bfloat16(self: M) -> M:
        """Convert the floating parameters and buffers to bfloat16."""
        return self.to(storage.bfloat16)

    def cpu(self: M) -> M:
        """Move to the CPU."""
        return self.to(storage.CPU)

    def cuda(self: M, index: int | None = None) -> M:
        """Move to a CUDA device, the current one unless ``index`` says which."""
        return self.to(storage.device("cuda", index))

    # --- saving and loading ---------------------------------------------------------------------------------

    def state_dict(self, *, keep_vars: bool = False) -> OrderedDict[str, Tensor]:
        """Parameters and persistent buffers by dotted name: their memory, detached unless ``keep_vars``."""
        found: OrderedDict[str, Tensor] = OrderedDict()
        for path, module in self.named_modules(remove_duplicate=False):
            kept = {n: b for n, b in module._buffers.items() if n not in module._non_persistent}
            for name, t in {**module._parameters, **kept}.items():
                if t is not None:
                    found[_dotted(path, name)] = t if keep_vars else t.detach()
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy the tensors of ``state_dict`` into the parameters and buffers of those names, in their dtype.

        Returns the names that only one side has; those are an error if ``strict``.

        Raises:
            TypeError: ``state_dict`` is not a mapping. RuntimeError: names (if ``strict``), shapes or types
                that do not match, all of them in one message; nothing has been changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"load_state_dict: expected a mapping from names to tensors, got {_typename(state_dict)}")
        own = self.state_dict(keep_vars=True)
        keys = IncompatibleKeys([k for k in own if k not in state_dict], [k for k in state_dict if k not in own])
        errors = []
        if strict and keys.missing_keys:
            errors.append(f"Missing key(s) in state_dict: {_quoted(keys.missing_keys)}. ")
        if strict and keys.unexpected_keys:
            errors.append(f"Unexpected key(s) in state_dict: {_quoted(keys.unexpected_keys)}. ")
        matched = [(name, t, state_dict[name]) for name, t in own.items() if name in state_dict]
        for name, t, value in matched:
            if not isinstance(value, Tensor):
                errors.append(f'"{name}": expected a Tensor, got {_typename(value)}.')
            elif value.shape != t.shape:
                errors.append(
                    f"size mismatch for {name}: copying a param with shape {value.shape} from checkpoint, "
                    f"the shape in current model is {t.shape}."
                )
        if errors:
            raise RuntimeError(f"Error(s) in loading state_dict for {type(self).__name__}:\n\t" + "\n\t".join(errors))
        with no_grad():
            for _, t, value in matched:
                t.copy_(value)
        return keys

    # --- repr -----------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands between the parentheses of the module's repr, before its submodules."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = extra.split("\n") if extra else []
        for name, child in self._modules.items():
            lines.append(f"({name}): " + repr(child).replace("\n", "\n  "))
        if not lines or (extra and len(lines) == 1):
            return f"{type(self).__name__}({extra})"
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _typename(value: object) -> str:
    return type(value).__name__


def _cannot_assign(value: object, kind: str, name: str, expected: str) -> TypeError:
    return TypeError(f"cannot assign '{_typename(value)}' as {kind} '{name}' ({expected})")


def _device_and_dtype(
    args: tuple[Any, ...], where: Any, kind: Any
) -> tuple[storage.device | None, storage.dtype | None]:
    """What the arguments of ``Module.to`` ask for."""
    for arg in args:
        if isinstance(arg, Tensor):
            where, kind = arg.device, arg.dtype
        elif isinstance(arg, (str, storage.device)):
            where = arg
        elif arg is not None:
            kind = arg
    return None if where is None else storage.device(where), None if kind is None else storage.as_dtype(kind)
