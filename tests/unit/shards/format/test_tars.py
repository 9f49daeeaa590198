"""The tar writer and the walker, against the standard library and against damage."""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import ShardError
from ccts_dist.shards.format.tars import BrokenTarError, walk_tar, write_tar
from tests.tiers import examples

SAMPLES = [("a", {"flac": b"x" * 700, "json": b"{}"}), ("k" * 180, {"flac": b"", "json": b"y" * 512})]


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    write_tar(tmp_path / "a.tar", SAMPLES)
    return tmp_path / "a.tar"


def test_members_stand_where_the_standard_library_finds_them(tar: Path):
    with tarfile.open(tar) as opened:
        theirs = [(member.name, member.offset_data, member.size) for member in opened]
    ours = [(member.name, member.offset, member.size) for member in walk_tar(tar)]
    assert ours == theirs
    assert [name for name, _, _ in ours] == ["a.flac", "a.json", "k" * 180 + ".flac", "k" * 180 + ".json"]


def test_headers_carry_nothing_of_time_place_or_user(tar: Path):
    with tarfile.open(tar) as opened:
        facts = {(m.mtime, m.mode, m.uname, m.gname, m.uid, m.gid) for m in opened}
    assert facts == {(0, 0o644, "ccts", "ccts", 0, 0)}


def test_equal_samples_give_equal_bytes(tar: Path, tmp_path: Path):
    write_tar(tmp_path / "b.tar", reversed([(key, dict(reversed(members.items()))) for key, members in SAMPLES[::-1]]))
    assert (tmp_path / "b.tar").read_bytes() == tar.read_bytes()


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path):
    def failing():
        yield SAMPLES[0]
        raise ShardError("stop")

    with pytest.raises(ShardError, match="stop"):
        write_tar(tmp_path / "a.tar", failing())
    assert list(tmp_path.iterdir()) == []


def test_every_cut_is_seen(tar: Path, tmp_path: Path):
    whole, cut = tar.read_bytes(), tmp_path / "cut.tar"
    end = max(member.offset + member.size for member in walk_tar(tar))
    positions = [*range(0, end + 512, 256), end + 1, end + 511]
    for length in positions:
        cut.write_bytes(whole[:length])
        with pytest.raises(ShardError, match=r"cut\.tar: "):
            list(walk_tar(cut))


@examples(60)
@given(data=st.data())
def test_a_flipped_bit_is_seen_or_leaves_every_member_in_its_place(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path = tmp_path_factory.mktemp("flip") / "a.tar"
    write_tar(path, SAMPLES)
    before = [(member.offset, member.size) for member in walk_tar(path)]
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    try:
        after = [(member.offset, member.size) for member in walk_tar(path)]
    except ShardError:
        return
    assert after == before


@examples(100)
@given(st.binary(max_size=3000))
def test_bytes_of_any_kind_walk_or_raise_a_shard_error(tmp_path_factory: pytest.TempPathFactory, noise: bytes):
    path = tmp_path_factory.mktemp("noise") / "a.tar"
    path.write_bytes(noise)
    with pytest.raises(ShardError, match=r"a\.tar: "):
        list(walk_tar(path))


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.CHRTYPE, "character device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.DIRTYPE, "folder"),
        (tarfile.FIFOTYPE, "pipe"),
        (tarfile.XGLTYPE, "global extended header"),
        (tarfile.GNUTYPE_SPARSE, "sparse file"),
        (b"Z", "member of unknown type b'Z'"),
    ],
)
def test_members_that_are_no_files_are_distinguished(tmp_path: Path, kind: bytes, word: str):
    member = tarfile.TarInfo("../out")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as opened:
        opened.addfile(member)
    (walked,) = walk_tar(tmp_path / "a.tar")
    assert (walked.kind, walked.name.rstrip("/"), walked.size) == (word, "../out", 0)


def test_bytes_after_a_block_of_zeros_are_seen(tar: Path):
    tar.write_bytes(tar.read_bytes() + b"x" * 512)
    with pytest.raises(ShardError, match="bytes follow a block of zeros"):
        list(walk_tar(tar))


