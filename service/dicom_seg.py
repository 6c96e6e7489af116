"""Masks as DICOM Segmentation objects that refer to the photograph they were made of (PS3.3 A.51)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.dicom import is_dicom, read_header
from service.errors import UnsupportedAnswer

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom.dataset import Dataset

SERIES_NUMBER = 900
PRIVATE_SCHEME = "99DIFFDGSS"


class Concept(NamedTuple):
    """A code, its scheme and its meaning."""

    value: str
    scheme: str
    meaning: str


ANATOMICAL = Concept("91723000", "SCT", "Anatomical structure")
ABNORMAL = Concept("49755003", "SCT", "Morphologically abnormal structure")
RETINA = Concept("5665001", "SCT", "Retinal structure")
VESSEL = Concept("59820001", "SCT", "Blood vessel")
ARTERY = Concept("51114001", "SCT", "Artery")
VEIN = Concept("29092000", "SCT", "Vein")
OPTIC_DISC = Concept("81016008", "SCT", "Optic disc structure")
FOVEA = Concept("67046006", "SCT", "Fovea centralis")
HEMORRHAGE = Concept("50960005", "SCT", "Hemorrhage")
FIELD_OF_VIEW = Concept("field-of-view", PRIVATE_SCHEME, "Field of view")

OPTIC_CUP = Concept("optic-cup", PRIVATE_SCHEME, "Optic cup")
MICROANEURYSM = Concept("microaneurysm", PRIVATE_SCHEME, "Retinal microaneurysm")
HARD_EXUDATE = Concept("hard-exudate", PRIVATE_SCHEME, "Hard exudate of retina")
SOFT_EXUDATE = Concept("soft-exudate", PRIVATE_SCHEME, "Soft exudate of retina")

CONCEPTS: dict[str, tuple[Concept, Concept]] = {
    "vessel": (ANATOMICAL, VESSEL),
    "artery": (ANATOMICAL, ARTERY),
    "vein": (ANATOMICAL, VEIN),
    "disc": (ANATOMICAL, OPTIC_DISC),
    "optic_disc": (ANATOMICAL, OPTIC_DISC),
    "od": (ANATOMICAL, OPTIC_DISC),
    "cup": (ANATOMICAL, OPTIC_CUP),
    "fovea": (ANATOMICAL, FOVEA),
    "ma": (ABNORMAL, MICROANEURYSM),
    "he": (ABNORMAL, HEMORRHAGE),
    "ex": (ABNORMAL, HARD_EXUDATE),
    "se": (ABNORMAL, SOFT_EXUDATE),
    "hemorrhage": (ABNORMAL, HEMORRHAGE),
    "haemorrhage": (ABNORMAL, HEMORRHAGE),
    "field of view": (ANATOMICAL, FIELD_OF_VIEW),
}
"""Category and type by a class's name in the singular; other classes get a private code of their own name. DICOM's
subset of SNOMED CT, which is free, has no cup, microaneurysms and exudates: those have private codes, and meanings that
say what they are."""


@dataclass(frozen=True)
class SegmentedBy:
    """What made the labels.

    Attributes:
        model: its name; ``version`` of its files.
        software: the service's version.
        mirrored: the photograph's three mirror images were read, too.
    """

    model: str
    version: str
    software: str
    mirrored: bool = False


def encode_segmentation(
    source: bytes,
    name: str,
    masks: NDArray[np.bool_],
    classes: Sequence[str],
    colours: Sequence[str],
    made_by: SegmentedBy,
) -> bytes:
    """Masks as a DICOM SEG: binary, one segment for each class but the background, also for empty ones.

    Args:
        source: the DICOM photograph that was segmented.
        name: of the source, for messages.
        masks: the pixels of each class but the background, bool (n - 1, H, W), on the source's; they may overlap.
        classes: names of all classes, background first.
        colours: of classes 1, 2, ...
        made_by: goes into the file.

    Raises:
        UnsupportedAnswer: the source is no DICOM file, or lacks what a reference to it needs.
        DicomError: it is a damaged one.
    """
    header = _header(source, name)
    if masks.shape[1:] != (header.Rows, header.Columns):
        raise UnsupportedAnswer(
            f"{name}: masks {masks.shape[1:]} do not lie on {header.Rows} x {header.Columns} pixels"
        )
    descriptions = [
        _described(i, class_name, colours[(i - 1) % len(colours)], made_by)
        for i, class_name in enumerate(classes)
        if i > 0
    ]
    with _as_the_standard_wants(name):
        return _written(header, masks, descriptions, made_by)


def check_source(source: bytes, name: str) -> None:
    """UnsupportedAnswer if these bytes are no DICOM file, or one that no SEG can refer to; DicomError if damaged."""
    _header(source, name)


def _header(source: bytes, name: str) -> Dataset:
    if not is_dicom(source):
        raise UnsupportedAnswer(f"{name}: a DICOM SEG refers to a DICOM photograph, and this is none; ask for png")
    header = read_header(source, name)
    with _as_the_standard_wants(name):
        return _referable(header, name)


@contextmanager
def _as_the_standard_wants(name: str) -> Iterator[None]:
    """What the source says of patient and study is copied, and highdicom refuses what breaks the standard."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # highdicom warns about the source's own values
            yield
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UnsupportedAnswer(
            f"{name}: patient or study of the DICOM source are not as the standard wants them, "
            f"so no SEG can refer to it; ask for png ({type(error).__name__})"
        ) from error


