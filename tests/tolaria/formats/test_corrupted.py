"""Several hundred broken datasets: each is refused in one line that names the file, and takes next to no memory."""

import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from esper.tolaria.data import DatasetError
from esper.tolaria.formats.cifar10 import cifar10
from esper.tolaria.formats.detect import check
from esper.tolaria.formats.idx import idx, read_idx
from esper.tolaria.formats.npz import npz
from esper.tolaria.formats.text import text

BOMB = 2**24  # bytes that a small file unpacks to
ROOM = BOMB // 4  # bytes a refusal may take; the sound files are below 40 KiB
FOLDER = "folder"  # content of a "file" that is a folder


class Sparse(NamedTuple):
    """A file of zeros, of which only the beginning is stored."""

    content: bytes
    size: int


class Corruption(NamedTuple):
    category: str
    base: str
    changes: dict  # file name -> content, Sparse, FOLDER, or None for a missing file
    blamed: str  # what the error names: a file, or "" for the dataset's folder


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def cifar_cases(sound):
    files = sound.cifar10()
    for name in sound.CIFAR_FILES:
        whole = files[name]
        for length in (1, 100, 3072, 3073, 3074, len(whole) - 1):
            yield Corruption("truncated", "cifar10", {name: whole[:length]}, name)
        yield Corruption("empty", "cifar10", {name: b""}, name)
        yield Corruption("missing", "cifar10", {name: None}, name)
        yield Corruption("too long", "cifar10", {name: whole + b"\0"}, name)
        yield Corruption("absurd size", "cifar10", {name: Sparse(whole, 2**40)}, name)
        yield Corruption("not a file", "cifar10", {name: FOLDER}, name)
        for record, label in ((0, 10), (1, 11), (0, 128), (1, 255)):
            content = bytearray(whole)
            content[record * 3073] = label
            yield Corruption("label out of range", "cifar10", {name: bytes(content)}, name)
    names = files["batches.meta.txt"]
    for content in (b"", b"\xff" + names, names.replace(b"ship\n", b""), names.replace(b"cat", b"dog"), names + b"x"):
        yield Corruption("class names", "cifar10", {"batches.meta.txt": content}, "batches.meta.txt")
    yield Corruption("absurd size", "cifar10", {"batches.meta.txt": Sparse(names, 2**40)}, "batches.meta.txt")
    yield Corruption("no content", "cifar10", {name: bytes(2 * 3073) for name in sound.CIFAR_FILES}, "")


