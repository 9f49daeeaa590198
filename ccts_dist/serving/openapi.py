"""The OpenAPI document of a served model."""

from typing import Any

from ccts_dist.inference.predictor import CATEGORY
from ccts_dist.records import varied_target
from ccts_dist.serving.handler import Limits

_ERROR = {"$ref": "#/components/schemas/Error"}

_REFUSALS = {
    "400": "Malformed, no audio, or above a limit; the message names the recording, counted from 0.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "Not JSON in UTF-8, or compressed.",
    "500": "The model failed.",
    "503": "Too many requests at a time, no room for the body, or shutting down: send it again later.",
}


def openapi_document(*, version: str, columns: tuple[str, ...], categories: tuple[str, ...], limits: Limits) -> Any:
    """What the server takes and returns, in OpenAPI 3.1.

    Args:
        version: of this library.
        columns: names in an answer.
        categories: emotions that the model distinguishes.
        limits: of a request.
    """
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


def _invocations() -> dict[str, Any]:
    answer = {
        "description": "A prediction of each recording, in order.",
        **_content("application/json", {"$ref": "#/components/schemas/Answer"}),
    }
    return {
        "summary": "Predict the emotion of recordings.",
        "requestBody": {
            "required": True,
            **_content("application/json", {"$ref": "#/components/schemas/Request"}),
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
    return {
        "Request": {"oneOf": [_object({form: value}) for form, value in forms.items()]},
        "Answer": _object(
            {"predictions": {"type": "array", "items": _object({name: _value(name, categories) for name in columns})}}
        ),
        "Error": _object({"error_code": {"type": "string"}, "message": {"type": "string"}}),
    }


def _value(column: str, categories: tuple[str, ...]) -> dict[str, Any]:
    if column == CATEGORY:
        return {"enum": list(categories)}
    if column in {f"p({category})" for category in categories}:
        return {"type": "number", "minimum": 0, "maximum": 1}
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
