"""A corpus of addresses that carry credentials, as people write them, right and wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

SCHEMES = ("http", "https", "postgresql", "postgresql+psycopg2", "mysql+pymysql", "sqlite", "s3", "mssql+pyodbc", "hf")

PASSWORDS = {
    "plain": "s3cretWord",
    "slash": "first/seCond9/third",
    "at": "fooZ@barZ",
    "colon": "ab12:cd34:ef56",
    "hash": "quuxA#quuxB",
    "question": "whoA?whatB",
    "blank": "two Words9 more",
    "unicode": "p\N{LATIN SMALL LETTER A WITH DIAERESIS}ssw\N{LATIN SMALL LETTER O WITH DIAERESIS}rt9",
    "percent": "fifty%zz9percent",
    "ampersand": "thisX&thatY=one",
    "quotes": "it'sA\"quoteB",
    "digits first": "2024/after0Digits",
    "base64": "Ab9/cD+eF0gHiJkL==",
    "all": "a1@b2:/?#%&x9 last9",
}

PLACES = ("127.0.0.1:9/db", "localhost:9")


@dataclass(frozen=True, slots=True)
class Case:
    """An address, and what of it must not be seen."""

    address: str
    password: str

    @property
    def forms(self) -> set[str]:
        """The password as it may be shown: as it is, escaped, as Python or JSON writes it."""
        escaped = {quote(self.password, safe=""), quote(self.password)}
        return {self.password, *escaped, repr(self.password)[1:-1], self.password.encode("unicode_escape").decode()}

    def seen_in(self, text: str) -> str:
        """The first form of the password that a text has, in any case; "" for none."""
        return next((form for form in sorted(self.forms) if form.lower() in text.lower()), "")


def cases() -> Iterator[Case]:
    """All, more than three hundred."""
    for scheme in SCHEMES:
        for number, (kind, password) in enumerate(PASSWORDS.items()):
            place = PLACES[number % len(PLACES)]
            yield Case(f"{scheme}://alice:{password}@{place}", password)
            if kind != "plain":
                yield Case(f"{scheme}://alice:{quote(password, safe='')}@{place}", password)
            if not set(password) & set("&#?"):
                option = ("password", "token", "access_token", "pwd", "X-Amz-Signature")[number % 5]
                mark = "?" if number % 2 else "?sslmode=require&"
                yield Case(f"{scheme}://{place.partition('/')[0]}/db{mark}{option}={quote(password)}", password)
    connection = "DRIVER%3DODBC%3BUID%3Dalice%3BPWD%3Ds3cretWord"
    yield Case(f"mssql+pyodbc:///?odbc_connect={connection}", "s3cretWord")
    yield Case("https://hf_abcdefghijklmnop@huggingface.co/me/model", "hf_abcdefghijklmnop")
    yield Case("postgresql://127.0.0.1:9/db?user=alice&password=s3cretWord", "s3cretWord")