def idx_cases(sound):
    files = sound.idx()
    for name, whole in files.items():
        header = 16 if "images" in name else 8
        for bit in range(8 * header):
            yield Corruption("bit-flipped header", "idx", {name: flipped(whole, bit)}, name.removesuffix("idx1-ubyte"))
        for length in (1, 3, 4, header - 1, header, header + 1, len(whole) - 1):
            yield Corruption("truncated", "idx", {name: whole[:length]}, name)
        for magic in (b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x93NUM", b"\x89PNG"):
            yield Corruption("wrong magic", "idx", {name: magic + whole[4:]}, name)
        yield Corruption("empty", "idx", {name: b""}, name)
        yield Corruption("missing", "idx", {name: None}, name)
        yield Corruption("too long", "idx", {name: whole + b"\0"}, name)
        yield Corruption("not a file", "idx", {name: FOLDER}, name)
        yield Corruption("absurd size", "idx", {name: Sparse(whole, 2**40)}, name)
        for sizes in ((2**31, 28, 28), (2**32 - 1,) * 3, (6, 2**32 - 1, 1)):
            yield Corruption("absurd size", "idx", {name: sound.idx_array(sizes[: header // 4 - 1], b"")}, name)
    images, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    yield Corruption("mislabelled", "idx", {images: files[labels], labels: files[images]}, images)
    yield Corruption("mislabelled", "idx", {labels: files["t10k-labels-idx1-ubyte"]}, labels)
    yield Corruption("mislabelled", "idx", {"t10k-images-idx3-ubyte": files[images]}, "t10k-labels-idx1-ubyte")
    for record, label in ((1, 10), (5, 11), (3, 255)):  # record 0 keeps the label 0: labels begin there
        content = bytearray(files[labels])
        content[8 + record] = label
        yield Corruption("label out of range", "idx", {labels: bytes(content)}, labels)


def gz_cases(sound):
    files = sound.idx(gz=True)
    for name, whole in files.items():
        plain, header = gzip.decompress(whole), 16 if "images" in name else 8
        for length in range(1, len(whole), 5):
            yield Corruption("truncated", "idx.gz", {name: whole[:length]}, name)
        for bit in (0, 9, 18, *range(8 * len(whole) - 64, 8 * len(whole), 3)):  # magic, method, checksum and size
            yield Corruption("damaged compression", "idx.gz", {name: flipped(whole, bit)}, name)
        for bit in range(0, 8 * header, 5):
            content = gzip.compress(flipped(plain, bit))
            yield Corruption("bit-flipped header", "idx.gz", {name: content}, name)
        sizes = (2**31, 28, 28)[: header // 4 - 1]
        yield Corruption("absurd size", "idx.gz", {name: gzip.compress(sound.idx_array(sizes, b"x"))}, name)
        bomb = gzip.compress(plain + bytes(BOMB))
        yield Corruption("decompression bomb", "idx.gz", {name: bomb}, name)
        promising = sound.idx_array((2**26, 1, 1)[: header // 4 - 1], b"")  # plausible for the size of the file, false
        zipped = gzip.compress(promising) + gzip.compress(hashlib.shake_128(name.encode()).digest(2**17))[:-9]
        yield Corruption("decompression bomb", "idx.gz", {name: zipped}, name)
        yield Corruption("empty", "idx.gz", {name: gzip.compress(b"")}, name)
        yield Corruption("wrong magic", "idx.gz", {name: plain}, name)
        yield Corruption("too long", "idx.gz", {name: whole + b"trailing"}, name)


def npz_cases(sound):
    """The archive around the arrays."""
    members = sound.npz_members()
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        whole = sound.packed(members, method)
        for length in range(1, len(whole), 31):
            yield Corruption("truncated", "npz", {"a.npz": whole[:length]}, "a.npz")
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            starts = [info.header_offset + 30 + len(info.filename) for info in archive.infolist()]
        for start in starts:
            for bit in range(8 * start + 1, 8 * start + 200, 7):  # bit 0 of DEFLATE marks the last block: harmless
                yield Corruption("bit-flipped header", "npz", {"a.npz": flipped(whole, bit)}, "a.npz")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield Corruption("packing", "npz", {"a.npz": sound.packed(members, method)}, "a.npz")
    for content in (b"", sound.packed({})):
        yield Corruption("empty", "npz", {"a.npz": content}, "a.npz")
    yield Corruption("wrong magic", "npz", {"a.npz": members["train_inputs.npy"]}, "a.npz")
    yield Corruption("absurd size", "npz", {"a.npz": Sparse(sound.packed(members), 2**40)}, "a.npz")
    yield Corruption("missing", "npz", {"a.npz": None}, "a.npz")


def npy_cases(sound):
    """The arrays in the archive, one wrong and three sound."""
    members = sound.npz_members()

    def case(category, method=zipfile.ZIP_STORED, **changes):
        changed = {**members, **{name + ".npy": content for name, content in changes.items()}}
        kept = {name: content for name, content in changed.items() if content is not None}
        return Corruption(category, "npz", {"a.npz": sound.packed(kept, method)}, "a.npz")

    for name in ("train_inputs", "train_targets", "val_inputs", "val_targets"):
        content = members[name + ".npy"]
        yield case("missing", **{name: None})
        yield case("empty", **{name: b""})
        for wrong in (b"\x92" + content[1:], content[:6] + b"\x04" + content[7:]):
            yield case("wrong magic", **{name: wrong})
        for length in (len(content) - 1, 40, 9):
            yield case("truncated", **{name: content[:length]})
        yield case("too long", **{name: content + b"\0"})
        yield case("absurd size", **{name: content[:8] + b"\xff\xff" + content[10:]})
        for shape in ((2**31, 2, 2), (2**63,), (10**18,) * 5):
            yield case("absurd size", **{name: sound.npy("<f4", shape, b"")})
            yield case("absurd size", zipfile.ZIP_DEFLATED, **{name: sound.npy("<i8", shape, bytes(2**20))})
        for descr in ("|O", "<U4", "<c8", "|V8", "<f16", "<M8[s]", ""):
            yield case("element type", **{name: sound.npy(descr, (6,), bytes(96))})
        bomb = sound.npy("<f4", (6, 2, 2), bytes(96)) + bytes(BOMB)
        yield case("decompression bomb", zipfile.ZIP_DEFLATED, **{name: bomb})
    for label in (-1, 3, 2**40, 2**63 - 1, -(2**63)):
        targets = sound.npy("<i8", (3,), struct.pack("<3q", 0, 1, label))
        yield case("label out of range", val_targets=targets)
    for label in (-1, 2**40, 2**63 - 1):
        targets = sound.npy("<i8", (6,), struct.pack("<6q", *[label] * 6))
        yield case("label out of range", train_targets=targets)
    for value in (float("nan"), float("inf")):
        yield case("not finite", val_inputs=sound.npy("<f4", (3, 2, 2), struct.pack("<12f", *[1.0] * 11, value)))
    yield case("absurd size", num_classes=sound.npy("<i8", (), struct.pack("<q", 2**50)))


def text_cases(sound):
    whole = sound_text().encode()
    for place in (0, 1, len(whole) // 2, len(whole)):
        for wrong in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\0", b"\x80"):
            yield Corruption("bad byte", "text", {"a.txt": whole[:place] + wrong + whole[place:]}, "a.txt")
    for codec in ("utf-16", "utf-16-le", "utf-32", "latin-1"):
        yield Corruption("wrong magic", "text", {"a.txt": sound_text().encode(codec)}, "a.txt")
    for content in (b"", b"a", b"\r\n", b"\xef\xbb\xbf", "é".encode()):
        yield Corruption("empty", "text", {"a.txt": content}, "a.txt")
    yield Corruption("truncated", "text", {"a.txt": whole[:-1]}, "a.txt")
    yield Corruption("absurd size", "text", {"a.txt": Sparse(whole, 2**40)}, "a.txt")
    yield Corruption("missing", "text", {"a.txt": None}, "a.txt")
    yield Corruption("not a file", "text", {"a.txt": FOLDER}, "a.txt")


def sound_text():
    return "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich é"


def write(path, content):
    if isinstance(content, Sparse):
        path.write_bytes(content.content)
        os.truncate(path, content.size)
    elif content == FOLDER:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def bases(sound):
    return {
        "cifar10": sound.cifar10(),
        "idx": sound.idx(),
        "idx.gz": sound.idx(gz=True),
        "npz": {"a.npz": sound.packed(sound.npz_members())},
        "text": {"a.txt": sound_text().encode()},
    }


@pytest.fixture(scope="module")
def cases(sound, bases, tmp_path_factory):
    """Every broken dataset on the disk: (case, path)."""
    root, written = tmp_path_factory.mktemp("corrupted"), []
    for kind in (cifar_cases, idx_cases, gz_cases, npz_cases, npy_cases, text_cases):
        for case in kind(sound):
            folder = root / f"{len(written)}"
            folder.mkdir()
            for name, content in {**bases[case.base], **case.changes}.items():
                write(folder / name, content)
            written.append((case, folder if case.base[:3] in ("cif", "idx") else folder / case.blamed))
    return written


def test_the_sound_files_load(bases, tmp_path):
    """So what is refused below is refused for its corruption."""
    for name, files in bases.items():
        (tmp_path / name).mkdir()
        for file, content in files.items():
            write(tmp_path / name / file, content)
        path = tmp_path / name if len(files) > 1 else tmp_path / name / next(iter(files))
        assert check(path).parts[0].records > 0


def test_there_are_enough_of_every_kind(cases):
    kinds = Counter((case.base, case.category) for case, _ in cases)
    assert len(cases) >= 200 and len(kinds) >= 30
    for base in ("cifar10", "idx", "idx.gz", "npz", "text"):
        of_base = {category for kind, category in kinds if kind == base}
        assert {"truncated", "empty", "absurd size"} <= of_base, base


def complaint(case, path, peak, message):
    """What is wrong with a refusal (message None: it loaded), or nothing."""
    if message is None:
        return "loaded"
    if message.splitlines() != [message] or "found" not in message or "expected" not in message:
        return f"not one line of what was found and expected: {message!r}"
    if str(path) not in message or case.blamed not in message:
        return f"does not name {case.blamed}: {message}"
    return f"took {peak} bytes" if peak > ROOM else None


def test_every_corruption_is_one_line_with_the_file_and_little_memory(cases):
    complaints = []
    tracemalloc.start()
    try:
        for case, path in cases:
            message = None
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                check(path)
            except DatasetError as error:
                message = str(error)
            wrong = complaint(case, path, tracemalloc.get_traced_memory()[1] - before, message)
            if wrong:
                complaints.append((case.base, case.category, path.name, wrong))
    finally:
        tracemalloc.stop()
    assert complaints == []


COMMAND = """
import io, json, resource, sys
from pathlib import Path
from esper.runtime.data_check import data_check

status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = int(status["VmSize"].split()[0]) * 1024 + 64 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
answers = []
for path in json.load(sys.stdin):
    try:
        data_check(["check", path], io.StringIO())
        answers.append(["loaded", ""])
    except Exception as error:
        answers.append([type(error).__name__, str(error)])
json.dump(answers, sys.stdout)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the size of the process from /proc")
def test_the_command_refuses_them_with_64_mebibytes_to_spare(cases):
    cases = cases[::3]
    paths = json.dumps([str(path) for _, path in cases])
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], input=paths, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) == len(cases) >= 200
    for (case, path), (kind, message) in zip(cases, answers, strict=True):
        assert kind == "DatasetError" and str(path) in message, (case, path, kind, message)


def refused_or_loaded(load, path, *arguments):
    """Any bytes: a dataset, or one line that names the file; never another exception (or a warning)."""
    try:
        load(path, *arguments)
    except DatasetError as error:
        assert str(error).splitlines() == [str(error)] and str(path) in str(error)


@given(content=st.binary(max_size=300))
def test_arbitrary_bytes(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    for name in ("a.npz", "a.txt", "a", "a.gz", "data_batch_1.bin"):
        (folder / name).write_bytes(content)
        refused_or_loaded(check, folder / name)
    for rank in (1, 3):
        refused_or_loaded(read_idx, folder / "a", rank)
        refused_or_loaded(read_idx, folder / "a.gz", rank)
    (folder / "header.npz").write_bytes(packed_npy(content))
    refused_or_loaded(npz, folder / "header.npz")
    (folder / "b.gz").write_bytes(gzip.compress(content))
    refused_or_loaded(read_idx, folder / "b.gz", 3)
    refused_or_loaded(check, folder)


def packed_npy(content):
    """An archive whose arrays all have these bytes for a header."""
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name in ("train_inputs", "train_targets", "val_inputs", "val_targets"):
            archive.writestr(name + ".npy", member)
    return whole.getvalue()


@settings(max_examples=300)
@given(data=st.data())
def test_sound_files_with_bytes_exchanged(bases, tmp_path_factory, data):
    base = data.draw(st.sampled_from(sorted(bases)))
    folder = tmp_path_factory.mktemp("spliced")
    for name, content in bases[base].items():
        write(folder / name, content)
    name = data.draw(st.sampled_from(sorted(bases[base])))
    whole = bases[base][name]
    start = data.draw(
        st.one_of(st.integers(0, min(len(whole), 200)), st.integers(max(0, len(whole) - 200), len(whole)))
    )
    stop = data.draw(st.integers(start, min(start + 8, len(whole))))
    (folder / name).write_bytes(whole[:start] + data.draw(st.binary(max_size=8)) + whole[stop:])
    load, path = {
        "cifar10": (cifar10, folder),
        "idx": (idx, folder),
        "idx.gz": (idx, folder),
        "npz": (npz, folder / name),
        "text": (text, folder / name),
    }[base]
    try:
        load(path)
    except DatasetError as error:
        assert str(error).splitlines() == [str(error)] and str(folder) in str(error)


@example(1032)
@given(ratio=st.integers(1, 1032))
def test_no_deflate_stream_unpacks_further_than_the_bound(ratio):
    """zlib's best on zeros stays below the bound, so the bound refuses no honest file."""
    size = ratio * 1000
    assert size <= 1032 * len(zlib.compress(bytes(size), 9))
