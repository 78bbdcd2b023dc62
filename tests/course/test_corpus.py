"""The corpus recipe on small texts: no network, no model."""

import hashlib
import io
import json
import tarfile
import zipfile
import zlib
from collections import Counter

import pytest

from recipes import cleaning, corpus, packages, readers
from utils.errors import CourseError
from utils.paths import ASSETS

PROSE = "The harvest of the northern valleys was poor that year, and the roads to the market were closed by snow."
OTHER = "A dictionary with more columns than rows can be read as a list of directions, most of which are at rest."
LISTED = corpus.listed_packages()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path))
    return packages.corpus_dir()


# Cleaning


def test_paragraphs_are_single_lines_without_control_characters():
    assert cleaning.paragraphs("one\x07 two\r\nthree\n \n\n  four\u200b five\t six .\n") == [
        "one two three",
        "four five six.",
    ]


@pytest.mark.parametrize(
    "noise",
    [
        "x = np.zeros((4, 5)); y[3:7] += 2 ** (8 - 1)",
        "----- ===== ----- ===== -----",
        "12.4 | 13.9 | 88.1 | 70.2 | kg",
        "Next page",
        "Permission is hereby granted, free of charge, to any person obtaining a copy of this software",
        "ACP, AfDB, AU, ECOWAS, EITI, FAO, IBRD, ICAO, ICC, IDA, IDB, IFAD, ILO, IMF, IMO, Interpol, IOC, IOM, IPU, "
        "ISO, ITSO, ITU, NATO",
    ],
)
def test_what_is_no_prose_is_left_out(noise):
    assert cleaning.clean(f"{PROSE}\n\n{noise}\n\n{OTHER}") == [PROSE, OTHER]


def test_another_language_is_left_out():
    assert (
        cleaning.clean("Le marché était fermé à cause de la neige, et les routes du nord restaient vides tout l'hiver.")
        == []
    )


# Repeats


def test_a_repeat_is_left_out_word_for_word_or_nearly():
    repeats = cleaning.Repeats()
    assert repeats.is_new(PROSE)
    assert not repeats.is_new(PROSE.upper().replace(",", " --"))
    assert not repeats.is_new(PROSE.replace("snow", "deep snow"))
    assert repeats.is_new(OTHER)


def test_a_repeat_of_a_long_paragraph_is_recognised_from_a_sample_of_it():
    words = [f"word{i % 97}x{i}" for i in range(400)]
    repeats = cleaning.Repeats()
    assert repeats.is_new(" ".join(words))
    assert not repeats.is_new(" ".join(["so", *words[:150], "and", *words[150:]]))
    assert repeats.is_new(" ".join(reversed(words)))


def test_reserved_text_is_left_out_even_as_a_quotation_in_a_longer_paragraph():
    repeats = cleaning.Repeats(reserved=[PROSE, "It works."])
    assert not repeats.is_new(f"{OTHER} As he used to say: {PROSE} {OTHER.replace('rows', 'numbers')}")
    assert repeats.is_new("It works. " + OTHER)


# Splits


def test_splits_depend_on_the_document_alone_and_have_their_shares():
    names = [f"source/{i}" for i in range(4000)]
    shares = Counter(corpus.split_of(name, may_be_shipped=True) for name in names)
    assert shares["held_out"] / 4000 == pytest.approx(corpus.HELD_OUT_SHARE, abs=0.02)
    assert shares["public"] / 4000 == pytest.approx(corpus.PUBLIC_SHARE, abs=0.03)
    assert [corpus.split_of(name, True) for name in reversed(names)] == [corpus.split_of(n, True) for n in names][::-1]


def test_text_that_may_not_be_shipped_never_gets_into_the_public_split():
    names = [f"source/{i}" for i in range(2000)]
    kept_in = {corpus.split_of(name, may_be_shipped=False) for name in names}
    assert kept_in == {"train", "held_out"}
    # What is held out is held out whatever the licence.
    held = [name for name in names if corpus.split_of(name, False) == "held_out"]
    assert all(corpus.split_of(name, True) == "held_out" for name in held)


