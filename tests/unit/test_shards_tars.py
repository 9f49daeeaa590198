"""The tar writer and the walker, against the standard library and against damage."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccts_dist.errors import ShardError
from ccts_dist.shards.tars import walk_tar, write_tar

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


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=100, deadline=None)
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
        (b"L", "member of unknown type b'L'"),
    ],
)
def test_members_that_are_no_files_are_told_apart(tmp_path: Path, kind: bytes, word: str):
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
    "records", [b"", b"x", b"9 path=ab", b"99 path=a\n", b"11 size=-1\n", b"9 path_a\n", b"0 a=\n"]
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
    with pytest.raises(ShardError, match="an extended header is damaged"):
        list(walk_tar(tmp_path / "a.tar"))
