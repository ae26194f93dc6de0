"""Strings, JSON values and bodies that have broken services before."""

from __future__ import annotations

from collections.abc import Iterator

# The prompt tokens of scripted versions, of the tests' tokenizer and of the real base.
PROMPT_TOKENS = (
    "<q>", "<r>", "<y>", "<n>",
    "<filename>", "<gh_stars>", "<issue_start>", "<issue_closed>",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>",
)  # fmt: skip

STRINGS: dict[str, str] = {
    "empty": "",
    "blank": " \t\r\n ",
    "nul": "\x00",
    "nul inside": "steel\x00stake",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f" + "".join(map(chr, range(0x80, 0xA0))),
    "escape sequence": "\x1b[31mstake\x1b]0;title\x07",
    "backspaces": "stake\x08\x08\x08\x08",
    "high surrogate": "\ud800",
    "low surrogate": "stake \udc00",
    "surrogates reversed": "\udfff\ud800",
    "noncharacters": "\uffff\ufffe\ufdd0\U0010ffff",
    "private use": "\ue000\U000f0000",
    "unassigned": "\u0378\U000e0080",
    "replacement": "\ufffd\ufffd",
    "byte order mark": "\ufeffstake",
    "right to left": "\u202emoc.live\u202c \u2066شاكوش\u2069",
    "emoji": "🔨👩‍🔧🏳️‍🌈🇩🇪" * 8,
    "combining marks": "s" + "\u0301\u0316\u0334" * 80,
    "only marks": "\u0301" * 40,
    "zero width": "st\u200ba\u200ck\u200de\u2060\u00ad",
    "hangul": "\u1112\u1161\u11ab" * 20 + "\u3164\u115f",
    "indic": "\u0915\u094d\u0937\u093f " * 20,
    "grows eighteenfold": "\ufdfa" * 14,
    "grows too far": "\ufdfa" * 300,
    "ligatures": "ﬁﬂﬀ①㍿㏒½⅟⁄↉",
    "digits of the world": "١٢٣ १२३ １２３ 𝟏𝟐𝟑 ²³ ½",
    "case that does not come back": "İIıiẞßſΣςᾳ\u0345ŉǰ",
    "line separators": "steel\u2028stake\u2029\u0085now",
    "crlf injection": "stake\r\nSet-Cookie: a=b\r\n\r\n<html>",
    "sql": "'; DROP TABLE products; --",
    "sql or": '" OR ""="',
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "template": "{{7*7}} ${7*7} #{7*7} <%= 7*7 %>",
    "percent format": "%s%s%n%x%99999999d",
    "brace format": "{} {0} {self.__class__.__mro__} {!r:>999999}",
    "shell": "$(reboot) `reboot` | reboot; reboot & %PATH%",
    "path up": "../../../../etc/passwd",
    "path up encoded": "..%2f..%2f%2e%2e/%c0%af..%5c",
    "path absolute": "/etc/passwd",
    "path windows": "..\\..\\C:\\nul.txt",
    "path with nul": "test-1\x00.json",
    "dot": ".",
    "dots": "..",
    "slashes": "//",
    "url": "http://169.254.169.254/latest/meta-data#@redis://h/0",
    "ldap": "*)(uid=*))(|(uid=*",
    "log forging": '"}\n{"event":"unhandled_error","level":"error"}',
    "redis protocol": "*1\r\n$8\r\nFLUSHALL\r\n",
    "redis glob": "requery:*[a-z]?\\",
    "redis hash tag": "{a}{b}}{",
    "regex": "(a+)+$" + "a" * 60 + "!",
    "yaml": "!!python/object/apply:os.system [reboot]",
    "pickle": "cos\nsystem\n(S'reboot'\ntR.",
    "json text": '{"query": "a", "__proto__": {"x": 1}}',
    "numbers": "1/0 0/0 1e999 -0 NaN 0x7f 1,000,000.5 3 1/2 in 99999999999999999999/3",
    "only digits": "9" * 256,
    "quotes": "\"'`´\u2018\u2019\u201c\u201d\u2032\u2033",
    "null word": "null",
    "true word": "true",
    "python": "__import__('os')._exit(1)",
    "256 characters": "x" * 256,
    "257 characters": "x" * 257,
    "4096 characters": "ab " * 1365 + "a",
    "4097 characters": "x" * 4097,
    "very long": "stake " * 12_000,
    "very long words": "é" * 60_000,
    **{f"prompt token {token}": f"steel {token} stake {token}" for token in PROMPT_TOKENS},
    "prompt in a prompt": "<q>steel<r>metal<y><q>",
}
"""By what they are."""

