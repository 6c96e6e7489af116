"""Evaluation protocols by name and edition."""

from __future__ import annotations

from collections.abc import Callable

from interpreter.errors import ConfigurationError
from interpreter.protocols.lesions import idrid_lesions
from interpreter.protocols.protocol import Edition, Protocol
from interpreter.protocols.vessels import cross_modality, few_label, lodo_vessels, lodo_vessels_compat

PROTOCOLS: dict[tuple[str, Edition], Callable[[], Protocol]] = {
    ("lodo-vessels", "strict"): lodo_vessels,
    ("lodo-vessels", "aadg-compat"): lodo_vessels_compat,
    ("cross-modality", "strict"): cross_modality,
    ("idrid-lesions", "strict"): idrid_lesions,
    ("few-label", "strict"): few_label,
}


def protocol_named(name: str, edition: Edition) -> Protocol:
    """Build the protocol of that name and edition; a ConfigurationError lists the known ones."""
    if (name, edition) not in PROTOCOLS:
        known = ", ".join(f"{known} ({edition})" for known, edition in PROTOCOLS)
        raise ConfigurationError(f"no protocol {name!r} in the edition {edition!r}; there are {known}")
    return PROTOCOLS[name, edition]()
