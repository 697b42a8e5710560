"""Names are text where they leave, and addresses leave without their secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from upcycle.core.addresses import KEYS, check_url, hidden, key_header
from upcycle.core.errors import UserError, require_names, shown, without_secrets
from upcycle.core.printable import cell, file_name, markdown, path_cell, printable


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("cat\x1b[2J", r"cat\x1b[2J"),
        ("a\nnote: b\r\t", r"a\nnote: b\r\t"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("\x9b31m\x07\x00", r"\x9b31m\x07\x00"),
        ("\udc80", r"\udc80"),
    ],
)
def test_what_a_terminal_obeys_is_written_out(text: str, written: str) -> None:
    assert printable(text) == written


@pytest.mark.parametrize(
    "text", ["Löwe", "犬\u3000猫", "a\u00a0b", "\u0645\u06cc\u200c\u062e", "5 µm ± 3 %", "🐕\u200d🦺"]
)
def test_what_people_write_is_left(text: str) -> None:
    assert printable(text) == text


def test_lines_of_a_text_are_kept_where_there_may_be_several() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


@pytest.mark.parametrize(
    "name", ["../../../x", "/etc/passwd", "..", ".", "", "a\x00b", "-rf", "a\\..\\b", "x" * 500, "~"]
)
def test_a_name_of_a_file_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    made = tmp_path / file_name(name)
    assert made.resolve().parent == tmp_path.resolve()
    made.write_text("")
    assert not made.name.startswith(("-", "."))


def test_an_ordinary_name_of_a_file_is_itself() -> None:
    assert file_name("vit_base.augreg2+x") == "vit_base.augreg2+x" and file_name("Größe 3") == "Größe-3"


def test_no_cell_is_a_formula() -> None:
    assert [cell(text) for text in ("=1+1", "+x", "@x", "-x", "\tx", "\rx")] == [
        "'=1+1",
        "'+x",
        "'@x",
        "'-x",
        "'\tx",
        "'\rx",
    ]
    assert [cell(text) for text in ("-5", "+1e3", "a=b", "")] == ["-5", "+1e3", "a=b", ""]
    assert path_cell("=x.png") == "./=x.png" and path_cell("a/=x.png") == "a/=x.png"


def test_markdown_shows_markup_and_does_not_obey_it() -> None:
    shown = markdown("<img src=x onerror=y> [a](b) ![c](d) `e` | &lt;\n# f")
    assert "<" not in shown and r"\[a\](b)" in shown and r"!\[c\]" in shown and r"\|" in shown and "\n" not in shown
    assert "&amp;lt;" in shown


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://host/path?token=secret", "https://host/path"),
        ("https://host:8000/path#secret", "https://host:8000/path"),
        ("https://me:secret@host/path", "https://host/path"),
        ("https://me:sec/secret@host/path", "https://host/path"),
        ("https://secret@host?x=secret@other", "https://host"),
        ("https://host/path;key=secret?x", "https://host/path"),
        ("HTTP://HOST/", "HTTP://HOST/"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, says: str) -> None:
    assert shown(url) == says
    for text in (f"There is no folder {url}", f"'{url}' is no model", f"{url}"):
        assert "secret" not in without_secrets(text) and "host" in without_secrets(text).lower()


def test_an_address_without_its_scheme_keeps_its_query_to_itself_too() -> None:
    assert without_secrets("localhost:8000/x?token=secret is none") == "localhost:8000/x is none"
    assert without_secrets("Is it so? Give --a=b, did you mean 'c'?") == "Is it so? Give --a=b, did you mean 'c'?"


def test_what_a_person_reads_of_a_mistake_is_harmless() -> None:
    said = str(UserError("There is no folder http://me:secret@h/?a=secret\x1b[2J\nand this"))
    assert "secret" not in said and "\x1b" not in said and "\nand this" in said


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "a\x00", "\x85", "\u2028"])
def test_names_with_control_characters_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="has a name with a line end or another control character") as caught:
        require_names(("cat", name), "The network x")
    assert str(caught.value).isprintable()


def test_a_key_goes_to_its_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, "api.example.org Authorization: Bearer sesame\nlocalhost:8000 X-Key: open\n")
    assert key_header("https://api.example.org/v1") == {"Authorization": "Bearer sesame"}
    assert key_header("https://API.example.org:443/v1") == {"Authorization": "Bearer sesame"}
    assert key_header("http://localhost:8000/") == {"X-Key": "open"}
    for other in ("https://example.org/", "https://api.example.org.evil.com/", "http://localhost:8001/"):
        assert key_header(other) == {}
    said = hidden("bad key sesame, Cannot GET /x?token=abcdef", "https://api.example.org/x?token=abcdef")
    assert "sesame" not in said and "abcdef" not in said


@pytest.mark.parametrize("value", ["Authorization: secret", "secret", "host Na me: secret", "host Name: sec\x01ret"])
def test_a_key_that_cannot_be_read_is_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, value)
    with pytest.raises(UserError, match="HOST NAME: VALUE") as caught:
        key_header("https://host/")
    assert "ret" not in str(caught.value).replace("written", "")


def test_a_name_and_a_password_are_refused_and_not_shown() -> None:
    with pytest.raises(UserError, match=KEYS) as caught:
        check_url("https://me:secret@host/path")
    assert "secret" not in str(caught.value)
