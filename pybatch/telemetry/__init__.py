"""OpenTelemetry: what is told of work on a model, and how it is sent."""
