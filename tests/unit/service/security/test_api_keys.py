"""Keys: making them, finding them, and the list that a file holds."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.security.api_keys import (
    MAX_KEYS,
    SCOPES,
    Key,
    KeysInvalid,
    admin_key,
    digest_of,
    entry,
    find,
    new_key,
    read_keys,
)
from service.security.command import app

SECRET = "rq_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
HASH = hashlib.sha256(SECRET.encode()).hexdigest()
ENTRY: dict[str, Any] = {"name": "backend", "sha256": HASH, "scopes": ["rewrite"]}
NOON = datetime(2030, 1, 31, 12, tzinfo=UTC).timestamp()


def one(**changes: Any) -> Key:
    (key,) = read_keys(json.dumps([ENTRY | changes]).encode(), ".json")
    return key


def test_generated_keys_are_long_random_and_known_by_their_prefix() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"rq_[A-Za-z0-9_-]{43}", key) for key in made)


def test_the_entry_of_a_key_reads_back_as_that_key_and_does_not_hold_it() -> None:
    secret = new_key()
    until = datetime(2030, 1, 31, 13, tzinfo=timezone(timedelta(hours=1)))
    text = entry("backend", secret, ["rewrite", "metrics", "rewrite"], until)
    assert secret not in text
    assert secret.removeprefix("rq_") not in text
    (key,) = read_keys(text.encode(), ".yaml")
    assert key == Key(
        "backend", digest_of(secret.encode()), frozenset({"rewrite", "metrics"}), NOON
    )


def test_every_key_is_compared_to_the_last_byte_whichever_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets = [new_key() for _ in range(5)]
    ring = [Key(str(i), digest_of(k.encode()), frozenset()) for i, k in enumerate(secrets)]
    compared: list[bytes] = []
    real: Callable[[bytes, bytes], bool] = hmac.compare_digest

    def spy(left: bytes, right: bytes) -> bool:
        compared.append(left)
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    for secret, name in [*zip(secrets, "01234", strict=True), ("x", None), ("", None)]:
        compared.clear()
        found = find(ring, secret.encode())
        assert (found.name if found is not None else None) == name
        assert compared == [key.digest for key in ring]


def test_the_admin_key_opens_everything_and_only_its_hash_is_kept() -> None:
    key = admin_key(" correct horse battery\n")  # as out of a file
    assert key.scopes == frozenset(SCOPES)
    assert find([key], b"correct horse battery") is key
    assert b"horse" not in repr(key).encode()


def test_a_key_opens_nothing_from_its_end_on() -> None:
    key = one(expires="2030-01-31T12:00:00Z")
    assert key.fault(NOON - 0.001) is None
    assert key.fault(NOON) == "expired"
    assert one(expires="2030-01-31T12:00:00Z", revoked=True).fault(0) == "revoked"
    assert one(revoked=True).fault(NOON) == "revoked"
    assert one().fault(NOON) is None


@pytest.mark.parametrize(
    "written",
    [
        "2030-01-31T12:00:00Z", "'2030-01-31T12:00:00Z'", "2030-01-31T12:00:00",
        "2030-01-31T13:00:00+01:00", "'2030-01-31 12:00'",
    ],
)  # fmt: skip
def test_an_end_may_be_written_in_these_ways(written: str) -> None:
    text = f"[{{name: a, sha256: '{HASH}', scopes: [rewrite], expires: {written}}}]"
    assert read_keys(text.encode(), ".yaml")[0].expires == NOON


def test_a_plain_date_is_the_start_of_that_day() -> None:
    text = f"[{{name: a, sha256: {HASH}, scopes: [rewrite], expires: 2030-01-31}}]"
    assert read_keys(text.encode(), ".yml")[0].expires == NOON - 12 * 3600


def test_hashes_may_be_upper_case_and_no_key_is_a_list_too() -> None:
    assert one(sha256=HASH.upper()).digest.hex() == HASH
    assert read_keys(b"[]", ".yaml") == ()


def listed(*changes: dict[str, Any]) -> str:
    return json.dumps([ENTRY | change for change in changes])


MALFORMED: dict[str, tuple[str, str]] = {
    "not yaml": (f"- name: a\n  sha256: [{SECRET}", "is malformed YAML at line"),
    "a tab": (f"- name: a\n\t{SECRET}: 1", "is malformed YAML at line 2"),
    "an alias": (f"- *{SECRET}", "is malformed YAML at line 1"),
    "python objects": ("!!python/object/apply:os.getcwd []", "is malformed YAML at line 1"),
    "control characters": ("- \x00", "is malformed YAML"),
    "deep": ("[" * 5000, "is malformed YAML"),
    "not utf-8": ("- \udcff", "is malformed YAML"),
    "empty": ("", "must be a list"),
    "a mapping": (f"{{{SECRET}: 1}}", "must be a list"),
    "a key as an entry": (f"[{SECRET}]", "entry 1: must be an entry"),
    "a key as a field": (f"[{{{SECRET}: 1}}]", "entry 1, name: is required"),
    "a key as a further field": (listed({SECRET: 1}), "entry 1: has a field other than"),
    "no name": ('[{"sha256": "", "scopes": []}]', "entry 1, name: is required"),
    "a key instead of its hash": (listed({"sha256": SECRET}), "entry 1, sha256: must be the SHA"),
    "a short hash": (listed({}, {"name": "b", "sha256": HASH[1:]}), "entry 2, sha256: must be"),
    "a key as name": (listed({"name": SECRET}), "entry 1, name: must be 1 to 32 letters"),
    "a line as name": (listed({"name": "a\nb"}), "entry 1, name: must be 1 to 32 letters"),
    "a number as name": (listed({"name": 7}), "entry 1, name: must be 1 to 32 letters"),
    "the admin's name": (listed({"name": "admin"}), "choose another name"),
    "no scopes": (listed({"scopes": []}), "entry 1, scopes: must be a list of one or more"),
    "another scope": (listed({"scopes": [SECRET]}), "entry 1, scopes: must be a list"),
    "text for scopes": (listed({"scopes": "admin"}), "entry 1, scopes: must be a list"),
    "no time": (listed({"expires": SECRET}), "entry 1, expires: must be a time in UTC"),
    "a number for a time": (listed({"expires": 1}), "entry 1, expires: must be a time in UTC"),
    "no truth": (listed({"revoked": SECRET}), "entry 1, revoked: must be true or false"),
    "the same name": (listed({}, {"sha256": "0" * 64}), "entries 1 and 2 have the same name"),
    "the same key": (listed({}, {"name": "b"}), "entries 1 and 2 have the same sha256"),
    "too many": (
        listed(*({"name": f"n{i}", "sha256": f"{i:064x}"} for i in range(MAX_KEYS + 1))),
        f"at most {MAX_KEYS}",
    ),
}


@pytest.mark.parametrize(("content", "said"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_list_says_where_and_never_repeats_what_may_be_a_key(
    content: str, said: str
) -> None:
    with pytest.raises(KeysInvalid) as caught:
        read_keys(content.encode("utf-8", "surrogateescape"), ".yaml")
    message = str(caught.value)
    assert said in message
    assert SECRET not in message
    assert "\n" not in message
    assert caught.value.__cause__ is None  # whose message may repeat it


def test_json_is_recognised_by_the_name_of_the_file() -> None:
    with pytest.raises(KeysInvalid, match="malformed JSON"):
        read_keys(b"- a", ".json")
    with pytest.raises(KeysInvalid, match="rename it"):
        read_keys(b"[]", ".txt")


class TestCommand:
    def test_a_new_key_is_shown_once_and_its_entry_can_be_appended(self, tmp_path: Path) -> None:
        file = tmp_path / "keys.yaml"
        shown: list[str] = []
        for name, days in (("backend", []), ("ops", ["--days", "90"])):
            scopes = ["--scope", "rewrite", "--scope", "metrics"]
            done = CliRunner().invoke(app, ["new", "--name", name, *scopes, *days])
            assert done.exit_code == 0
            (key,) = re.findall(r"^rq_[\w-]{43}$", done.stderr, re.MULTILINE)
            assert key not in done.stdout
            shown.append(key)
            with file.open("a") as appended:
                appended.write(done.stdout)
        ring = read_keys(file.read_bytes(), ".yaml")
        assert [find(ring, key.encode()) for key in shown] == list(ring)
        assert [key.name for key in ring] == ["backend", "ops"]
        assert ring[0].expires is None
        days_left = timedelta(seconds=(ring[1].expires or 0) - datetime.now(UTC).timestamp())
        assert timedelta(days=89) < days_left <= timedelta(days=90)

    @pytest.mark.parametrize("before", [None, "", "# ours", entry("old", "rq_old", ["admin"])[:-1]])
    def test_an_entry_is_added_whatever_the_file_ends_with(
        self, tmp_path: Path, before: str | None
    ) -> None:
        file = tmp_path / "keys.yaml"
        if before is not None:
            file.write_text(before)
        new = ["new", "--scope", "rewrite", "--file", str(file)]
        for name in ("a", "b"):
            done = CliRunner().invoke(app, [*new, "--name", name])
            assert (done.exit_code, done.stdout) == (0, ""), done.stderr
            assert f"is in {file}" in done.stderr
        assert file.read_text().startswith(before or "")
        names = [key.name for key in read_keys(file.read_bytes(), ".yaml")]
        assert names == ["old", "a", "b"][0 if before and "old" in before else 1 :]
        if before is None:
            assert file.stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize(
        ("name", "before"),
        [
            ("keys.yaml", entry("a", "rq_old", ["admin"])),  # the same name again
            ("keys.yaml", "[]\n"),
            ("keys.yaml", "- name: [\n"),
            ("keys.json", "[]"),
            ("none/keys.yaml", None),
        ],
    )
    def test_a_file_that_an_entry_does_not_fit_in_stays_as_it_is(
        self, tmp_path: Path, name: str, before: str | None
    ) -> None:
        file = tmp_path / name
        if before is not None:
            file.write_text(before)
        new = ["new", "--name", "a", "--scope", "rewrite", "--file", str(file)]
        done = CliRunner().invoke(app, new)
        assert (done.exit_code, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"requery: keys file {file}: ")
        assert before is None or file.read_text() == before

    def test_json_is_printed_for_programs(self, tmp_path: Path) -> None:
        file = tmp_path / "keys.yaml"
        new = ["new", "--name", "a", "--scope", "rewrite", "--file", str(file), "--json"]
        made = json.loads(CliRunner().invoke(app, new).stdout)
        (key,) = read_keys(file.read_bytes(), ".yaml")
        assert key.digest == digest_of(made["key"].encode())
        assert made["entry"]["name"] == "a"
        rows = json.loads(CliRunner().invoke(app, ["check", str(file), "--json"]).stdout)
        assert rows == [{"name": "a", "scopes": ["rewrite"], "state": "valid", "expires": None}]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--name", "a", "--scope", "root"], "scopes: must be a list of one or more"),
            (["--name", "a b", "--scope", "rewrite"], "name: must be 1 to 32"),
            (["--name", "admin", "--scope", "admin"], "REQUERY_ADMIN_KEY"),
        ],
    )
    def test_what_no_key_can_be_called_or_open(self, arguments: list[str], said: str) -> None:
        done = CliRunner().invoke(app, ["new", *arguments])
        assert done.exit_code == 1
        assert said in done.stderr
        assert done.stdout == ""
        assert "rq_" not in done.stderr

    def test_checking_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "keys.json"
        file.write_text(
            listed(
                {},
                {"name": "old", "sha256": "0" * 64, "expires": "2020-01-01", "scopes": ["admin"]},
                {"name": "gone", "sha256": "1" * 64, "revoked": True},
                {"name": "new", "sha256": "2" * 64, "expires": "2999-01-01T00:00:00Z"},
            )
        )
        done = CliRunner().invoke(app, ["check", str(file)])
        assert done.exit_code == 0
        assert done.stdout.splitlines() == [
            "backend: rewrite; valid",
            "old: admin; expired",
            "gone: rewrite; revoked",
            "new: rewrite; valid until 2999-01-01 00:00 UTC",
            f"{file}: 4 keys, well formed",
        ]

    @pytest.mark.parametrize("content", [None, "{}"])
    def test_a_file_that_could_not_be_taken(self, tmp_path: Path, content: str | None) -> None:
        file = tmp_path / "keys.json"
        if content is not None:
            file.write_text(content)
        done = CliRunner().invoke(app, ["check", str(file)])
        assert done.exit_code == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"requery: keys file {file}: ")
