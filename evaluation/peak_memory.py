"""The most memory that a network's tensors take at a time, found without computing anything.

Always true here: tensors are on torch's meta device, which knows shapes and types but holds no data, so a
network of any size can be followed on any machine in seconds. What is counted is what
`torch.cuda.max_memory_allocated` counts less the weights: every storage that an operation makes, until it
is let go. Attention takes no matrix of all pairs, as in the fused kernels of a GPU; workspaces of kernels
are not known here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(run: Callable[[], object], networks: Iterable[torch.nn.Module]) -> int:
    """Of `run`, beyond what `networks` hold; a result that leaves the device ends what is followed."""
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    living = LivingStorages(tensors)
    with torch.inference_mode(), FusedAttention(), living:
        try:
            run()
        except NotImplementedError as error:  # `.cpu()`: the last thing that a decoder does
            if "meta tensor" not in str(error):
                raise
    return living.peak


class LivingStorages(TorchDispatchMode):
    """Counts the bytes of storages made inside, as long as anything holds on to them.

    known: tensors that were there before, and are not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = [tensor.untyped_storage() for tensor in known]  # held, so that their ids stay theirs
        self._seen = {id(storage) for storage in self._known}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "meta":
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._seen:
            return
        self._seen.add(id(storage))
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._let_go, id(storage), storage.nbytes())

    def _let_go(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class FusedAttention(TorchFunctionMode):
    """Scaled dot-product attention as a GPU's fused kernels do it: its output is all that is made."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Everything else as it is."""
        if func is functional.scaled_dot_product_attention:
            query, _, value = args[:3] if len(args) >= 3 else _named(args, kwargs or {})
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    query, key, value = [*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :])]
    return query, key, value
