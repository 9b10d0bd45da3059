"""Sound files of every format, written byte by byte from the formats' descriptions, with values in closed form."""

import gzip
import io
import math
import struct
import zipfile
from types import SimpleNamespace

import pytest

CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ROWS, COLUMNS = 5, 4


def cifar_pixel(batch, record, channel, row, column):
    return (batch * 31 + record * 7 + channel * 50 + row * 3 + column * 5) % 256


def cifar_label(batch, record):
    return (batch + 3 * record) % 10


def cifar_batch(batch, records):
    """Records of a label and three planes of 32 rows."""
    content = bytearray()
    for record in range(records):
        content.append(cifar_label(batch, record))
        content += bytes(cifar_pixel(batch, record, c, y, x) for c in range(3) for y in range(32) for x in range(32))
    return bytes(content)


def cifar10(records=2):
    files = {name: cifar_batch(batch, records) for batch, name in enumerate(CIFAR_FILES)}
    return {**files, "batches.meta.txt": ("\n".join(CIFAR_NAMES) + "\n\n").encode()}


def idx_pixel(part, record, row, column):
    return (part * 101 + record * 11 + row * 3 + column) % 256


def idx_label(part, record):
    return (part + 7 * record) % 10


def idx_array(sizes, data, kind=0x08):
    """Magic number, big-endian sizes, elements."""
    return bytes((0, 0, kind, len(sizes))) + struct.pack(f">{len(sizes)}I", *sizes) + bytes(data)


def idx_images(part, records):
    pixels = (idx_pixel(part, n, y, x) for n in range(records) for y in range(ROWS) for x in range(COLUMNS))
    return idx_array((records, ROWS, COLUMNS), pixels)


def idx_labels(part, records):
    return idx_array((records,), (idx_label(part, n) for n in range(records)))


def idx(records=(6, 3), mark="-", gz=False):
    files = {}
    for part, (name, count) in enumerate(zip(("train", "t10k"), records, strict=True)):
        files[f"{name}-images{mark}idx3-ubyte"] = idx_images(part, count)
        files[f"{name}-labels{mark}idx1-ubyte"] = idx_labels(part, count)
    return {name + ".gz": gzip.compress(content, mtime=0) for name, content in files.items()} if gz else files


def npy(descr, shape, data, fortran=False, version=1):
    """Magic string, version, length of the header, header, elements."""
    header = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape!r}, }}"
    width = 2 if version == 1 else 4
    header += " " * (-(8 + width + len(header) + 1) % 64) + "\n"
    return b"\x93NUMPY" + bytes((version, 0)) + len(header).to_bytes(width, "little") + header.encode() + data


def packed(members, method=zipfile.ZIP_STORED):
    """A zip file of named contents."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return whole.getvalue()


def npz_value(part, record, feature):
    return part + record / 4 - feature


def npz_members(records=(6, 3), features=(2, 2)):
    """Arrays of float32 inputs [N, 2, 2] and int64 targets [N] of 3 classes; a third number is the test's."""
    members = {}
    for part, (name, count) in enumerate(zip(("train", "val", "test"), records, strict=False)):
        values = [npz_value(part, n, feature) for n in range(count) for feature in range(math.prod(features))]
        members[f"{name}_inputs.npy"] = npy("<f4", (count, *features), struct.pack(f"<{len(values)}f", *values))
        members[f"{name}_targets.npy"] = npy("<i8", (count,), struct.pack(f"<{count}q", *(n % 3 for n in range(count))))
    return members


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def sound():
    """All of the above."""
    return SimpleNamespace(**{name: value for name, value in globals().items() if not name.startswith("_")})
