"""Credentials in all text that leaves: a corpus of addresses through our own words and those of libraries."""

import io
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from ccts_dist import redaction
from ccts_dist.config import parse_run
from ccts_dist.config.credentials import public_toml
from ccts_dist.errors import CctsError, ConfigError, RegistryError, run_main
from ccts_dist.redaction import RedactedStream, redact, remember, shown_cause, without_credentials
from ccts_dist.registry import resolve_model
from ccts_dist.tracking.mlflow_client import prepare_mlflow
from ccts_dist.tracking.run_file import TrackedRun, write_run_file
from ccts_dist.tracking.spooling.spooled_run import begin_run
from ccts_dist.tracking.uri import resolve_tracking_uri
from tests.helpers.processes.addresses import Case, cases
from tests.tiers import with_long

CORPUS = list(cases())


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    redaction.forget()
    yield
    redaction.forget()


def _sentences(case: Case) -> Iterator[str]:
    address = case.address
    yield f"looking up x at {address} failed"
    yield f"error: {address!r}: no such folder. Give another."
    yield json.dumps({"uri": address, "list": [address]})
    yield f'cannot open "{address}", <{address}> or ({address}).'
    yield f"API request to {address}/api/2.0/mlflow/runs/get failed with exception"
    yield str({"password": case.password})


def test_corpus_is_large():
    assert len({case.address for case in CORPUS}) >= 200


def test_no_password_of_the_corpus_is_left_of_an_address():
    left = [case for case in CORPUS if case.seen_in(without_credentials(case.address))]
    assert left == []


def test_no_password_of_the_corpus_is_left_in_a_sentence_with_an_address_that_is_known():
    for case in CORPUS:
        redaction.forget()
        remember(case.address)
        for sentence in _sentences(case):
            assert not case.seen_in(redact(sentence)), sentence


def test_addresses_that_nobody_has_opened_are_cut_by_their_form():
    plain = [case for case in CORPUS if not set(case.password) & set("'\"<>&")]
    for case in plain:
        for sentence in (f"at {case.address} failed", f"({case.address!r})"):
            assert not case.seen_in(redact(sentence)), sentence


def test_pieces_that_a_library_takes_for_host_or_port_are_masked():
    remember("http://alice:first/seCond9/third@127.0.0.1:9")
    printed = redact("could not translate host name 'second9', port 'first' in /third@127.0.0.1")
    assert printed == "could not translate host name '***', port '***' in /***@127.0.0.1"


@pytest.mark.parametrize(
    "text",
    [
        "exit code = 2; user = x; key 'a_1' of 5 tokens",
        "models:/emotion@champion: not in the registry at sqlite:////data/a@b.db",
        "http://server:5000 is away: [Errno 111] Connection refused",
        "s3://bucket/place?versionId=3 and http://[::1]:5000/a",
        "postgresql://db:5432/mlflow?sslmode=require",
        "batch.global_batch_size=1 num_tokens=7 tokenizer=/a/b",
        "sqlite:////tmp/a%20b/mlflow.db",
        "its user or password holds '@', which ends it there: write %40",
        "basic and bearer authentication; passwords, tokens and secrets: none",
        "https://host/p?page=2&num_tokens=7&ticket_id=3",
        "python launch/compare.py runs/a runs/b --key train/grad_norm",
    ],
)
def test_text_without_credentials_stays_as_it_is(text: str):
    assert redact(text) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_PASSWORD", "open sesame/1"),
        ("MLFLOW_TRACKING_TOKEN", "eyJhbGciOi.J9"),
        ("AWS_SECRET_ACCESS_KEY", "wJalr/XUtnFEMI+K7MDENG"),
        ("HF_TOKEN", "hf_0123456789"),
        ("HTTPS_PROXY", "http://bob:open%20sesame@proxy:3128"),
        ("https_proxy", "bob:open%20sesame@proxy:3128"),
        ("MYSQL_PWD", "open-sesame9"),
        ("SSHPASS", "open-sesame9"),
        ("AZURE_STORAGE_KEY", "open-sesame9=="),
        ("GITHUB_PAT", "ghp_opensesame9"),
    ],
)
def test_credentials_of_the_environment_are_masked_wherever_they_stand(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(name, value)
    secret = "open sesame" if "PROXY" in name.upper() else value
    assert redact(f"the server reported: {secret!r} is wrong") == "the server reported: '***' is wrong"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AZURE_STORAGE_CONNECTION_STRING", "DefaultEndpointsProtocol=https;AccountKey=hush-99-hush;EndpointSuffix=x"),
        ("FSSPEC_S3", '{"key": "AKIA0", "secret": "hush-99-hush", "client_kwargs": {"region_name": "eu"}}'),
        ("FSSPEC_S3_ENDPOINT_URL", "http://alice:hush-99-hush@minio:9000"),
        ("DATABASE_URL", "postgresql+psycopg2://alice:hush-99-hush@db/mlflow"),
        ("BASIC_AUTH", "alice:hush-99-hush"),
    ],
)
def test_a_secret_within_a_value_of_the_environment_is_masked(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, value)
    assert redact("the store reported: hush-99-hush at eu is wrong") == "the store reported: *** at eu is wrong"


