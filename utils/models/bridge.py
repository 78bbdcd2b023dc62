"""SAELens's bridge, mended where dictionaries share a place and where one is taken off again.

What goes wrong in SAELens 6.54 is told with minimal code in docs/upstream.md, entries 1 to 3;
tests/course/test_upstream.py fails when SAELens mends one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from sae_lens import SAE
from sae_lens.analysis import sae_transformer_bridge
from sae_lens.analysis.hooked_sae_transformer import set_deep_attr


class SAETransformerBridge(sae_transformer_bridge.SAETransformerBridge):
    """A place has one dictionary at a time, and afterwards its own hook point with its hooks again.

    A dictionary's places are where it reads and where it writes, by whichever of their names. Attaching one takes off
    those that it shares a place with. `saes`, and with it `run_with_saes` and its like, undoes last in, first out, also
    after an error.
    """

    def add_sae(self, sae: Any, use_error_term: bool | None = None) -> None:
        read, written = self._places(sae)
        if read not in self._hook_registry or written not in self._hook_registry:
            super().add_sae(sae, use_error_term=use_error_term)  # says so and attaches nothing
            return
        for name in self._sharing(sae):
            self._reset_sae(name)
        reader, replaced = self._hook_registry[read], self._hook_registry[written]
        others = list(reader.fwd_hooks)
        super().add_sae(sae, use_error_term=use_error_term)
        capturing = [hook for hook in reader.fwd_hooks if hook not in others]
        self._acts_to_saes[sae.cfg.metadata.hook_name].before = reader, capturing, replaced

    @contextmanager
    def saes(
        self, saes: SAE[Any] | Sequence[SAE[Any]] = (), reset_saes_end: bool = True, use_error_term: bool | None = None
    ) -> Iterator[SAETransformerBridge]:
        with ExitStack() as ending:
            for sae in [saes] if isinstance(saes, SAE) else saes:
                if reset_saes_end:
                    ending.callback(self._undo, sae, [self._acts_to_saes[name] for name in self._sharing(sae)])
                self.add_sae(sae, use_error_term=use_error_term)
            yield self

    def _undo(self, sae: SAE[Any], taken_off: list[Any]) -> None:
        """Take off what shares a place with a dictionary, itself too, and attach again what it had taken off."""
        for name in self._sharing(sae):
            self._reset_sae(name)
        for wrapper in taken_off:
            self.add_sae(wrapper.sae, use_error_term=wrapper.use_error_term)

    def _reset_sae(self, act_name: str, prev_wrapper: Any = None) -> None:
        if act_name not in self._acts_to_saes:
            super()._reset_sae(act_name)  # says so and does nothing
            return
        wrapper = self._acts_to_saes[act_name]
        _, written = self._places(wrapper.sae)
        reader, capturing, replaced = wrapper.before
        others = [hook for hook in reader.fwd_hooks if hook not in capturing]
        reader.fwd_hooks = capturing  # all that are there are about to be removed
        super()._reset_sae(act_name)
        reader.fwd_hooks = others
        name = replaced.name
        set_deep_attr(self, written, replaced)
        replaced.name = name  # being made an attribute renames a hook point
        self._hook_registry[written] = replaced

    def _sharing(self, sae: SAE[Any]) -> list[str]:
        """The names under which dictionaries are attached that share a place with this one."""
        places = set(self._places(sae))
        return [name for name, wrapper in self._acts_to_saes.items() if places & set(self._places(wrapper.sae))]

    def _places(self, sae: SAE[Any]) -> tuple[str, str]:
        """Where a dictionary reads and where it writes, by the names that the hook points are registered under."""
        at = sae.cfg.metadata
        return self._resolve_hook_name(at.hook_name), self._resolve_hook_name(at.hook_name_out or at.hook_name)
