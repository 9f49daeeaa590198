"""Redaction: credentials taken out of all text that leaves a process.

An address is cut by its form: user, password, and options that bear a secret. A password may hold any character, and a
library that reads its address otherwise shows pieces of it. What is known to be secret is therefore also masked by its
value, whole, escaped or in pieces: credentials of the environment, of the command line, and of every address in use.
"""

import base64
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus, unquote, unquote_plus

MASK = "***"

_SHORTEST = 4
"""Characters of a value that is masked wherever it stands; shorter ones would take words apart."""

_LIKE_A_SECRET = 8
"""Characters from which the value of a variable with a weak name counts as a secret."""

_TOKEN_LENGTH = 12
"""Characters from which a user without a password is taken for a token, and masked by value as well."""

_STRONG = (
    r"passw|passphrase|passwd|pwd|secret|credential|signature|api[_-]?key|access[_-]?key|account[_-]?key"
    r"|private[_-]?key|authorization|odbc_connect|security[_-]?token|auth[_-]?token|access[_-]?token|bearer|jwt"
)
"""Parts of names that mean a secret anywhere in text."""

_WEAK = (
    r"token|pass|passcode|pw|pin|otp|ticket|user|username|uid|login|sig|hmac|hdnts|key|auth|sas|pat|code|session"
    r"|cookie"
)
"""Names that mean one among the options of an address; users go with their passwords."""

_OPTION_NAME = re.compile(rf"(?i)(?:.*(?:{_STRONG}).*|(?:.*[_.-])?(?:{_WEAK})|.*token|.*session[_-]?id)(?:\[\w*\])?")
_OPTION = re.compile(r"([?&;#])([^=&?#;]*)=([^&]*)")
_INNER_NAME = re.compile(r";([^=;]*)=")
"""Name of an option after a semicolon, which may separate options or be a part of a value."""

_VARIABLE = re.compile(
    r"PASSW|PASSPHRASE|(?:^|_)(?:SSH)?PASS$|_PWD$|SECRET|TOKEN(?!IZER)|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY"
)
_WEAK_VARIABLE = re.compile(r"(?:^|_)(?:KEY|AUTH|PAT|SAS|JWT|COOKIE)$")
"""Names of variables that hold a secret if the value looks like one: eight characters, not letters alone."""

_NOT_SECRET = ("true", "false", "none", "null", "yes")
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.%]+\]")
_DELIMITERS = re.compile(r"[/@:?#&=;%+\s'\"\\]+")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# After "user:", unless a port follows, anything up to an "@" may be the password, blanks and quotes too.
_ADDRESS = re.compile(
    r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,30}://"
    r"(?:[^\s/@:?#'\"<>\[]*:(?!\d*(?:[/?#\s'\",;)\]]|$))[^\n@]{0,200}@)?[^\s'\"<>`|]+"
)
_PAIR = re.compile(
    rf"(?i)(?P<name>(?<![\w.-])(?:[\w.-]*(?:{_STRONG})[\w.-]*|(?:[\w.-]*[_.-])?token)(?:=|['\"]\s?[:=]\s?))"
    r"(?P<value>'[^'\n]*'|\"[^\"\n]*\"|[^\s'\"&;,)\]}]+)"
)
_RELATIVE = re.compile(rf"(?i)(?P<name>[?&](?:{_WEAK})=)(?P<value>[^\s&'\"]+)")
_SPOKEN = re.compile(
    r"(?i)(?P<name>(?<![\w.-])--[\w-]*(?:passw|pwd|secret|token|(?:api|access)-?key)[\w-]*\s"
    r"|(?<![\w.-])[\w.-]*(?:password|passwd|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key)"
    r"(?:['\"],\s?|:\s|\s=\s))(?P<value>'[^'\n]*'|\"[^\"\n]*\"|[^\s'\"&;,)\]}]+)"
)
"""A secret behind the option, name or heading that introduces it."""