def test_zeros_in_the_middle_are_seen(tar: Path):
    """WebDataset reads such a tar without a word, and stops early."""
    data = tar.read_bytes()
    tar.write_bytes(data[:2048] + bytes(1024) + data[3072:])
    with pytest.raises(ShardError, match="bytes follow a block of zeros"):
        list(walk_tar(tar))


@pytest.mark.parametrize(
    "records", [b"", b"x", b"9 path=ab", b"99 path=a\n", b"9 path_a\n", b"0 a=\n", b"1 ", b"99999999999 a=b\n"]
)
def test_a_damaged_extended_header_is_seen(tmp_path: Path, records: bytes):
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, len(records)
    after = tarfile.TarInfo("y")
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as opened:
        opened.addfile(member, io.BytesIO(records))
        opened.addfile(after)
    if not records:
        assert [m.name for m in walk_tar(tmp_path / "a.tar")] == ["y"]
        return
    with pytest.raises(ShardError, match="an extended header is damaged"):
        list(walk_tar(tmp_path / "a.tar"))


def test_an_extended_header_larger_than_any_name_is_refused(tmp_path: Path):
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 21
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as opened:
        opened.addfile(member, io.BytesIO(bytes(1 << 21)))
    with pytest.raises(ShardError, match="an extended header is damaged: it claims 2097152 bytes"):
        list(walk_tar(tmp_path / "a.tar"))


