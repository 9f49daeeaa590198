"""Requests to ``launch/serve.py``'s application that its own OpenAPI document makes, sound ones and broken ones."""

import base64
import io

import numpy as np
import pytest
import schemathesis
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from ccts_dist.inference.predictor import load_student
from ccts_dist.serving.handler import Limits, Served
from ccts_dist.serving.server import application
from tests.helpers.models.small_student import save_student
from tests.tiers import examples

pytestmark = pytest.mark.long

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    allow_header_conformance,
]
"""All that a server without users and links can break. Sound base64 need not be sound audio: it may be refused."""


def _recording() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).normal(0.0, 0.1, 4_000), 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> schemathesis.BaseSchema:
    folder = tmp_path_factory.mktemp("openapi")
    save_student(folder / "best")
    (folder / "root").mkdir()
    (folder / "root" / "a.wav").write_bytes(_recording())
    served = Served(load_student(folder / "best"), Limits(recordings=3, audio_root=folder / "root"))
    return schemathesis.openapi.from_asgi("/openapi.json", application(served, max_body_bytes=1 << 20))


@pytest.mark.parametrize("mode", list(GenerationMode))
@examples(100)
@given(data=st.data())
def test_answers_keep_to_the_openapi_document_whatever_is_asked(
    document: schemathesis.BaseSchema, mode: GenerationMode, data: st.DataObject
) -> None:
    # The other operations take nothing that could be wrong.
    part = document if mode.is_positive else document["/invocations"]["POST"]
    case = data.draw(part.as_strategy(generation_mode=mode))
    case.call_and_validate(checks=CHECKS)


def test_sound_request_is_answered_as_the_document_states(document: schemathesis.BaseSchema) -> None:
    recording = base64.b64encode(_recording()).decode()
    operation = document["/invocations"]["POST"]
    for rows in ([{"audio": recording}], [{"path": "a.wav"}, {"audio": recording}]):
        for form in ("inputs", "dataframe_records"):
            case = operation.Case(body={form: rows}, media_type="application/json")
            answer = case.call_and_validate(checks=[response_schema_conformance, content_type_conformance])
            assert answer.status_code == 200
