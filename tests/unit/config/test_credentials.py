"""Settings as they may be shown."""

import tomllib

import pytest

from ccts_dist.config import parse_run
from ccts_dist.config.credentials import public_toml, public_tree
from ccts_dist.redaction import without_credentials


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("http://me:secret@server:5000", "http://server:5000"),
        ("postgresql+psycopg2://me:se:cret@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
        ("s3://KEY:a/b+c@bucket/place", "s3://bucket/place"),
        ("https://token@host/place", "https://host/place"),
        ("sqlite:////data/a.db", "sqlite:////data/a.db"),
        ("http://server/a@b", "http://server/a@b"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("someone@a.place", "someone@a.place"),
        ("facebook/hubert-large-ll60k", "facebook/hubert-large-ll60k"),
    ],
)
def test_user_and_password_are_taken_out_of_addresses_and_nothing_else_is(address: str, public: str) -> None:
    assert without_credentials(address) == public


def test_no_secret_of_a_run_file_stands_in_what_is_written_down() -> None:
    run = parse_run(
        {
            "run_name": "a",
            "output_dir": "o",
            "data": {"shards": "https://me:SECRET1@host/shards"},
            "model": {"speech": {"encoder": "e"}},
            "augment": {"noises": ["s3://KEY:SECRET2@noises"]},
            "tracking": {"tracking_uri": "http://me:SECRET3@server:5000"},
        }
    )
    assert "SECRET" not in str(public_tree(run))
    assert "SECRET" not in public_toml(run)
    tree = tomllib.loads(public_toml(run))
    assert tree["tracking"]["tracking_uri"] == "http://server:5000"
    assert tree["augment"]["noises"] == ["s3://noises"]
    assert tree["data"]["shards"] == "https://host/shards"
