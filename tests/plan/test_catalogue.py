"""The catalogue that is shipped, and users' own, good and bad."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gossamer.errors import UserError
from gossamer.plan import Catalogue, load_catalogue

MINE = """\
chips:
  mine:
    name: Example A1
    devices: [A1]
    flops: {value: 400e12, source: sheet, date: 2026-11, grade: vendor}
    memory: {value: 96e9, source: sheet, date: 2026-11, grade: vendor}
    bandwidth: {value: 3.2e12, source: sheet, date: 2026-11, grade: vendor}
    node: {value: 8, source: sheet, date: 2026-11, grade: vendor}
    link: {value: 600e9, source: sheet, date: 2026-11, grade: vendor}
    network: {value: 50e9, source: sheet, date: 2026-11, grade: assumed}
    price: {value: 7, currency: CNY, source: contract, date: 2026-11, grade: vendor}
"""


def read(tmp_path: Path, text: str) -> Catalogue:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_catalogue([path])


def test_every_shipped_figure_says_where_it_was_read(catalogue: Catalogue) -> None:
    for chip in catalogue.chips.values():
        for name in ("flops", "memory", "bandwidth", "node", "link", "network"):
            figure = getattr(chip, name)
            assert figure.source and re.fullmatch(r"20\d\d-\d\d", figure.date), (chip.key, name)
    assert {"h100", "h200", "h800", "h20", "ppu-810e", "910c", "p800", "tpu-v6e"} <= set(catalogue.chips)


def test_a_chip_of_ones_own(tmp_path: Path, catalogue: Catalogue) -> None:
    found = read(tmp_path, MINE)
    chip = found.chip("MINE")
    assert chip.flops.value == 400e12 and chip.power is None and chip.worst_grade == "assumed"
    assert found.dollars(chip) == pytest.approx(7 * catalogue.currencies["CNY"].value)
    assert found.chip("h20") == catalogue.chip("h20")


def test_a_chip_of_ones_own_replaces_the_shipped_one(tmp_path: Path) -> None:
    assert read(tmp_path, MINE.replace("  mine:", "  h20:")).chip("h20").name == "Example A1"


def test_devices_are_known_by_whole_words(catalogue: Catalogue) -> None:
    assert catalogue.chip("h200").is_device("NVIDIA H200")
    assert not catalogue.chip("h200").is_device("NVIDIA GH200 480GB")
    assert not catalogue.chip("h20").is_device("NVIDIA H200")


def test_an_unknown_chip(catalogue: Catalogue) -> None:
    with pytest.raises(UserError, match=r"^unknown chip 'h2000'; did you mean 'h200'\?"):
        catalogue.chip("h2000")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("400e12", "-400e12", r"mine\.yaml:5: chips\.mine\.flops\.value: -400e12 is out of range"),
        ("96e9", "96", r"mine\.yaml:6: chips\.mine\.memory\.value: 96 is out of range"),
        ("96e9", "lots", r"mine\.yaml:6: chips\.mine\.memory\.value: 'lots' is no number"),
        ("96e9", ".nan", r"mine\.yaml:6: chips\.mine\.memory\.value: '\.nan' is no number"),
        ("96e9", "nan", r"mine\.yaml:6: chips\.mine\.memory\.value: 'nan' is no number"),
        ("value: 8,", "value: 8.5,", r"mine\.yaml:8: chips\.mine\.node\.value: must be a whole number"),
        ("grade: assumed", "grade: guess", r"mine\.yaml:10: chips\.mine\.network\.grade: 'guess' is none of"),
        ("date: 2026-11, grade: assumed", "grade: assumed", r"mine\.yaml:10: chips\.mine\.network: has no date"),
        ("    link", "    lnik", r"mine\.yaml:9: chips\.mine\.lnik: unknown key; did you mean 'link'\?"),
        ("    devices: [A1]\n", "    name: B\n", r"mine\.yaml:4: chips\.mine\.name: duplicate key"),
        ("CNY", "XYZ", r"mine\.yaml: chips\.mine\.price: currency 'XYZ' is none of USD, CNY"),
        ("[A1]", "A1", r"mine\.yaml:4: chips\.mine\.devices: must be a list"),
        ("chips:", "chip:", r"mine\.yaml:1: chip: unknown key; did you mean 'chips'\?"),
        (MINE, "", r"mine\.yaml: is empty"),
        (MINE, "chips: [", r"mine\.yaml:\d: "),
        (MINE, "chips: 5", r"mine\.yaml:1: chips: must be a section"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in MINE
    with pytest.raises(UserError, match=message):
        read(tmp_path, MINE.replace(old, new, 1))


def test_a_missing_figure_is_named(tmp_path: Path) -> None:
    without = "\n".join(line for line in MINE.splitlines() if "bandwidth" not in line)
    with pytest.raises(UserError, match=r"chips\.mine: has no bandwidth"):
        read(tmp_path, without)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_catalogue([tmp_path / "none.yaml"])
