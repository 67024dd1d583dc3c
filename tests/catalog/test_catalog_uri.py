"""Source URIs: every example of the contract, the grammar's laws, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filterdb.catalog.uri import SourceUri, format_uri, has_scheme, parse_uri
from filterdb.errors import UnknownNameError, UsageError

SHA = "0123456789abcdef" * 4

plain = st.characters(exclude_characters="/\\\0", exclude_categories=("Cs",))
parts = st.text(plain, min_size=1, max_size=12).filter(lambda p: p not in (".", ".."))
members = st.lists(parts, min_size=1, max_size=4).map("/".join)
names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True)
versions = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,8}", fullmatch=True)
commits = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,8}", fullmatch=True)
nested = st.lists(members, max_size=3).map(tuple)

uris = st.one_of(
    st.builds(
        lambda name, version, file, inner: SourceUri("pypi", f"{name}=={version}", file, inner),
        names,
        versions,
        st.sampled_from([(), (("sha256", SHA),), (("file", "a b%!?#.whl"),)]),
        nested,
    ),
    st.builds(
        lambda scope, name, inner: SourceUri("npm", f"{scope}{name}@1.2.3-x", (), inner),
        st.sampled_from(["", "@scope/", "@a.b/"]),
        st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True),
        nested,
    ),
    st.builds(
        lambda owner, name, commit, inner: SourceUri("hf", f"{owner}/{name}@{commit}", (), inner),
        names,
        names,
        commits,
        nested.filter(bool),
    ),
    st.builds(
        lambda slash, path, inner: SourceUri("file", slash + path, (), inner),
        st.sampled_from(["", "/", "../"]),
        members,
        nested,
    ),
    st.builds(
        lambda path, inner: SourceUri("s3", f"//bucket/{path}", (), inner),
        members.filter(lambda m: "::" not in m),
        nested,
    ),
    st.builds(
        lambda arch, seed: SourceUri("init", f"timm/{arch}", (("seed", str(seed)),)),
        st.from_regex(r"[a-z0-9_]{1,9}", fullmatch=True),
        st.integers(0, 2**63 - 1),
    ),
)


@given(uris)
def test_a_written_uri_reads_back_as_itself(uri: SourceUri) -> None:
    text = format_uri(uri)
    assert parse_uri(text) == uri
    assert format_uri(parse_uri(text)) == text


@given(members)
def test_only_four_characters_are_encoded(member: str) -> None:
    text = format_uri(SourceUri("file", "a.zip", (), (member,)))
    written = text.removeprefix("file:a.zip!/")
    assert not set("!#?") & set(written)
    for character, code in {"!": "%21", "#": "%23", "?": "%3F", "%": "%25"}.items():
        assert written.count(code) == member.count(character)
    assert len(written) == len(member) + 2 * sum(member.count(c) for c in "%!#?")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "pypi:facenet-pytorch==2.6.0!/facenet_pytorch/data/onet.pt",
            SourceUri("pypi", "facenet-pytorch==2.6.0", (), ("facenet_pytorch/data/onet.pt",)),
        ),
        (
            f"pypi:x==1%21.0?sha256={SHA}!/a b/[1] 100%25.pt",
            SourceUri("pypi", "x==1!.0", (("sha256", SHA),), ("a b/[1] 100%.pt",)),
        ),
        (
            "npm:@mediapipe/hands@0.4.1675469240!/package/hand.tflite",
            SourceUri("npm", "@mediapipe/hands@0.4.1675469240", (), ("package/hand.tflite",)),
        ),
        ("npm:img@1.0.0", SourceUri("npm", "img@1.0.0")),
        (
            "hf:timm/resnet18.a1_in1k@main!/model.safetensors",
            SourceUri("hf", "timm/resnet18.a1_in1k@main", (), ("model.safetensors",)),
        ),
        ("timm:resnet18.a1_in1k", SourceUri("timm", "resnet18.a1_in1k")),
        ("init:timm/resnet18?seed=7", SourceUri("init", "timm/resnet18", (("seed", "7"),))),
        ("file:a.zip!/b.tar.gz!/c.pt", SourceUri("file", "a.zip", (), ("b.tar.gz", "c.pt"))),
        ("file:///tmp/x.pt", SourceUri("file", "/tmp/x.pt")),
        (
            "https://example.org/a%20b.zip?token=1#x!/m.pt",
            SourceUri("https", "//example.org/a%20b.zip?token=1#x", (), ("m.pt",)),
        ),
        ("s3://bucket/k%23ey.pt", SourceUri("s3", "//bucket/k#ey.pt")),
    ],
)
def test_the_contract_s_examples(text: str, expected: SourceUri) -> None:
    assert parse_uri(text) == expected
    canonical = text.replace("file:///", "file:/")
    assert format_uri(expected) == canonical


def test_what_is_fetched_and_what_is_inside() -> None:
    wheel = parse_uri("pypi:a==1!/b.zip!/c.pt")
    assert (str(wheel.archive), wheel.nested) == ("pypi:a==1", ("b.zip", "c.pt"))
    hub = parse_uri("hf:o/n@main!/w.zip!/c.pt")
    assert (str(hub.archive), hub.nested) == ("hf:o/n@main!/w.zip", ("c.pt",))
    assert hub.file_name == "c.pt"
    assert parse_uri("https://h/d/x.onnx?sig=a/b").file_name == "x.onnx"


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("pypi:a==1!/d/m.param", "m.bin", "pypi:a==1!/d/m.bin"),
        ("pypi:a==1!/m.json", "s/1.bin", "pypi:a==1!/s/1.bin"),
        ("hf:o/n@x!/d/m.json", "1.bin", "hf:o/n@x!/d/1.bin"),
        ("file:../d/m.json", "1.bin", "file:../d/1.bin"),
        ("file:m.json", "1.bin", "file:1.bin"),
        ("https://h/d/m.json?t=1", "1.bin", "https://h/d/1.bin?t=1"),
        ("s3://b/d/m.json", "1.bin", "s3://b/d/1.bin"),
    ],
)
def test_siblings_lie_in_the_same_folder(text: str, name: str, expected: str) -> None:
    assert str(parse_uri(text).sibling(name)) == expected


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "a//b", ".", "a\\b", "a\0b"])
def test_nothing_leaves_its_container(name: str) -> None:
    with pytest.raises(UsageError, match="plain relative path"):
        parse_uri("pypi:a==1!/d/m.json").sibling(name)
    with pytest.raises(UsageError):
        SourceUri("file", "a.zip", (), (name,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.pt", "not a source URI"),
        ("pypi:facenet!/a.pt", "NAME==VERSION"),
        ("pypi:a==1!/b%20c.pt", "only % ! # \\? are percent-encoded"),
        ("pypi:a==1!/b#c.pt", "write %23"),
        ("file:what?.pt", "write %3F"),
        ("file:a!b.pt", "write %21"),
        ("file:100%", "percent-encoded"),
        (f"pypi:a==1?sha256={SHA[:-1]}", "64 lower-case"),
        ("pypi:a==1?sha256=", "KEY=VALUE"),
        ("pypi:a==1?file=../x", "bare name"),
        (f"pypi:a==1?sha256={SHA}&sha256={SHA}", "twice"),
        ("npm:a@latest", "exact"),
        ("npm:../x@1.0.0", "NAME@VERSION"),
        ("npm:--flag@1.0.0", "NAME@VERSION"),
        ("npm:user/repo@1.0.0", "NAME@VERSION"),
        ("hf:o/n@main", "names no file"),
        ("hf:../n@main!/x", "owner/name"),
        ("timm:resnet18!/x", "arch.tag"),
        ("init:torchvision/resnet18", "timm/arch"),
        ("init:timm/resnet18?seed=-1", "seed"),
        ("init:timm/resnet18?seed=9223372036854775808", "seed"),
        ("file:", "no path"),
        ("s3://simplecache::x", "chains"),
    ],
)
def test_what_is_no_uri_says_what_would_be(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_uri(text)


def test_unknown_schemes_and_parameters_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="nearest: pypi"):
        parse_uri("pipy:a==1")
    with pytest.raises(UnknownNameError, match="nearest: seed"):
        parse_uri("init:timm/resnet18?sed=1")
    for scheme in ("simplecache", "local", "zip", "dask"):
        with pytest.raises(UnknownNameError):
            parse_uri(f"{scheme}://x")


def test_paths_are_told_from_uris() -> None:
    assert has_scheme("pypi:a==1")
    assert has_scheme("gs://bucket/x")
    assert not has_scheme("dir/model.pt")
    assert has_scheme("pipy:a==1")
    assert not has_scheme("C:/model.pt")