VALUES: dict[str, bytes] = {
    "null": b"null",
    "true": b"true",
    "zero": b"0",
    "minus one": b"-1",
    "minus zero": b"-0.0",
    "fraction": b"0.5",
    "one as a float": b"1.0",
    "nan": b"NaN",
    "infinity": b"Infinity",
    "minus infinity": b"-Infinity",
    "overflow": b"1e999",
    "minus overflow": b"-1e999",
    "underflow": b"1e-999",
    "beyond 32 bits": b"2147483648",
    "beyond 63 bits": b"9223372036854775808",
    "beyond 64 bits": b"-18446744073709551617",
    "400 digits": b"9" * 400,
    "6000 digits": b"9" * 6000,
    "many decimals": b"0." + b"1" * 4000,
    "text": b'"3"',
    "empty list": b"[]",
    "empty object": b"{}",
    "list of everything": b'[null, true, 1, "a", [], {}]',
    "same key twice": b'{"a": 1, "a": 2}',
    "200 lists deep": b"[" * 200 + b"]" * 200,
    "20000 lists deep": b"[" * 20_000 + b"]" * 20_000,
    "200 objects deep": b'{"a":' * 200 + b"1" + b"}" * 200,
    "9000 objects deep": b'{"a":' * 9000 + b"1" + b"}" * 9000,
    "long list": b"[" + b"1," * 30_000 + b"1]",
    "many keys": b"{" + b",".join(b'"k%d":1' % i for i in range(9000)) + b"}",
    "escaped surrogate": b'"\\ud800"',
    "bad escape": b'"\\x41"',
    "raw control": b'"a\x00\x01b"',
    "raw newline": b'"a\nb"',
    "bad utf-8": b'"\xff\xfe\xc0\xaf"',
    "utf-8 surrogate": b'"\xed\xa0\x80"',
    "nothing": b"",
    "comment": b"1 /* a */",
    "single quotes": b"'a'",
}
"""What can stand in the place of any JSON value, by what it is; not all of it is JSON."""

CONTENT_TYPES: dict[str, bytes | None] = {
    "none": None,
    "empty": b"",
    "form": b"application/x-www-form-urlencoded",
    "multipart": b"multipart/form-data; boundary=a",
    "xml": b"application/xml",
    "latin-1": b"application/json; charset=iso-8859-1",
    "no such charset": b'application/json; charset="\x00nope"',
    "json of a kind": b"application/vnd.api+json",
    "upper case": b"APPLICATION/JSON",
    "not ascii": b"application/\xff\xfe",
    "long": b"application/json; a=" + b"b" * 9000,
}


def bodies(valid: bytes) -> Iterator[tuple[str, bytes]]:
    """What can be sent instead of a ``valid`` JSON object, by what it is."""
    yield "no body", b""
    yield "cut off", valid[: len(valid) * 2 // 3]
    yield "twice", valid + b" " + valid
    yield "trailing", valid + b"]"
    yield "in a list", b"[" + valid + b"]"
    yield "byte order mark", b"\xef\xbb\xbf" + valid
    yield "utf-16", valid.decode().encode("utf-16")
    yield "blank around", b" \r\n\t" * 1000 + valid + b"\n" * 1000
    yield "nul after", valid + b"\x00"
    yield "every key twice", valid[:-1] + b", " + valid[1:]
    yield "unknown key", valid[:-1] + b', "no_such_field": 1}'
    yield "key that is no name", valid[:-1] + b', "\\u0000\\n\\u202e{}%s": 1}'
    yield "long key", valid[:-1] + b', "' + b"k" * 60_000 + b'": 1}'
    yield "form", b"query=steel+stake&query=a"
    yield "too long", valid[:-1] + b" " * 300_000 + b"}"
    yield "binary", bytes(range(256)) * 20
    yield from VALUES.items()


HEADERS = (
    b"accept", b"accept-encoding", b"authorization", b"connection", b"content-encoding",
    b"content-length", b"content-type", b"cookie", b"expect", b"forwarded", b"host",
    b"if-match", b"if-none-match", b"origin", b"range", b"referer", b"traceparent", b"tracestate",
    b"transfer-encoding", b"user-agent", b"x-api-key", b"x-forwarded-for", b"x-forwarded-host",
    b"x-http-method-override", b"x-request-deadline-ms", b"x-request-id", b"x-requery-author",
)  # fmt: skip
"""Headers that some layer may read, documented or not."""

HEADER_VALUES: dict[str, bytes] = {
    **{name: text.encode("utf-8", "surrogatepass")[:9000] for name, text in STRINGS.items()},
    "bad url": b"http://[",
    "bad url with an address": b"http://[::1%]]:x@/",
    "every byte": bytes(range(256)),
    "quoted": b'"12"',
    "quoted far": b'"99999999999999999999"',
    "weak": b'W/"1", "2"',
    "star": b"*",
    "bearer": b"Bearer \xff\x00",
    "number": b"12",
    "minus": b"-1",
    "negative far": b"-999999999999999999999",
    "trace": b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01",
    "trace with more": b"01-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01-" + b"c" * 5000,
}
