"""The prediction server: HTTP, limits, metrics, OpenAPI."""
