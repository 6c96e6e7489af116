"""Masks as DICOM SEG: through the service and back, on the source's pixels."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

pytest.importorskip("highdicom", reason="the extra dicom is not installed")

import highdicom
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from extractor.images import image_id
from interpreter import checkpoint
from service.dicom import decode_dicom
from service.dicom_seg import ABNORMAL, ANATOMICAL, CONCEPTS, SegmentedBy, encode_segmentation
from service.engine import Engine
from service.errors import UnsupportedAnswer
from service.options import Options
from service.outputs import OUTPUTS, SourcePhotograph
from tests.service.conftest import png, serving
from tests.service.dicom_files import LIMIT, compressed, fundus, jpeg2000, photograph, written

MADE_BY = SegmentedBy("vessels", "0a1b2c", "0.1.0")
LABELS = np.zeros((80, 96), np.uint8)
LABELS[5:9, 10:40] = 1
LABELS[20:60, 70:75] = 2
CLASSES = ("background", "vessel", "soft exudates")


@pytest.fixture(scope="module")
def api(shared_engine: Engine) -> Iterator[TestClient]:
    client = serving(shared_engine)
    client.app.state.context.engine.set_result(shared_engine)  # type: ignore[attr-defined]
    yield client


def seg_of(source: Dataset, labels: Any = LABELS) -> bytes:
    masks = np.stack([labels == 1, labels == 2])
    return encode_segmentation(written(source), masks, CLASSES, ("#1fe0ff", "#7cff6b"), MADE_BY)


def test_every_class_is_a_segment_on_the_source_pixels() -> None:
    source = photograph(fundus())
    seg = highdicom.seg.segread(io.BytesIO(seg_of(source)))
    assert (seg.SOPClassUID, seg.number_of_segments) == (SegmentationStorage, 2)
    masks = seg.get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)
    assert masks.shape == (1, 80, 96, 2)
    np.testing.assert_array_equal(masks[0, ..., 0], LABELS == 1)
    np.testing.assert_array_equal(masks[0, ..., 1], LABELS == 2)


def test_what_made_it_and_how_stands_in_the_file() -> None:
    asked = {"mirrored": True, "timesteps": (100, 500), "threshold": 0.25, "abstain": False}
    for how, told in (
        ({}, "mirrored=false,timesteps=,threshold=vote,abstain=unknown"),
        (asked, "mirrored=true,timesteps=100 500,threshold=0.25,abstain=false"),
    ):
        made_by = dataclasses.replace(MADE_BY, **how)  # type: ignore[arg-type]
        masks = np.stack([LABELS == 1, LABELS == 2])
        data = encode_segmentation(written(photograph(fundus())), masks, CLASSES, ("#1fe0ff", "#7cff6b"), made_by)
        for segment in pydicom.dcmread(io.BytesIO(data)).SegmentSequence:
            (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
            assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("DiffDGSS vessels", "0a1b2c")
            assert algorithm.AlgorithmParameters == told


def test_segments_may_overlap() -> None:
    source = photograph(fundus())
    disc, cup = np.zeros((2, 80, 96), np.bool_)
    disc[20:60, 20:60] = cup[30:50, 30:50] = True
    data = encode_segmentation(written(source), np.stack([disc, cup]), CLASSES, ("#1fe0ff", "#7cff6b"), MADE_BY)
    seg = highdicom.seg.segread(io.BytesIO(data))
    masks = seg.get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)
    np.testing.assert_array_equal(masks[0, ..., 0], disc)
    np.testing.assert_array_equal(masks[0, ..., 1], cup)


def test_pydicom_alone_reads_the_same() -> None:
    ds = pydicom.dcmread(io.BytesIO(seg_of(photograph(fundus()))))
    assert (ds.Modality, ds.SegmentationType, ds.Rows, ds.Columns) == ("SEG", "BINARY", 80, 96)
    numbers = [
        int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        for frame in ds.PerFrameFunctionalGroupsSequence
    ]
    frames = ds.pixel_array
    for number, frame in zip(numbers, frames, strict=True):
        np.testing.assert_array_equal(frame == 1, number == LABELS)


def test_the_source_is_referred_to_and_its_patient_is_kept() -> None:
    source = photograph(fundus())
    ds = pydicom.dcmread(io.BytesIO(seg_of(source)))
    assert (ds.PatientID, ds.PatientName, ds.StudyInstanceUID) == ("42", "Doe^Jane", source.StudyInstanceUID)
    assert ds.SeriesInstanceUID != source.SeriesInstanceUID
    series = ds.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert "not a medical device" in ds.ContentDescription


def test_segments_say_what_they_are_in_codes() -> None:
    seg = highdicom.seg.segread(io.BytesIO(seg_of(photograph(fundus()))))
    vessel, exudates = (seg.get_segment_description(number) for number in (1, 2))
    assert (vessel.segmented_property_type.value, vessel.segmented_property_type.scheme_designator) == (
        "59820001",
        "SCT",
    )
    assert vessel.algorithm_identification.version == "0a1b2c"
    assert exudates.segment_label == "soft exudates"
    assert exudates.segmented_property_type.scheme_designator == "99DIFFDGSS"


def test_a_frame_of_reference_needs_no_positions() -> None:
    source = photograph(fundus(), FrameOfReferenceUID=pydicom.uid.generate_uid())
    seg = highdicom.seg.segread(io.BytesIO(seg_of(source)))
    np.testing.assert_array_equal(seg.pixel_array[0], LABELS == 1)


def test_the_size_of_pixels_is_said_where_the_source_says_it() -> None:
    def measures(source: Dataset) -> object:
        groups = pydicom.dcmread(io.BytesIO(seg_of(source))).SharedFunctionalGroupsSequence[0]
        return groups.PixelMeasuresSequence[0].PixelSpacing if "PixelMeasuresSequence" in groups else None

    assert measures(photograph(fundus())) is None
    assert measures(photograph(fundus(), PixelSpacing=[0.01])) is None
    assert measures(photograph(fundus(), PixelSpacing=[0, 0])) is None
    spaced = photograph(fundus(), PixelSpacing=[0.01, 0.02])
    assert measures(spaced) == [0.01, 0.02]
    assert highdicom.seg.segread(io.BytesIO(seg_of(spaced))).number_of_segments == 2


def test_names_in_several_character_sets_are_kept() -> None:
    name = "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"
    source = photograph(fundus(), SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name)
    assert pydicom.dcmread(io.BytesIO(seg_of(source))).PatientName == name


def test_classes_that_were_not_asked_for_are_no_segments(shared_engine: Engine) -> None:
    source = written(photograph(fundus()))
    answer = dataclasses.replace(shared_engine.segment(source), classes=CLASSES, colours=("#1fe0ff", "#7cff6b"))
    with pytest.raises(UnsupportedAnswer, match="no segment of the background"):
        OUTPUTS["dicom-seg"].render(answer, Options(labels=["background"]), SourcePhotograph(source, LIMIT))
    for labels, expected in ((None, 2), (["vessel"], 1)):
        data = OUTPUTS["dicom-seg"].render(answer, Options(labels=labels), SourcePhotograph(source, LIMIT))
        assert len(pydicom.dcmread(io.BytesIO(data)).SegmentSequence) == expected


def test_classes_that_were_not_found_are_empty_segments() -> None:
    seg = highdicom.seg.segread(io.BytesIO(seg_of(photograph(fundus()), np.zeros((80, 96), np.uint8))))
    assert seg.number_of_segments == 2
    assert not seg.pixel_array.any()


def test_what_the_source_lacks_is_empty_or_told() -> None:
    bare = photograph(fundus(), PatientBirthDate=None, StudyDate=None, AccessionNumber=None, NumberOfFrames=None)
    assert pydicom.dcmread(io.BytesIO(seg_of(bare))).PatientBirthDate in ("", None)
    with pytest.raises(UnsupportedAnswer, match="without StudyInstanceUID"):
        seg_of(photograph(fundus(), StudyInstanceUID=None))
    with pytest.raises(UnsupportedAnswer, match="violate the standard"):
        seg_of(photograph(fundus(), PatientSex="Q"))


@pytest.mark.parametrize(
    "source", [photograph(fundus()), compressed(fundus()), jpeg2000(fundus())], ids=["plain", "jpeg", "j2k"]
)
def test_dicom_in_and_seg_out_through_the_service(api: TestClient, source: Dataset) -> None:
    data = written(source)
    files = {"image": ("eye.dcm", data)}
    by_name = api.post("/v1/segment", files=files, params={"output": "dicom-seg"})
    assert by_name.status_code == 200, by_name.text
    assert by_name.headers["content-type"] == "application/dicom"
    assert by_name.headers["x-image-id"] == image_id(data)
    seg = highdicom.seg.segread(io.BytesIO(by_name.content))
    mask = seg.get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)[0, ..., 0]
    labels = np.asarray(Image.open(io.BytesIO(api.post("/v1/segment?output=png", files=files).content)))
    assert labels.any()
    np.testing.assert_array_equal(mask, labels)
    by_accept = api.post(
        "/segment", content=data, headers={"Content-Type": "application/dicom", "Accept": "application/dicom"}
    )
    assert highdicom.seg.segread(io.BytesIO(by_accept.content)).Rows == 80


def test_a_dicom_file_is_segmented_like_the_picture_in_it(api: TestClient) -> None:
    data = written(photograph(fundus()))
    buffer = io.BytesIO()
    Image.fromarray(decode_dicom(data, LIMIT)).save(buffer, "PNG")
    masks = [
        api.post("/v1/segment?output=png", files={"image": ("eye", one)}).content for one in (data, buffer.getvalue())
    ]
    assert masks[0] == masks[1]
    tinted = api.post("/v1/segment", params={"output": "overlay", "opacity": 0}, files={"image": ("eye.dcm", data)})
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(tinted.content))), fundus())


def test_a_seg_needs_a_dicom_source(api: TestClient) -> None:
    refused = api.post("/v1/segment?output=dicom-seg", files={"image": ("eye.png", png())})
    assert refused.status_code == 406
    assert "this is not one; ask for png" in refused.json()["detail"]


def test_broken_dicom_is_the_requests_fault(api: TestClient) -> None:
    data = written(photograph(fundus()))
    for broken in (data[:200], data[:-100], written(photograph(fundus(), NumberOfFrames=3))):
        for output in ("json", "dicom-seg"):
            response = api.post("/v1/segment", params={"output": output}, files={"image": ("eye.dcm", broken)})
            assert response.status_code == 415, response.text
    huge = written(photograph(fundus(), Rows=60_000, Columns=60_000))
    assert api.post("/v1/segment", files={"image": ("eye.dcm", huge)}).status_code == 413


def test_the_field_of_view_as_seg(api: TestClient) -> None:
    source = photograph(fundus())
    files = {"image": ("eye.dcm", written(source))}
    response = api.post("/v1/segment", params={"output": "dicom-seg", "fov_only": True}, files=files)
    seg = highdicom.seg.segread(io.BytesIO(response.content))
    assert seg.get_segment_description(1).segment_label == "Field of view"


@pytest.mark.parametrize("name", checkpoint.shipped())
def test_every_shipped_class_says_what_it_is(name: str) -> None:
    meanings = {}
    for one in checkpoint.read_card(name).task.targets:
        category, kind = CONCEPTS[one.lower()]
        assert category == (ANATOMICAL if one in ("vessel", "OD", "cup") else ABNORMAL)
        meanings[one] = kind.meaning
    assert len(set(meanings.values())) == len(meanings)
    assert "OD" not in meanings.values()
