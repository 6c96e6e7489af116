"""Everything that can go wrong in the store.

StoreError
├── SpecError              an inconsistent FeatureSpec
│   └── SpecMismatch       two specs that had to be the same are not
├── MissingEntry           features or labels that were never written
├── DamagedEntry           features that were written and are no longer what they were
├── DamagedModel           a model's file that is not the one its manifest names
├── FormatError            a store of a format that this version does not read
├── NonFiniteFeatures      NaN or infinity where a number was expected
├── StoreBusy              another process is at what was asked for
├── StoreFull              no room left for what is to be written
└── StoreUnavailable       the storage refuses or does not answer
"""


class StoreError(Exception):
    """Base of all errors of the store; the message says what to do."""


class SpecError(StoreError, ValueError):
    """A FeatureSpec whose fields contradict each other."""


class SpecMismatch(SpecError):
    """Features of one spec were offered where another spec was expected."""


class MissingEntry(StoreError, LookupError):
    """The store does not hold what was asked for."""


class DamagedEntry(StoreError):
    """Stored bytes differ from those that were written; names image and block."""


class DamagedModel(StoreError):
    """A file of a model differs from the one that its manifest names."""


class FormatError(StoreError):
    """The store was written in a format that this version cannot read."""


class NonFiniteFeatures(StoreError, ArithmeticError):
    """A feature map holds NaN or infinity; names the block."""


class StoreBusy(StoreError):
    """Another process has been at something for longer than was waited."""


class StoreFull(StoreError, OSError):
    """There is no room for the bytes that are to be written."""


class StoreUnavailable(StoreError, OSError):
    """Object storage that refuses, fails or does not answer in time."""