def test_sources_are_complete_and_none_reads_a_reserved_package():
    fields = {
        "name",
        "genre",
        "registry",
        "package",
        "version",
        "sha256",
        "reader",
        "files",
        "cap",
        "public",
        "licence",
    }
    fields |= {"licence_file", "licence_says"}
    for source in LISTED["source"]:
        assert fields <= source.keys(), source["name"]
        assert source["reader"] in readers.READERS
        assert source["registry"] in packages.CLIENTS
        assert not source["package"].startswith(("fortune", "jargon", "dict-jargon"))
    assert len({source["name"] for source in LISTED["source"]}) == len(LISTED["source"])
    assert len({source["genre"] for source in LISTED["source"]}) >= 6


# Readers


def test_markup_tables_code_and_navigation_are_taken_away():
    page = (
        "<html><head><title>T</title></head><body><div class='navheader'><div>Prev</div> Up</div><h1>Wells</h1>"
        "<p>Dig <b>deep</b> here &amp; there.<p>Then<br>drink.<pre>$ dig</pre>"
        "<table><tr><td>1</td></tr></table><p>End</body>"
    )
    assert cleaning.paragraphs(readers.strip_markup(page)) == [
        "Wells",
        "Dig deep here & there.",
        "Then",
        "drink.",
        "End",
    ]


def test_brown_tags_and_spaced_punctuation_are_undone():
    tagged = b"\n\n\tThe/at jury/nn said/vbd ,/, ``/`` Who/wps knows/vbz ''/'' ?/. ?/.\n\n\n\tOnly/rb we/ppss ./.\n"
    assert cleaning.paragraphs(next(readers.read_brown("ca01", tagged))[1]) == [
        "The jury said, “Who knows?”",
        "Only we.",
    ]


def test_mail_keeps_what_the_sender_wrote():
    mail = b"From: a@b.example\nSubject: x\n\nOn Monday Al wrote:\n> old\nI do agree.\nwrite to me@b.example\n-- \nAl\n"
    assert list(readers.read_mail("7.txt", mail)) == [("7", "I do agree.")]


def test_a_game_entry_keeps_narration_and_drops_menu_choices():
    entry = (
        b'mission "A"\n\tconversation\n\t\t`The <ship> waits.`\n\t\tchoice\n\t\t\t`\t(Leave.)`\n'
        b"\t\t`Go to <unknown>.`\n"
        b'planet "B"\n\tdescription "Cold."\n'
    )
    assert list(readers.read_endless_sky("m.txt", entry)) == [
        ('m: mission "A"', "The Meridian waits."),
        ('m: planet "B"', "Cold."),
    ]


def test_compressed_books_and_r_strings_are_read():
    osis = b'<title>Book</title><chapter osisID="A.1" sID="A.1"/><w>In</w> <w>time</w><note>n</note>, '
    osis += b'<div sID="1" type="x-p"/>all.'
    assert [
        (name, cleaning.paragraphs(text)) for name, text in readers.read_sword("x", zlib.compress(osis) + b"\0" * 9)
    ] == [("A.1", ["In time,", "all."])]
    lines = [b"CHAPTER 1", b"It was late", b"and cold."]
    data = b"".join(b"\x00\x04\x00\x09" + len(line).to_bytes(4, "big") + line for line in lines)
    novel = len(data).to_bytes(4, "big") + zlib.compress(data)
    assert [text.split() for _, text in readers.read_r_strings("x", novel)] == [
        [],
        ["It", "was", "late", "and", "cold."],
    ]


# Packages


def source_of(archive: bytes, **changes) -> corpus.Source:
    packages.write_atomically(packages.corpus_dir() / "packages" / hashlib.sha256(archive).hexdigest(), archive)
    source = {
        "name": "tales",
        "genre": "fiction",
        "registry": "npm",
        "package": "tales",
        "version": "1.0",
        "reader": "plain",
    }
    source |= {
        "sha256": hashlib.sha256(archive).hexdigest(),
        "files": "package/*.txt",
        "licence_file": "package/README",
    }
    return source | {"licence_says": "free as air", "cap": 1000, "public": True, "licence": "none"} | changes