def _referable(header: Dataset, name: str) -> Dataset:
    """The header with the empty elements that type 2 allows; what identifies the source must be there."""
    lacking = [
        keyword
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
        if not header.get(keyword)
    ]
    if lacking:
        raise UnsupportedAnswer(f"{name}: no SEG can refer to a source without {', '.join(lacking)}; ask for png")
    for keyword in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyID",
        "StudyDate",
        "StudyTime",
        "ReferringPhysicianName",
    ):
        if keyword not in header:
            setattr(header, keyword, "")
    if "Modality" not in header:
        header.Modality = "OP"
    # A photograph lies in no space of the patient's and has no functional groups. highdicom expects groups of
    # every class that may have several frames, and positions where there is a frame of reference.
    header.NumberOfFrames = 1
    header.pop("FrameOfReferenceUID", None)
    header.SharedFunctionalGroupsSequence = [_groups(header)]
    return header


def _groups(header: Dataset) -> Dataset:
    """The pixels' size in mm where the source says it; 1 mm, taken away again, where it does not."""
    from highdicom import PixelMeasuresSequence
    from pydicom.dataset import Dataset

    groups = Dataset()
    groups.PixelMeasuresSequence = PixelMeasuresSequence(_spacing(header) or [1.0, 1.0], None)
    return groups


def _spacing(header: Dataset) -> list[float] | None:
    """Size of a pixel in mm, (row, column); None where the source does not say two positive numbers."""
    spacing = header.get("PixelSpacing")
    values = (
        [float(value) for value in spacing] if isinstance(spacing, Sequence) and not isinstance(spacing, str) else []
    )
    return values if len(values) == 2 and all(value > 0 for value in values) else None


def _described(number: int, class_name: str, colour: str, made_by: SegmentedBy) -> SegmentDescription:
    import highdicom
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    category, kind = CONCEPTS.get(
        class_name.lower().removesuffix("s"),
        (ABNORMAL, Concept(class_name[:16], PRIVATE_SCHEME, class_name[:64])),
    )
    return SegmentDescription(
        segment_number=number,
        segment_label=kind.meaning[:64],  # OD, the usual name of the disc in data sets, is the right eye to others
        segmented_property_category=Code(category.value, category.scheme, category.meaning),
        segmented_property_type=Code(kind.value, kind.scheme, kind.meaning),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=f"DiffDGSS {made_by.model}"[:64],
            version=made_by.version[:64] or "unknown",
            family=codes.DCM.ArtificialIntelligence,
            parameters={"mirrored": str(made_by.mirrored).lower()},
        ),
        anatomic_regions=[Code(RETINA.value, RETINA.scheme, RETINA.meaning)],
        display_color=CIELabColor.from_string(colour),
    )


def _written(
    header: Dataset, masks: NDArray[np.bool_], descriptions: list[SegmentDescription], made_by: SegmentedBy
) -> bytes:
    from highdicom import UID
    from highdicom.seg import Segmentation, SegmentationTypeValues

    segmentation = Segmentation(
        source_images=[header],
        pixel_array=np.moveaxis(masks, 0, -1)[None],
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="DiffDGSS",
        manufacturer_model_name=made_by.model[:64],
        software_versions=made_by.software,
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description="For research only; not a medical device",
        omit_empty_frames=False,
    )
    if _spacing(header) is None:
        segmentation.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence", None)
    buffer = io.BytesIO()
    segmentation.save_as(buffer)
    return buffer.getvalue()
