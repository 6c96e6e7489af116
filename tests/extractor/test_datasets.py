"""Every adapter reads its data set's original layout, and says what is wrong with another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extractor.datasets import load_dataset, of_split
from extractor.errors import DatasetError
from store.collection import is_name


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


LAYOUTS = {
    "drive": (
        ["training/images/21_training.tif", "training/1st_manual/21_manual1.gif", "training/mask/21_training_mask.gif",
         "test/images/01_test.tif", "test/1st_manual/01_manual1.gif", "test/mask/01_test_mask.gif"],
        [("training_21", "train", None, {"vessel", "fov"}), ("test_01", "test", None, {"vessel", "fov"})],
    ),
    "stare": (
        [f"stare-images/im{i:04}.ppm" for i in range(1, 12)] + [f"labels-ah/im{i:04}.ah.ppm" for i in range(1, 12)],
        [(f"im{i:04}", "train" if i < 11 else "test", None, {"vessel"}) for i in range(1, 12)],
    ),
    "chase_db1": (
        ["Image_10L.jpg", "Image_10L_1stHO.png", "Image_10L_2ndHO.png", "Image_11R.jpg", "Image_11R_1stHO.png"],
        [("Image_10L", "train", "10", {"vessel", "vessel2"}), ("Image_11R", "test", "11", {"vessel"})],
    ),
    "hrf": (
        ["images/01_dr.JPG", "manual1/01_dr.tif", "mask/01_dr_mask.tif", "images/06_g.jpg", "manual1/06_g.tif"],
        [("01_dr", "train", None, {"vessel", "fov"}), ("06_g", "test", None, {"vessel"})],
    ),
    "idrid": (
        ["A. Segmentation/1. Original Images/a. Training Set/IDRiD_01.jpg",
         "A. Segmentation/2. All Segmentation Groundtruths/a. Training Set/1. Microaneurysms/IDRiD_01_MA.tif",
         "A. Segmentation/2. All Segmentation Groundtruths/a. Training Set/5. Optic Disc/IDRiD_01_OD.tif",
         "A. Segmentation/1. Original Images/b. Testing Set/IDRiD_55.jpg"],
        [("IDRiD_01", "train", None, {"MA", "OD"}), ("IDRiD_55", "test", None, set())],
    ),
    "octa_500": (
        ["Projection Maps/OCTA(ILM_OPL)/10180.bmp", "Projection Maps/OCTA(ILM_OPL)/10190.bmp",
         "Projection Maps/OCTA(ILM_OPL)/10451.bmp",
         "GT_LargeVessel/10180.bmp", "GT_LargeVessel/10190.bmp", "GT_LargeVessel/10451.bmp"],
        [("10180", "train", None, {"vessel"}), ("10190", "val", None, {"vessel"}), ("10451", "test", None, {"vessel"})],
    ),
    "rose": (
        ["train/img/01.tif", "train/gt/01.tif", "test/img/01.tif", "test/gt/01.tif"],
        [("train_01", "train", None, {"vessel"}), ("test_01", "test", None, {"vessel"})],
    ),
    "eyepacs": (
        ["train/10_left.jpeg", "train/10_right.jpeg"],
        [("10_left", "train", "10", set()), ("10_right", "train", "10", set())],
    ),
    "folder": (
        ["images/a.png", "images/b.png", "masks/cup/a.png", "masks/disc/a.png"],
        [("a", None, None, {"cup", "disc"}), ("b", None, None, set())],
    ),
}  # fmt: skip


@pytest.mark.parametrize("adapter", LAYOUTS)
def test_the_original_layout_is_read(tmp_path: Path, adapter: str) -> None:
    files, expected = LAYOUTS[adapter]
    touch(tmp_path, *files)
    dataset = load_dataset(f"{adapter}:{tmp_path}", "mine")
    assert dataset.name == "mine"
    assert [(p.name, p.split, p.group, set(p.masks)) for p in dataset.photographs] == expected
    listed = {path for p in dataset.photographs for path in (p.image, *p.masks.values())}
    assert listed == {tmp_path / name for name in files}


@pytest.mark.parametrize("adapter", LAYOUTS)
def test_an_empty_folder_is_no_data_set(tmp_path: Path, adapter: str) -> None:
    with pytest.raises(DatasetError, match=tmp_path.name):
        load_dataset(f"{adapter}:{tmp_path}")


@pytest.mark.parametrize(("dataset", "adapter", "images"), [("STARE", "stare", 20), ("CHASE_DB1", "chase_db1", 28), ("HRF_1024", "hrf", 24)])  # fmt: skip  # noqa: E501
def test_real_data_sets_are_read(shared: Path, dataset: str, adapter: str, images: int) -> None:
    photographs = load_dataset(f"{adapter}:{shared / 'data' / dataset}").photographs
    assert len(photographs) == images
    assert all("vessel" in photograph.masks for photograph in photographs)


def test_a_manifest_names_everything(tmp_path: Path) -> None:
    touch(tmp_path, "one.png", "one_v.png", "two.png")
    manifest = tmp_path / "list.csv"
    manifest.write_text("image,name,split,group,vessel,,\none.png,first, train,p1,one_v.png,,\ntwo.png,,,,,,\n")
    first, second = load_dataset(f"manifest:{manifest}").photographs
    assert (first.name, first.split, first.group, set(first.masks)) == ("first", "train", "p1", {"vessel"})
    assert (second.name, second.split, second.group, dict(second.masks)) == ("two", None, None, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture\none.png\n", "expected a column 'image'"),
        ("image\nmissing.png\n", r"line 2 names .*missing\.png: no such file"),
        (f"image,name\n\n'one.png','a\nb'\n{'x' * 300}.png,\n".replace("'", '"'), "line 5 names .*x.png: no such file"),
        ("image\n" + "missing.png\n" * 7, r"(line \d names .*){5} and more are missing: no such file"),
        ("image,vessel\none.png,missing.png\n", r"line 2 names .*missing\.png as the mask of vessel: no such file"),
        ('image\n""\n', "line 2 names no image"),
        ("image;vessel\none.png;\n", "cells are separated by commas"),
        ("image,vessel,vessel\none.png,,\n", "two columns are called vessel"),
        ("image,split\none.png,train,more\n", "line 2 has more cells than there are columns"),
        ("image,name\none.png,../one\n", "no image can be called '../one'"),
    ],
)
def test_a_wrong_manifest_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "one.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_dataset(f"manifest:{tmp_path / 'list.csv'}")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("imagenet:/tmp", "expected ADAPTER:PATH, with one of drive"),
        ("/tmp", "expected ADAPTER:PATH"),
        ("folder:/no/such/place", "no such file or folder"),
        ("manifest:.", "expected a CSV file"),
    ],
)
def test_wrong_references_are_refused(reference: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_dataset(reference)


def test_a_missing_mask_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "stare-images/im0001.ppm", "labels-ah/im0002.ah.ppm")
    with pytest.raises(DatasetError, match=r"labels-ah: no mask named im0001\.ah"):
        load_dataset(f"stare:{tmp_path}")


def test_a_table_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("image,name\none.png,r\u00e9tine\n".encode("cp1252"))
    with pytest.raises(DatasetError, match=r"list\.csv: expected a CSV file in UTF-8"):
        load_dataset(f"manifest:{tmp_path / 'list.csv'}")


def test_a_mask_belongs_to_the_image_of_exactly_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "images/img.png", "images/img.1.png", "images/img.2.png", "masks/img.png", "masks/img.1.png")
    masks = {p.name: [path.name for path in p.masks.values()] for p in load_dataset(f"folder:{tmp_path}").photographs}
    assert masks == {"img": ["img.png"], "img.1": ["img.1.png"], "img.2": []}
    touch(tmp_path, "tool/images/a.jpg", "tool/masks/a.jpg.png")  # as labelling tools name them
    (labelled,) = load_dataset(f"folder:{tmp_path}/tool").photographs
    assert [path.name for path in labelled.masks.values()] == ["a.jpg.png"]


def test_folders_keep_their_whole_name(tmp_path: Path) -> None:
    for year in ("2023", "2024"):
        touch(tmp_path, f"photos.{year}/a.png")
        assert load_dataset(f"folder:{tmp_path}/photos.{year}").name == f"photos.{year}"


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.jpg")
    with pytest.raises(DatasetError, match="2 images are called 'a'"):
        load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("place", ["masks", "masks/vessel"])
def test_masks_that_belong_to_no_image_are_told(tmp_path: Path, place: str) -> None:
    touch(tmp_path, "images/a.png", "images/b.png", f"{place}/a_mask.png")
    with pytest.raises(DatasetError, match=r"a_mask\.png and the other masks belong to no image"):
        load_dataset(f"folder:{tmp_path}")
    touch(tmp_path, f"{place}/b.png")
    assert [len(one.masks) for one in load_dataset(f"folder:{tmp_path}").photographs] == [0, 1]


def test_what_a_folder_holds_and_nobody_reads_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/b.webp", "images/more/c.png", "images/notes.txt", "masks/a.png")
    touch(tmp_path, *(f"masks/{i}.png" for i in range(5)))
    assert load_dataset(f"folder:{tmp_path}").notes == (
        f"1 in {tmp_path} have formats that are not read; save them as PNG (b.webp)",
        f"1 in {tmp_path} are unread folders of images; name each as a data set, or list them in a manifest (more)",
        f"5 in {tmp_path} are masks without an image (0.png, 1.png, 2.png, ...)",
    )
    touch(tmp_path, "flat/a.png", "flat/masks/vessel/a.png")
    assert load_dataset(f"folder:{tmp_path}/flat").notes == ()
    touch(tmp_path, "flat/masks/a.png")
    assert load_dataset(f"folder:{tmp_path}/flat").notes == (
        f"1 in {tmp_path}/flat are masks beside folders of targets, which alone are read (a.png)",
    )


def test_accents_may_be_written_in_two_ways(tmp_path: Path) -> None:
    touch(tmp_path, "images/Jos\u00e9.png", "masks/Jose\u0301.png")  # as archives of macOS write them
    (photograph,) = load_dataset(f"folder:{tmp_path}").photographs
    assert photograph.masks["mask"].name == "Jose\u0301.png"


def test_cells_of_a_manifest_may_have_spaces_around_them(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "a_mask.png")
    (tmp_path / "list.csv").write_text("image, split, vessel\na.png , train, a_mask.png\nb.png, test, \n")
    first, second = load_dataset(f"manifest:{tmp_path / 'list.csv'}").photographs
    assert (first.image.name, first.split, first.masks["vessel"].name) == ("a.png", "train", "a_mask.png")
    assert (second.split, second.masks) == ("test", {})


def test_folders_of_cameras_are_told_apart_from_a_folder_of_photographs(tmp_path: Path) -> None:
    (tmp_path / "images" / "camera").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / "camera" / "a.png")
    with pytest.raises(DatasetError, match="no images in it, only in its folders, such as camera: name each"):
        load_dataset(f"folder:{tmp_path}")


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    for name, size in (("images/a.png", (8, 6)), ("masks/a.png", (6, 8))):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / name)
    photograph = load_dataset(f"folder:{tmp_path}").photographs[0]
    with pytest.raises(DatasetError, match=r"masks/a\.png: mask of 8 x 6 pixels, its image a\.png has 6 x 8, .*EXIF"):
        photograph.read_mask("mask", (8, 6))


def test_splits_are_selected_and_unknown_ones_told(tmp_path: Path) -> None:
    touch(tmp_path, "train/10_left.jpeg", "test/11_left.jpeg")
    photographs = load_dataset(f"eyepacs:{tmp_path}").photographs
    assert [p.name for p in of_split(photographs, "test")] == ["11_left"]
    with pytest.raises(DatasetError, match="no image of split 'val'; splits of this data set: test, train"):
        of_split(photographs, "val")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("my eyes", "my_eyes"),
        ("cm²", "cm²"),
        (".hidden", "hidden"),
        ("(", "_"),
        ("..a", "a"),
        ("my__eyes", "my__eyes"),
        ("a - b", "a_-_b"),
        ("眼" * 75, "眼" * 50),
    ],
)
def test_a_folder_gives_a_name_that_the_store_takes(tmp_path: Path, folder: str, name: str) -> None:
    touch(tmp_path / folder, "a.png")
    data = load_dataset(f"folder:{tmp_path / folder}")
    assert data.name == name
    assert is_name(data.name)
    with pytest.raises(DatasetError, match="expected a name of at most"):
        load_dataset(f"folder:{tmp_path / folder}", "..")


def test_companions_that_macos_leaves_are_no_photographs(tmp_path: Path) -> None:
    touch(tmp_path / "eyes", "a.png", "._a.png")
    touch(tmp_path / "eyes" / "masks", "a.png", "._a.png")
    data = load_dataset(f"folder:{tmp_path / 'eyes'}")
    assert [photograph.name for photograph in data.photographs] == ["a"]
    assert not data.notes