def tarball(**files: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"package/{name.replace('_', '.')}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


def test_a_package_is_read_without_unpacking_and_its_licence_is_checked(cache):
    archive = tarball(b_txt="two", a_txt="one", README="This is free\nas air.", code_js="boom()")
    assert list(corpus.read(source_of(archive))) == [("a", "one"), ("b", "two")]
    assert list(corpus.read(source_of(archive, skip=["*/b.txt"]))) == [("a", "one")]
    with pytest.raises(CourseError, match=r"tales.*costs money"):
        list(corpus.read(source_of(archive, licence_says="costs money")))


def test_a_notice_keeps_what_is_about_the_licence_of_the_text(cache):
    debian = """Format: x

Files: *
Copyright: The Authors
License: MIT or GPL-2

Files: fonts/*
License: OFL

License: MIT
 Permission is granted
 .
 to anyone.
"""
    source = source_of(tarball(README=debian), licence_says="License: MIT or GPL-2")
    assert corpus.licence_notice(source).count("License:") == 2
    assert "The Authors" in corpus.licence_notice(source) and "to anyone" in corpus.licence_notice(source)


def test_a_wheel_is_read_like_a_tarball(cache, tmp_path):
    path = tmp_path / "w.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("a/data.json", "{}")
        wheel.writestr("a/code.py", "boom()")
    assert packages.members(path, "*.json") == {"a/data.json": b"{}"}


def test_a_damaged_package_is_named_and_thrown_away(cache):
    source = source_of(tarball(a_txt="one"))
    path = cache / "packages" / source["sha256"]
    path.write_bytes(b"damaged")
    with pytest.raises(CourseError, match=r"npm package tales 1\.0 has checksum"):
        packages.fetch(source)
    assert not path.exists()


def test_a_package_that_cannot_be_fetched_is_named(cache, monkeypatch):
    monkeypatch.setitem(packages.CLIENTS, "npm", lambda package, version: ["false"])
    with pytest.raises(CourseError, match=r"cannot fetch the npm package gone 3"):
        packages.fetch({"registry": "npm", "package": "gone", "version": "3", "sha256": "0" * 64})
    monkeypatch.setitem(packages.CLIENTS, "npm", lambda package, version: ["no-such-client"])
    with pytest.raises(CourseError, match="`no-such-client` is not installed"):
        packages.fetch({"registry": "npm", "package": "gone", "version": "3", "sha256": "0" * 64})


# Building


def test_a_source_is_capped_and_its_documents_are_labelled(cache, monkeypatch):
    monkeypatch.setattr(corpus, "count_tokens", lambda text: 400)
    texts = {f"t{i}_txt": " and ".join(f"the {word}{i} is" for word in "abcdefghijklm") for i in range(5)}
    documents = corpus.collect(source_of(tarball(README="free as air", **texts)), cleaning.Repeats())
    assert [document["tokens"] for document in documents] == [400, 400]
    assert {(document["source"], document["genre"]) for document in documents} == {("tales", "fiction")}
    assert all(document["doc"].startswith("tales/t") for document in documents)


def test_documents_come_back_as_written_and_a_missing_split_says_what_makes_it(cache):
    written = [{"doc": "a/1", "source": "a", "genre": "g", "text": "Été.\n\nZwei."}]
    packages.write_atomically(cache / "public.jsonl.xz", corpus.pack(written, effort=0))
    assert list(corpus.documents("public")) == written
    with pytest.raises(CourseError, match=r"python -m recipes\.corpus"):
        next(corpus.documents("train"))
    with pytest.raises(ValueError, match="held_out"):
        next(corpus.documents("test"))


def test_the_shipped_split_is_what_the_manifest_says():
    """Holds as soon as the public split is in assets/."""
    shipped, listed = ASSETS / "corpus_public.jsonl.xz", ASSETS / "corpus_manifest.json"
    if not shipped.exists():
        pytest.skip("the public split has not been built yet")
    manifest = json.loads(listed.read_text("utf-8"))
    assert shipped.stat().st_size < 2_000_000
    assert hashlib.sha256(shipped.read_bytes()).hexdigest() == manifest["splits"]["public"]["sha256"]
    may_be_shipped = {source["name"] for source in LISTED["source"] if source["public"]}
    for source in manifest["sources"]:
        assert source["licence"]
        assert source["name"] in may_be_shipped or source["public"]["tokens"] == 0