_HEADER = re.compile(
    r"(?P<name>\b(?:Basic|Bearer) )(?P<value>[\w.~+/=-]{8,})"
    r"|(?P<heading>(?i:\b(?:(?:proxy-)?authorization:\s(?:\w+\s)?|(?:set-)?cookie:\s)))[^\s'\"][^\n'\"]*"
)

_known: set[str] = set()
_pattern: list[re.Pattern[str]] = []
"""Pattern of all that is known; empty where it has to be made anew."""


def without_credentials(address: str) -> str:
    """An address without user, password and options that bear a secret; any other text as it is.

    An "@" that may end a password, or else belong to a path, counts as the former.
    """
    scheme, mark, rest = address.partition("://")
    if not mark:
        return address
    rest = _without_secret_options(_split(rest)[1])
    inner = _SCHEME.search(rest)
    if inner is not None:  # an address within the address
        rest = rest[: inner.start()] + without_credentials(rest[inner.start() :])
    return f"{scheme}{mark}{rest}"


def userinfo_of(address: str) -> str:
    """User and password of an address as they stand in it; "" for none."""
    return _split(address.partition("://")[2])[0]


def redact_addresses(text: str) -> str:
    """Like ``without_credentials`` for an address, and for each address within a text."""
    return without_credentials(text) if _SCHEME.match(text) else _ADDRESS.sub(_cut, text)


def redact(text: str) -> str:
    """Text without the credentials of addresses in it, and without any value that is known to be secret."""
    _remember_environment(os.environ)
    return _redact(text)


def remember(*addresses: str) -> None:
    """Mask the credentials of these addresses by value too, from now on."""
    for address in addresses:
        if "://" in address:
            for secret in _secrets_of(address):
                _add(secret)


def remember_mistyped(address: str) -> None:
    """Mask, as ``remember`` does, the password of an address that lacks its "://": ``user:password@host``."""
    if "://" not in address and "@" in address:
        rest = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*:?/+|^/+", "", address)
        if ":" in rest.rpartition("@")[0]:
            remember(f"x://{rest}")


def remember_process(arguments: Sequence[str]) -> None:
    """Mask by value what this process was given: its environment's credentials, and those of addresses in options."""
    _remember_environment(os.environ)
    for word in arguments:
        found = _SCHEME.search(word)
        if found is not None:
            remember(word[found.start() :].rstrip("'\"])}"))


def forget() -> None:
    """Forget every value; for tests, which live in one process."""
    _known.clear()
    _pattern.clear()