def test_an_extended_header_of_very_many_records_takes_no_time(tmp_path: Path):
    records = b"5 a=\n" * 200_000
    records += b"10 path=y\n"
    header = with_size(tarfile.TarInfo("x"), f"{len(records):011o}".encode() + b"\0", tarfile.XHDTYPE)
    tar = header + records.ljust(-(-len(records) // 512) * 512, b"\0") + tarfile.TarInfo("z").tobuf() + bytes(1024)
    (tmp_path / "a.tar").write_bytes(tar)
    began = time.monotonic()
    assert [member.name for member in walk_tar(tmp_path / "a.tar")] == ["y"]
    assert time.monotonic() - began < 5  # slicing what is left for each record would take minutes


def with_size(member: tarfile.TarInfo, field: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that has these bytes for a size, and a checksum to match."""
    member.type = kind
    block = bytearray(member.tobuf(format=tarfile.USTAR_FORMAT))
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}".encode() + b"\0 "
    return bytes(block)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (b"77777777777\0", "member 'a.flac' has an absurd size field: 8589934591 bytes, and the whole file has 2048"),
        (b"\x80" + b"\x7f" * 11, "member 'a.flac' has an absurd size field: 154"),
        (b"\xff" * 12, "member 'a.flac' has a negative size, -1"),
        (b"-0000000001\0", "member 'a.flac' has a size field that is no number"),
        (b"\0" * 12, "member 'a.flac' has a size field that is no number"),
        (b"00000003000\0", "cut inside member 'a.flac': it claims 1536 bytes, and 1024 are left"),
        (b"00000002000\0", "ends at byte 2048 without an end mark"),
    ],
)
def test_a_size_field_is_believed_as_far_as_the_file_goes(tmp_path: Path, field: bytes, words: str):
    tar = tarfile.TarInfo("b.flac").tobuf(format=tarfile.USTAR_FORMAT) + with_size(tarfile.TarInfo("a.flac"), field)
    (tmp_path / "a.tar").write_bytes(tar + bytes(1024))
    with pytest.raises(BrokenTarError, match=words) as caught:
        list(walk_tar(tmp_path / "a.tar"))
    assert caught.value.offset in (512, 2048)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (b"11 size=-1\n", "member 'y' has no size in its extended header, '-1'"),
        (b"28 size=1234567890123456789\n", "member 'y' has no size in its extended header, '1234567890123456789'"),
        (b"27 size=123456789012345678\n", "member 'y' has an absurd size field: 123456789012345678 bytes"),
        ("11 size=\N{ARABIC-INDIC DIGIT ONE}\n".encode(), "member 'y' has no size in its extended header"),
    ],
)
def test_a_size_in_an_extended_header_is_believed_as_little(tmp_path: Path, records: bytes, words: str):
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, len(records)
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as opened:
        opened.addfile(member, io.BytesIO(records))
        opened.addfile(tarfile.TarInfo("y"))
    with pytest.raises(BrokenTarError, match=words):
        list(walk_tar(tmp_path / "a.tar"))


def test_long_names_as_gnu_tar_writes_them_are_read(tmp_path: Path):
    member, link = tarfile.TarInfo("k" * 180 + ".flac"), tarfile.TarInfo("a")
    link.type, link.linkname = tarfile.SYMTYPE, "b" * 200
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as opened:
        opened.addfile(member)
        opened.addfile(link)
    names = [(walked.name, walked.kind) for walked in walk_tar(tmp_path / "a.tar")]
    assert names == [(member.name, "file"), ("a", "symbolic link")]


def test_a_long_name_without_a_member_is_refused(tmp_path: Path):
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as opened:
        opened.addfile(member, io.BytesIO(b"y\0"))
    with pytest.raises(ShardError, match="an extended header stands before the end mark, and no member after it"):
        list(walk_tar(tmp_path / "a.tar"))


def test_what_a_global_header_states_is_not_believed(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w", pax_headers={"path": "b.flac", "size": "99"}) as opened:
        opened.addfile(tarfile.TarInfo("a.flac"))
    walked = [(member.name, member.kind, member.size) for member in walk_tar(tmp_path / "a.tar")]
    assert walked[0][1] == "global extended header"
    assert walked[1] == ("a.flac", "file", 0)


def test_a_sparse_file_is_reported_whatever_its_header_is_called(tmp_path: Path):
    member = tarfile.TarInfo("a.flac")
    member.pax_headers = {"GNU.sparse.name": "b.flac", "GNU.sparse.size": "9"}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as opened:
        opened.addfile(member)
    assert [walked.kind for walked in walk_tar(tmp_path / "a.tar")] == ["sparse file"]


@pytest.mark.parametrize(
    ("begins", "kind"),
    [
        (gzip.compress(b"x", mtime=0), "gzip"),
        (bz2.compress(b"x"), "bzip2"),
        (lzma.compress(b"x"), "xz"),
        (pa.compress(b"x", codec="zstd", asbytes=True), "zstd"),
        (b"PK\x03\x04", "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a Git LFS pointer"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "a web page or XML, perhaps a server's error"),
    ],
)
@pytest.mark.parametrize("length", [100, 2000])
def test_another_file_in_a_tars_place_is_named(tmp_path: Path, begins: bytes, kind: str, length: int):
    (tmp_path / "a.tar").write_bytes(begins.ljust(length, b"x"))
    with pytest.raises(BrokenTarError, match=re.escape(f"a.tar: is {kind}, not a plain tar")):
        list(walk_tar(tmp_path / "a.tar"))


def test_a_member_whose_name_begins_like_another_file_is_a_member(tmp_path: Path):
    write_tar(tmp_path / "a.tar", [("BZh", {"flac": b""}), ("PK", {"flac": b""})])
    assert [member.name for member in walk_tar(tmp_path / "a.tar")] == ["BZh.flac", "PK.flac"]


@pytest.mark.parametrize(("data", "words"), [(b"", "is empty (0 bytes)"), (bytes(10_240), "holds nothing but zeros")])
def test_an_empty_file_and_one_of_zeros_are_refused(tmp_path: Path, data: bytes, words: str):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(BrokenTarError, match=re.escape(words)):
        list(walk_tar(tmp_path / "a.tar"))


def test_a_hole_at_the_end_of_a_file_is_not_read_to_its_end(tar: Path):
    """A file that was allocated and never filled may be larger than any disk."""
    with open(tar, "r+b") as file:
        file.truncate(1 << 42)
    with pytest.raises(BrokenTarError, match=f"bytes follow a block of zeros at byte {len(tar_data(tar))}"):
        list(walk_tar(tar))


def tar_data(path: Path) -> bytes:
    """What stands before the zeros at a tar's end."""
    with open(path, "rb") as file:
        data = file.read(1 << 20).rstrip(b"\0")
    return data.ljust(-(-len(data) // 512) * 512, b"\0")
