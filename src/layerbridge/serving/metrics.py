"""What `/metrics` shows, in a registry of the server's own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from layerbridge.serving.engine import Engine

ROUTES = (
    "/",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/classify",
    "/v1/inspect",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
)


class Metrics:
    """Counters of one server; also the observer of its engine (`layerbridge.serving.bridge_engine.Observer`)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "layerbridge_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "layerbridge_request_seconds",
            "From a request's first byte to its answer's last.",
            ["route"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
            registry=self.registry,
        )
        self._running = Gauge("layerbridge_requests_running", "Requests being worked on.", registry=self.registry)
        self._queue = Gauge("layerbridge_queue_length", "Texts that wait for a batch.", registry=self.registry)
        self._rows = Histogram(
            "layerbridge_batch_rows",
            "Texts of a batch when it begins.",
            ["kind"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self._tokens = Counter("layerbridge_tokens", "Tokens read and written.", ["direction"], registry=self.registry)

    def watch(self, engine: Engine) -> None:
        """Show an engine's queue."""
        self._queue.set_function(lambda: engine.num_waiting)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request; paths that are no route are one, so that nobody can make up rows."""
        route = path if path in ROUTES else "/v1/models" if path.startswith("/v1/models/") else "other"
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def running(self, number: int) -> None:
        """Say how many requests are being worked on."""
        self._running.set(number)

    def batch(self, kind: str, rows: int) -> None:
        """Count a batch."""
        self._rows.labels(kind).observe(rows)

    def tokens(self, *, read: int = 0, written: int = 0) -> None:
        """Count tokens."""
        self._tokens.labels("in").inc(read)
        self._tokens.labels("out").inc(written)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
