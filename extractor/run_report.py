"""What a run did, added up over its parts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RunReport:
    """What a run did.

    Attributes:
        extracted: views of images whose features were computed.
        present: views of images whose features were there already.
        failed: (image file, reason) for images that could not be used.
        bytes_stored: bytes written.
        forwards: network forwards.
        fallbacks: views that half precision could not hold and float32 could.
        interrupted: stopped before all was done.
        seconds: by stage, summed over threads.
    """

    extracted: int = 0
    present: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    bytes_stored: int = 0
    forwards: int = 0
    fallbacks: list[str] = field(default_factory=list)
    interrupted: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, other: RunReport) -> None:
        """What another part of the run did."""
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
        """An image that could not be used; each of its views says so."""
        if (image, reason) not in self.failed:
            self.failed.append((image, reason))

    def counts(self) -> dict[str, int]:
        """All of it as numbers."""
        return {
            "extracted": self.extracted,
            "present": self.present,
            "failed": len(self.failed),
            "bytes_stored": self.bytes_stored,
            "forwards": self.forwards,
            "fallbacks": len(self.fallbacks),
        }
