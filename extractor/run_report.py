"""The report of a run, added up over its parts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RunReport:
    """Counts, failures and times of a run.

    Attributes:
        extracted: number of views whose features were computed.
        present: number of views whose features the store had already.
        failed: (image file, reason) for images that could not be used.
        bytes_stored: bytes written.
        forwards: network forwards, one for each view and grid step.
        fallbacks: views that overflowed in half precision and were computed in float32.
        interrupted: whether the run stopped before all was done.
        seconds: {stage: seconds}, summed over threads.
    """

    extracted: int = 0
    present: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    bytes_stored: int = 0
    forwards: int = 0
    fallbacks: list[str] = field(default_factory=list)
    interrupted: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._left_out = set(self.failed)  # as there may be very many

    def add(self, other: RunReport) -> None:
        """Add the report of another part of the run."""
        self.extracted += other.extracted
        self.present += other.present
        for image, reason in other.failed:
            self.leave_out(image, reason)
        self.bytes_stored += other.bytes_stored
        self.forwards += other.forwards
        self.fallbacks += other.fallbacks
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def leave_out(self, image: str, reason: str) -> None:
        """Record an image that could not be used, once although each of its views reports it."""
        if (image, reason) not in self._left_out:
            self._left_out.add((image, reason))
            self.failed.append((image, reason))

    def counts(self) -> dict[str, int]:
        """The counts as numbers, as a record in the store has them."""
        return {
            "extracted": self.extracted,
            "present": self.present,
            "failed": len(self.failed),
            "bytes_stored": self.bytes_stored,
            "forwards": self.forwards,
            "fallbacks": len(self.fallbacks),
        }
