"""The OpenAPI document of a served model."""

from typing import Any

from ccts_dist.audio.limits import MAX_DURATION_S
from ccts_dist.inference.predictor import AUDIO, CATEGORY
from ccts_dist.inference.windows import SHORTEST_S
from ccts_dist.records import SHARE, varied_target
from ccts_dist.serving.handler import Limits
from ccts_dist.serving.multipart_body import FORM, HOP, WINDOW

_ERROR = {"$ref": "#/components/schemas/Error"}

_REFUSALS = {
    "403": "A form from a page of another site.",
    "400": "Malformed, no audio, or above a limit; the message names the recording, counted from 0.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "Neither JSON in UTF-8 nor a form, or compressed.",
    "500": "The model failed.",
    "503": "Too many requests at a time, no room for the body, or shutting down: send it again later.",
}


def openapi_document(
    *, version: str, columns: tuple[str, ...], categories: tuple[str, ...], limits: Limits, page: bool = True
) -> Any:
    """The server's requests and answers, in OpenAPI 3.1.

    Args:
        version: of this library.
        columns: names in an answer.
        categories: emotions that the model distinguishes.
        limits: of a request.
        page: there is one at GET /.
    """
    own = {"/": {"get": _page()}} if page else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Emotion of recordings",
            "version": version,
            "description": "Addresses and bodies are those of MLflow's model server.",
        },
        "paths": {
            "/invocations": {"post": _invocations()},
            "/ping": {"get": _plain("Liveness: the process answers.", "An empty line.")},
            "/health": {"get": _readiness()},
            "/ready": {"get": _readiness()},
            "/version": {"get": _plain("The library's version.", "The version.")},
            "/metrics": {"get": _plain("Metrics for Prometheus.", "Prometheus's text format.")},
            "/openapi.json": {"get": _document()},
            **own,
        },
        "components": {"schemas": _schemas(columns, categories, limits)},
    }


def _content(kind: str, schema: Any) -> dict[str, Any]:
    return {"content": {kind: {"schema": schema}}}


def _refusal(description: str) -> dict[str, Any]:
    return {"description": description, **_content("application/json", _ERROR)}


def _plain(summary: str, description: str) -> dict[str, Any]:
    answer = {"description": description, **_content("text/plain", {"type": "string"})}
    return {"summary": summary, "responses": {"200": answer}}


def _readiness() -> dict[str, Any]:
    ready = {"description": "Ready.", **_content("text/plain", {"type": "string"})}
    return {
        "summary": "Readiness: the model answered when it was last asked, and the server is not shutting down.",
        "responses": {"200": ready, "503": _refusal("Not ready; the message gives the reason.")},
    }


def _document() -> dict[str, Any]:
    answer = {"description": "OpenAPI 3.1.", **_content("application/json", {"type": "object"})}
    return {"summary": "This document.", "responses": {"200": answer}}


def _page() -> dict[str, Any]:
    answer = {"description": "HTML.", **_content("text/html", {"type": "string"})}
    return {"summary": "A page for people.", "responses": {"200": answer}}


def _invocations() -> dict[str, Any]:
    answer = {
        "description": "A prediction of each recording, in order.",
        **_content("application/json", {"$ref": "#/components/schemas/Answer"}),
    }
    return {
        "summary": "Predict the emotion of recordings.",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Request"}},
                FORM: {"schema": {"$ref": "#/components/schemas/Form"}},
            },
        },
        "responses": {"200": answer} | {status: _refusal(words) for status, words in _REFUSALS.items()},
    }


def _schemas(columns: tuple[str, ...], categories: tuple[str, ...], limits: Limits) -> dict[str, Any]:
    audio = {"type": "string", "contentEncoding": "base64", "description": "A whole audio file."}
    path = {"type": "string", "minLength": 1, "description": "A file below the server's audio root."}
    cells = {"audio": audio, "path": path} if limits.audio_root is not None else {"audio": audio}
    rows = {
        "type": "array",
        "minItems": 1,
        "maxItems": limits.recordings,
        "items": {"oneOf": [_object({name: cell}) for name, cell in cells.items()]},
    }
    split = _object(
        {
            "columns": {"type": "array", "items": {"enum": sorted(cells)}, "minItems": 1, "uniqueItems": True},
            "data": {
                "type": "array",
                "minItems": 1,
                "maxItems": limits.recordings,
                "items": {"type": "array", "items": {"type": ["string", "null"]}},
            },
        }
    )
    by_column = [_object({name: {"oneOf": [cell, {**rows, "items": cell}]}}) for name, cell in cells.items()]
    forms = {"dataframe_records": rows, "dataframe_split": split, "inputs": {"oneOf": [rows, *by_column]}}
    prediction = {name: _value(name, categories) for name in columns}
    predictions = {"type": "array", "items": _object(prediction)}
    seconds = {"type": "number", "minimum": 0}
    of_window = _object({"start_s": seconds, "end_s": seconds, **prediction})
    curves = {
        "type": "array",
        "items": {"type": "array", "items": of_window},
        "description": "Of each recording its windows, where a form asks for them.",
    }
    return {
        "Request": {"oneOf": [_object({form: value}) for form, value in forms.items()]},
        "Form": _form(limits),
        "Answer": {**_object({"predictions": predictions, "windows": curves}), "required": ["predictions"]},
        "Error": _object({"error_code": {"type": "string"}, "message": {"type": "string"}}),
    }


def _form(limits: Limits) -> dict[str, Any]:
    """Files as they are, in any number of fields "audio"; with "window" a prediction is the mean over windows."""
    file = {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"}
    files = {"type": "array", "minItems": 1, "maxItems": limits.recordings, "items": file}
    length = {"type": "number", "minimum": SHORTEST_S, "maximum": MAX_DURATION_S, "description": "Seconds."}
    hop = {"type": "number", "exclusiveMinimum": 0, "description": "Seconds, at most those of a window."}
    return {
        "type": "object",
        "properties": {AUDIO: files, WINDOW: length, HOP: hop},
        "required": [AUDIO],
        "dependentRequired": {HOP: [WINDOW]},
        "additionalProperties": False,
    }


def _value(column: str, categories: tuple[str, ...]) -> dict[str, Any]:
    if column == CATEGORY:
        return {"enum": list(categories)}
    if column in {f"p({category})" for category in categories}:
        return {"type": "number", "minimum": 0, "maximum": 1}
    if column.endswith(SHARE):
        return {"type": "number", "description": "a share of raters"}
    words = "a variance of raters" if varied_target(column) is not None else "on the corpus's scale"
    return {"type": "number", "description": words}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """An object that has these and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