OWN_FORMS = [
    "http://%61lice:hush-99-hush@127.0.0.1:5000",
    "http://alice:hush-99-hush@[2001:db8::1]:5000/path",
    "http://alice:hush-99-hush@[fe80::1%25eth0]:5000",
    "postgresql+psycopg2://bob@corp.example:hush-99-hush@db:5432/mlflow",
    "postgresql+psycopg2://bob:x:hush-99-hush@db:5432/mlflow?sslmode=require",
    "redis://:hush-99-hush@host:6379/0",
    "snowflake://u@acc/db?private_key_passphrase=hush-99-hush",
    "http://proxy/?url=http%3A%2F%2Fa%3Ahush-99-hush%40host",
    "https://host/p?p%61ssword=hush-99-hush",
    "https://host/p?access%5Ftoken=hush-99-hush",
    "https://host/p?APIToken=hush-99-hush",
    "https://host/p?token[]=hush-99-hush",
    "https://host/p?refresh_token=hush-99-hush&id_token=hush-99-hush",
    "https://host/p#access_token=hush-99-hush",
    "https://host/p?sessionid=hush-99-hush",
    "https://host/p;jsessionid=hush-99-hush?x=1",
    "https://host/p?otp=hush-99-hush",
    "https://host/p?passcode=hush-99-hush",
    "https://host/p?ticket=hush-99-hush",
    "https://host/p?hdnts=hush-99-hush",
    "https://acct.blob.example/c?sv=2022&sig=hush-99-hush%2Fabc%3D",
    "HTTP://ALICE:HUSH-99-HUSH@HOST:5000",
]


@pytest.mark.parametrize("address", OWN_FORMS)
def test_further_forms_of_addresses_are_cut_known_or_not(address: str):
    assert "hush-99" not in without_credentials(address).lower()
    for sentence in (f"at {address} failed", f"({address!r})", json.dumps({"uri": address})):
        assert "hush-99" not in redact(sentence).lower()
    remember(address)
    assert "hush-99" not in redact(f"at {address} failed").lower()


FOREIGN_WORDS = [
    "storage_options={'key': 'AKIA0', 'secret': 'hush99', 'endpoint_url': 'http://u:hush99@minio:9000'}",
    "{'client_kwargs': {'aws_secret_access_key': 'hush99', 'aws_session_token': 'hush99'}}",
    "S3FileSystem(key='A', secret='hush99')",
    "[('user', 'u'), ('password', 'hush99')]",
    "Server=h;Database=d;Uid=u;Pwd=hush99;",
    "password: hush99",
    "MLFLOW_TRACKING_PASSWORD = hush99",
    "mlflow --password hush99 server",
    "Proxy-Authorization: Basic hush99hush99",
    "Authorization: token hush99",
    "authorization: bearer hush99",
    "X-Api-Key: hush99",
    "Cookie: a=1; mlflow_session=hush99; b=2",
]


@pytest.mark.parametrize("text", FOREIGN_WORDS)
def test_secrets_that_their_names_introduce_are_masked_in_messages_of_libraries(text: str):
    assert "hush99" not in redact(text)
    assert "***" in redact(text)


def test_settings_of_the_environment_that_are_no_secrets_are_not_masked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", __file__)
    monkeypatch.setenv("SOME_TOKEN", "false")
    monkeypatch.setenv("PWD", "/home/a/place")
    text = f"parallel {__file__} false /home/a/place"
    assert redact(text) == text


def test_headers_and_pairs_of_foreign_messages_are_masked():
    assert redact("headers {'Authorization': 'Bearer abc.def-123'}") == "headers {'Authorization': ***}"
    assert redact("dsn user=alice password=hush99 host=db") == "dsn user=alice password=*** host=db"
    assert redact("url: /api?x=1&token=hush99") == "url: /api?x=1&token=***"
    assert redact("WWW-Authenticate Basic YWxpY2U6cGFzcw==") == "WWW-Authenticate Basic ***"


