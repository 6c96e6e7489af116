"""DICOM photographs made by pydicom, whole and broken."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    OphthalmicPhotography8BitImageStorage,
    OphthalmicPhotography16BitImageStorage,
    generate_uid,
)

from tests.conftest import draw_fundus

LIMIT = 100_000


def photograph(pixels: NDArray[Any], syntax: UID = ExplicitVRLittleEndian, **elements: object) -> Dataset:
    """A data set with uncompressed pixels of shape (H, W) or (H, W, 3), uint8 or uint16, and these elements."""
    bits = pixels.dtype.itemsize * 8
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = OphthalmicPhotography8BitImageStorage if bits == 8 else OphthalmicPhotography16BitImageStorage
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = (
        generate_uid(entropy_srcs=[level]) for level in ("instance", "study", "series")
    )
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "42", "Doe^Jane", "19700101", "F"
    ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "1", "20240102", "030405", "7"
    ds.Modality, ds.ReferringPhysicianName, ds.NumberOfFrames = "OP", "", 1
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, 0
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def compressed(pixels: NDArray[np.uint8], **elements: object) -> Dataset:
    """The same as JPEG baseline."""
    ds = photograph(pixels, JPEGBaseline8Bit)
    ds.PixelData = encapsulate([jpeg(pixels)])
    ds["PixelData"].is_undefined_length = True
    ds.PhotometricInterpretation = "YBR_FULL_422" if pixels.ndim == 3 else "MONOCHROME2"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def jpeg2000(pixels: NDArray[Any]) -> Dataset:
    """The same, without loss."""
    ds = photograph(pixels)
    ds.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    return ds


def written(ds: Dataset) -> bytes:
    """As a file."""
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def fundus(seed: int = 50) -> NDArray[np.uint8]:
    """uint8 (80, 96, 3), unlike its own flips and its transpose."""
    pixels = draw_fundus(80, seed)[0]
    pixels[10:14, 40:60] = (250, 240, 30)
    return pixels
