"""A package index on loopback that stands for any host: an HTTPS proxy that answers every request itself."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def index_stand_in(wheels: Path, scratch: Path) -> Iterator[dict[str, str]]:
    """Serve the wheels in a folder while the context lasts.

    Args:
        wheels: The folder; a project's page lists the wheels of that name in it.
        scratch: An empty folder for certificates.

    Yields:
        The environment variables that send a client here, whatever host it wants.
    """
    authority = Authority(scratch)

    class Pages(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(wheels))

        def do_GET(self):
            if not self.path.endswith("/"):
                self.path = "/" + self.path.rpartition("/")[2]
                return super().do_GET()
            project = self.path.rstrip("/").rpartition("/")[2]
            links = "".join(f'<a href="/{wheel.name}">{wheel.name}</a>' for wheel in wheels.glob(f"{project}-*.whl"))
            self.send_response(200 if links else 404)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(links)))
            self.end_headers()
            self.wfile.write(links.encode())

        def log_message(self, *arguments):
            pass

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self):
            self.send_response(200)
            self.end_headers()
            context = authority.context_for(self.path.rpartition(":")[0])
            with context.wrap_socket(self.connection, server_side=True) as connection:
                Pages(connection, self.client_address, self.server)
            self.close_connection = True

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        proxy = f"http://127.0.0.1:{server.server_port}"
        yield {"HTTPS_PROXY": proxy, "https_proxy": proxy, "SSL_CERT_FILE": str(authority.certificate)}
    finally:
        server.shutdown()
        server.server_close()


class Authority:
    """Certificates for any host, signed by one that is made for the occasion."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.certificate = folder / "authority.pem"
        self._make("authority", ["basicConstraints=critical,CA:TRUE"])

    def context_for(self, host: str) -> ssl.SSLContext:
        """The server's side of a connection that believes to be with `host`."""
        signed = ["-CA", str(self.certificate), "-CAkey", str(self.certificate.with_suffix(".key"))]
        self._make(host, ["basicConstraints=critical,CA:FALSE", f"subjectAltName=DNS:{host}"], *signed)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._folder / f"{host}.pem", self._folder / f"{host}.key")
        return context

    def _make(self, name: str, extensions: list[str], *signed: str) -> None:
        files = ["-keyout", str(self._folder / f"{name}.key"), "-out", str(self._folder / f"{name}.pem")]
        kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        subject = ["-subj", f"/CN={name}", *(part for extension in extensions for part in ("-addext", extension))]
        subprocess.run(["openssl", "req", *kind, *subject, *signed, *files], check=True, capture_output=True)