def shown_cause(error: BaseException) -> BaseException | None:
    """An error, to be raised from; None where a traceback would show secrets with it."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    return error if all(redact(words) == words for words in map(str, chain)) else None


class RedactedStream:
    """A text stream whose text is redacted on its way to another one, which it is in all else."""

    def __init__(self, stream: Any) -> None:  # TextIO; beartype takes a forked process's for none
        self._stream = stream

    def write(self, text: str) -> int:
        """Write; the length of what was given."""
        self._stream.write(_redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)


def guard_output() -> None:
    """Redact all that this process writes to stdout and stderr: lines, logs, warnings, tracebacks of its own and of
    libraries."""
    remember_process(sys.argv[1:])
    if not isinstance(sys.stdout, RedactedStream):
        sys.stdout = cast(TextIO, RedactedStream(sys.stdout))
    if not isinstance(sys.stderr, RedactedStream):
        sys.stderr = cast(TextIO, RedactedStream(sys.stderr))


def _redact(text: str) -> str:
    if _known:
        text = _known_values().sub(MASK, text)
    if "://" in text:
        text = _ADDRESS.sub(_cut, text)
    if "=" in text or ":" in text:
        text = _PAIR.sub(rf"\g<name>{MASK}", text)
        text = _RELATIVE.sub(rf"\g<name>{MASK}", text)
    text = _SPOKEN.sub(rf"\g<name>{MASK}", text)
    return _HEADER.sub(lambda found: f"{found['name'] or found['heading']}{MASK}", text)


def _cut(found: re.Match[str]) -> str:
    return without_credentials(found[0])


def _split(rest: str) -> tuple[str, str]:
    """User and password of what follows "://", "" for none; and the place."""
    body = rest.lstrip("/")
    slashes = rest[: len(rest) - len(body)]
    authority = re.split(r"[/?#]", _IPV6.sub("host", body), maxsplit=1)[0]
    # Secrets may have slashes: of "s3://KEY:a/b@place" the host seems to be "KEY:a".
    if "@" in body and ("@" in authority or ":" in authority):
        userinfo, _, place = body.rpartition("@")
        return userinfo, slashes + place
    return "", rest


def _without_secret_options(place: str) -> str:
    def keep(option: re.Match[str]) -> str:
        value = unquote(option[3])
        names = (option[2], *_INNER_NAME.findall(option[3]))
        is_secret = any(_OPTION_NAME.fullmatch(unquote(name)) for name in names) or without_credentials(value) != value
        return "" if is_secret else option[0]

    redacted = _OPTION.sub(keep, place)
    if "?" in place and "?" not in redacted:
        redacted = redacted.replace("&", "?", 1)
    return redacted


def _secrets_of(address: str) -> Iterator[str]:
    rest = address.partition("://")[2]
    userinfo, place = _split(rest)
    user, colon, password = userinfo.partition(":")
    yield from [password] if colon else []
    if len(user) >= _TOKEN_LENGTH:
        yield user
    if colon:
        yield base64.b64encode(unquote(userinfo).encode()).decode()
    for _, name, value in _OPTION.findall(place):
        strong = re.search(_STRONG, unquote(name), re.IGNORECASE) or len(value) >= _TOKEN_LENGTH
        if _OPTION_NAME.fullmatch(unquote(name)) and (strong or "user" not in name.lower()):
            yield value
        if "://" in unquote(value):
            yield from _secrets_of(unquote(value))


def _remember_environment(environ: Mapping[str, str]) -> None:
    for name, value in environ.items():
        if "://" in value:
            remember(value)
        elif "@" in value and name.upper().endswith("_PROXY"):
            remember(f"http://{value}")
        elif _is_secret_variable(name, value) and not _is_file(value):
            for secret in (value, value.partition(":")[2]):  # user:password
                if secret == value or len(secret) >= _LIKE_A_SECRET:
                    _add_value(secret)
        for pair in _PAIR.finditer(value):  # connection strings, and options in JSON
            _add_value(pair["value"].strip("'\""))


def _add_value(secret: str) -> None:
    if secret.lower() not in _NOT_SECRET:
        _add(secret, in_pieces=False)


def _is_secret_variable(name: str, value: str) -> bool:
    looks_like_one = len(value) >= _LIKE_A_SECRET and not value.isalpha()
    return bool(_VARIABLE.search(name) or (looks_like_one and _WEAK_VARIABLE.search(name)))


def _is_file(value: str) -> bool:
    return value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value))


def _add(secret: str, *, in_pieces: bool = True) -> None:
    if secret in _known:
        return
    plain = {secret, unquote(secret), unquote_plus(secret)}
    forms = set(plain)
    for form in plain:
        forms |= {quote(form, safe=""), quote(form), quote_plus(form), json.dumps(form)[1:-1], repr(form)[1:-1]}
        forms |= {repr(form.encode(errors="replace"))[2:-1], *(_DELIMITERS.split(form) if in_pieces else ())}
    new = {form for form in forms if len(form) >= _SHORTEST and not form.isspace()} - _known
    if new:
        _known.update(new)
        _pattern.clear()


def _known_values() -> re.Pattern[str]:
    if not _pattern:
        longest_first = sorted(_known, key=lambda value: (-len(value), value))
        _pattern.append(re.compile("|".join(map(_anywhere, longest_first)), re.IGNORECASE))
    return _pattern[0]


def _anywhere(value: str) -> str:
    """The pattern of a value; a short word is not looked for within longer ones."""
    is_word = len(value) < 8 and value.isalpha()
    return rf"(?<![^\W_]){re.escape(value)}(?![^\W_])" if is_word else re.escape(value)
