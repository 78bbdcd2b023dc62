"""SAELens's bridge, with hook points that outlive a dictionary.

Where a dictionary has been attached and taken off again, SAELens 6.54 leaves a new hook point without the old one's
name and conversions. From then on hooks there never fire (z, transcoders) or fire twice (the residual stream), without
a word.
"""

from __future__ import annotations

from typing import Any

from sae_lens.analysis import sae_transformer_bridge
from sae_lens.analysis.hooked_sae_transformer import set_deep_attr


class SAETransformerBridge(sae_transformer_bridge.SAETransformerBridge):
    """Puts the model's own hook point back when a dictionary is taken off."""

    def add_sae(self, sae: Any, use_error_term: bool | None = None) -> None:
        places = sae.cfg.metadata
        for alias in (places.hook_name, places.hook_name_out or places.hook_name):
            name = self._resolve_hook_name(alias)
            if name in self._hook_registry:
                self._own_points.setdefault(name, self._hook_registry[name])
        super().add_sae(sae, use_error_term=use_error_term)

    def _reset_sae(self, act_name: str, prev_wrapper: Any = None) -> None:
        if act_name in self._acts_to_saes:
            place = self._transcoder_output_hooks.get(act_name, self._resolve_hook_name(act_name))
            super()._reset_sae(act_name)
            self._put_back(place)
        if prev_wrapper is not None:
            self.add_sae(prev_wrapper.sae, use_error_term=prev_wrapper.use_error_term)

    def _put_back(self, place: str) -> None:
        point = self._own_points[place]
        name = point.name
        set_deep_attr(self, place, point)
        point.name = name  # being made an attribute renames a hook point
        self._hook_registry[place] = point

    @property
    def _own_points(self) -> dict[str, Any]:
        """Name -> the model's own hook point at every place where a dictionary has been."""
        return self.__dict__.setdefault("_points_before_dictionaries", {})
