"""Encoding of masks as DICOM Segmentation objects, which refer to the segmented photograph (PS3.3 A.51)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, MutableSequence, Sequence
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
    """A coded concept: code value, coding scheme and code meaning."""

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
"""{class name in the singular: (property category, property type)}. Other classes get a private code made of their
name. The subset of SNOMED CT that DICOM may use freely has no optic cup, microaneurysms or exudates: these have private
codes with a descriptive meaning."""


@dataclass(frozen=True)
class SegmentedBy:
    """The model and software that made a segmentation, as the SEG records them.

    Attributes:
        model: name of the model.
        version: version of the model's files.
        software: version of the service.
        mirrored: whether the photograph's three mirror images were read as well.
        timesteps: timesteps that were read.
        threshold: least mean probability of a pixel's class; None if the timesteps voted.
        abstain: whether the answer should not be relied on; None if the model cannot tell.
    """

    model: str
    version: str
    software: str
    mirrored: bool = False
    timesteps: tuple[int, ...] = ()
    threshold: float | None = None
    abstain: bool | None = None

    def parameters(self) -> dict[str, str]:
        """What else decided the masks, by name; "unknown" where the model cannot tell whether to abstain."""
        return {
            "mirrored": str(self.mirrored).lower(),
            "timesteps": " ".join(map(str, self.timesteps)),
            "threshold": "vote" if self.threshold is None else str(self.threshold),
            "abstain": "unknown" if self.abstain is None else str(self.abstain).lower(),
        }


def encode_segmentation(
    source: bytes,
    masks: NDArray[np.bool_],
    classes: Sequence[str],
    colours: Sequence[str],
    made_by: SegmentedBy,
) -> bytes:
    """Encode masks as a binary DICOM SEG with one segment for each class but the background, empty ones included.

    Args:
        source: the DICOM photograph that was segmented.
        masks: of each class but the background, bool (n - 1, H, W), at the source's size; they may overlap.
        classes: names of all classes, background first.
        colours: of each class but the background.
        made_by: the model and software to record in the file.

    Raises:
        UnsupportedAnswer: the source is not a DICOM file, or lacks what a reference to it needs.
        DicomError: the source is damaged.
    """
    header = _header(source)
    if masks.shape[1:] != (header.Rows, header.Columns):
        raise UnsupportedAnswer(f"expected masks of {header.Rows} x {header.Columns} pixels, found {masks.shape[1:]}")
    descriptions = [_described(i, class_name, colours[i - 1], made_by) for i, class_name in enumerate(classes) if i > 0]
    with _as_the_standard_wants():
        return _written(header, masks, descriptions, made_by)


def check_source(source: bytes) -> None:
    """Raise UnsupportedAnswer if no SEG can refer to the source, or it is not DICOM; DicomError if it is damaged."""
    _header(source)


def _header(source: bytes) -> Dataset:
    if not is_dicom(source):
        raise UnsupportedAnswer("a DICOM SEG has to refer to a DICOM photograph, and this is not one; ask for png")
    header = read_header(source)
    with _as_the_standard_wants():
        return _referable(header)


@contextmanager
def _as_the_standard_wants() -> Iterator[None]:
    """Raise UnsupportedAnswer where highdicom rejects what is copied from the source, such as patient and study."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # highdicom warns about values that come from the source
            yield
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UnsupportedAnswer(
            f"attributes of patient or study in the DICOM source violate the standard, "
            f"so no SEG can refer to it; ask for png ({type(error).__name__})"
        ) from error


def _referable(header: Dataset) -> Dataset:
    """Complete a header for highdicom, missing type 2 elements as empty; UnsupportedAnswer if it lacks a UID."""
    lacking = [
        keyword
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
        if not header.get(keyword)
    ]
    if lacking:
        raise UnsupportedAnswer(f"no SEG can refer to a source without {', '.join(lacking)}; ask for png")
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
    # A photograph has no position in the patient's coordinate system and no functional groups. highdicom expects
    # groups for every SOP class that allows several frames, and positions if there is a frame of reference.
    if isinstance(header.get("SpecificCharacterSet"), MutableSequence):  # highdicom rejects an empty first value,
        header.SpecificCharacterSet = [one or "ISO 2022 IR 6" for one in header.SpecificCharacterSet]  # the default
    header.NumberOfFrames = 1
    header.pop("FrameOfReferenceUID", None)
    header.SharedFunctionalGroupsSequence = [_groups(header)]
    return header


def _groups(header: Dataset) -> Dataset:
    """Functional groups with the pixel spacing in mm; 1 mm if the source has none, which ``_written`` removes again."""
    from highdicom import PixelMeasuresSequence
    from pydicom.dataset import Dataset

    groups = Dataset()
    spacing = _spacing(header) or [1.0, 1.0]
    # A photograph has no thickness. Readers such as highdicom's want one beside the spacing: it is nominal.
    groups.PixelMeasuresSequence = PixelMeasuresSequence(spacing, spacing[0])
    return groups


def _spacing(header: Dataset) -> list[float] | None:
    """The pixel spacing [row, column] in mm; None unless the source has two positive numbers."""
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
        segment_label=kind.meaning[:64],  # not the class name: OD, the disc in data sets, is the right eye in clinics
        segmented_property_category=Code(category.value, category.scheme, category.meaning),
        segmented_property_type=Code(kind.value, kind.scheme, kind.meaning),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=f"DiffDGSS {made_by.model}"[:64],
            version=made_by.version[:64] or "unknown",
            family=codes.DCM.ArtificialIntelligence,
            parameters=made_by.parameters(),
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