@pytest.mark.parametrize("every", with_long((17,), (17, 1)))
def test_no_password_of_the_corpus_is_in_what_a_command_states_or_passes_on(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Looking up a model at each address: MLflow, SQLAlchemy, drivers and requests take part."""
    monkeypatch.chdir(tmp_path)
    prepare_mlflow()
    import mlflow.store.db.utils

    monkeypatch.setattr(mlflow.store.db.utils, "MAX_RETRY_COUNT", 1)
    monkeypatch.setattr(sys, "argv", ["predict.py"])
    for case in CORPUS[::every]:
        redaction.forget()
        written = io.StringIO()
        monkeypatch.setattr(sys, "stdout", written)
        monkeypatch.setattr(sys, "stderr", written)
        chains: list[str] = []

        def look_up(_: list[str] | None, case: Case = case, chains: list[str] = chains) -> int:
            try:
                resolve_model("models:/x@champion", tracking_uri=case.address)
            except CctsError:
                chains.append(traceback.format_exc())
                raise
            return 0

        assert run_main(look_up) in (1, 2), case.address
        printed = written.getvalue()
        assert printed.count("\n") == 1, printed
        assert printed.startswith("error: "), printed
        for text in (printed, *chains):
            message = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
            assert not case.seen_in(message), message
    assert list(tmp_path.iterdir()) == []


def test_no_password_of_the_corpus_is_in_files_of_a_run(tmp_path: Path):
    tree = {"run_name": "a", "output_dir": "o", "data": {"shards": "s"}, "model": {"speech": {"encoder": "e"}}}
    for number, case in enumerate(CORPUS):
        folder = tmp_path / str(number)
        run = parse_run(
            tree | {"tracking": {"tracking_uri": case.address}, "augment": {"noises": [f"see {case.address}"]}}
        )
        (folder / "run").mkdir(parents=True)
        (folder / "run.toml").write_text(public_toml(run), encoding="utf-8")
        write_run_file(folder, TrackedRun(tracking_uri=case.address, experiment="e", run_id="1"))
        begin_run(folder, run_name="a", experiment="e", parent="", tracking_uri=case.address)
        written = [path for path in folder.rglob("*") if path.is_file()]
        assert len(written) == 3
        for path in written:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".json":
                text += str(json.loads(text))
            assert not case.seen_in(text) or set(case.password) & set("'\"<>&"), text


@pytest.mark.parametrize(
    "uri", ["http://alice:se/cret9@host:5000", "http://alice:se#cret9@host", "https://a:b c9@host"]
)
def test_password_that_http_would_take_for_a_host_is_refused_with_the_remedy(uri: str):
    with pytest.raises(
        ConfigError, match=r"'http.*://host.*': its user or password holds '.', .* Write %2\w|%20"
    ) as reported:
        resolve_tracking_uri(uri)
    assert "cret9" not in str(reported.value)


@pytest.mark.parametrize(
    "uri",
    [
        "alice:secret9!@host:5000",
        "//alice:secret9!@host/x",
        "http:/alice:secret9!@host",
        "http:alice:secret9!@host",
        "https//alice:secret9!@host",
        "postgres:alice:secret9!@host/db",
    ],
)
def test_password_of_an_address_without_its_slashes_is_masked(uri: str):
    with suppress(ConfigError):
        resolve_tracking_uri(uri)
    assert redact(f"invalid address {uri}, no host named alice:secret9!").count("secret9") == 0
    assert redact("the model at models:/emotions@champion") == "the model at models:/emotions@champion"


def test_option_after_a_semicolon_is_looked_at():
    assert without_credentials("http://host/x?a=b;password=secret9") == "http://host/x"
    assert without_credentials("http://host/x?a=b;c=d") == "http://host/x?a=b;c=d"


def test_http_without_slashes_is_refused_before_it_is_asked():
    with pytest.raises(ConfigError, match=r"lacks the slashes of an address\. Write http://HOST:PORT"):
        resolve_tracking_uri("http:/alice:secret9!@host")


def test_password_with_at_sign_is_refused_for_a_database_and_taken_escaped():
    with pytest.raises(ConfigError, match=r"holds '@', which ends it there\. Write %40"):
        resolve_tracking_uri("postgresql://alice:a@b9@host/db")
    good = "postgresql://alice:a%40b/9@host/db"
    assert resolve_tracking_uri(good) == good


def test_cause_that_holds_a_secret_is_not_raised_from():
    error = ValueError("at http://alice:hush99@host")
    assert shown_cause(error) is None
    outer = RuntimeError("outer")
    outer.__cause__ = error
    assert shown_cause(outer) is None
    harmless = ValueError("at http://host")
    assert shown_cause(harmless) is harmless


def test_logs_warnings_and_tracebacks_on_a_guarded_stream_hold_no_secret(monkeypatch: pytest.MonkeyPatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", RedactedStream(written))
    address = "http://alice:hush99@host"
    handler = logging.StreamHandler()
    log = logging.Logger("a library")
    log.addHandler(handler)
    try:
        raise RegistryError(address)
    except RegistryError:
        log.exception("lost %s", address)
        traceback.print_exc()
    sys.stderr.write(warnings.formatwarning(UserWarning(address), UserWarning, "a.py", 1))
    print("lines", address, file=sys.stderr)
    cast(RedactedStream, sys.stderr).writelines([address, "\n"])
    assert "hush99" not in written.getvalue()
    assert written.getvalue().count("http://host") >= 5
    written.seek(0)
    assert list(cast(RedactedStream, sys.stderr)) == written.getvalue().splitlines(keepends=True)


def test_address_within_an_address_is_cut_too():
    assert without_credentials("sqlite:///a/http://alice:hush99@host/b") == "sqlite:///a/http://host/b"
