"""netwatch: a telemetry server that answers only when a report is safe on disk."""

__version__ = "0.1.0"
