"""Registries on this machine, for as long as something is measured."""

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from measure import resident


@dataclass
class Registry:
    host: str
    ca: Path | None
    process: int

    def peak(self) -> float:
        """The server's largest resident set so far, in MiB."""
        return resident(self.process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def certificate(directory: Path) -> tuple[Path, Path, Path]:
    """An authority of its own, a certificate from it for 127.0.0.1, and that one's key."""
    ca, ca_key, certificate, key = (directory / name for name in ("ca.crt", "ca.key", "server.crt", "server.key"))
    if not certificate.exists():
        directory.mkdir(parents=True, exist_ok=True)
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        subprocess.run([*new, "-subj", "/CN=benchmark", "-keyout", ca_key, "-out", ca], check=True, capture_output=True)
        subprocess.run([*new, "-CA", ca, "-CAkey", ca_key, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
                        "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", certificate],
                       check=True, capture_output=True)
    return ca, certificate, key


@contextlib.contextmanager
def docker_registry(directory: Path, tls: bool) -> Iterator[Registry]:
    port = free_port()
    environment = {
        "REGISTRY_HTTP_ADDR": f"127.0.0.1:{port}", "REGISTRY_LOG_LEVEL": "error", "REGISTRY_LOG_ACCESSLOG_DISABLED": "true",
        "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(directory / "registry"), "OTEL_TRACES_EXPORTER": "none",
    }
    ca = None
    if tls:
        ca, own, key = certificate(directory / "tls")
        environment |= {"REGISTRY_HTTP_TLS_CERTIFICATE": str(own), "REGISTRY_HTTP_TLS_KEY": str(key)}
    config = directory / "registry.yml"
    directory.mkdir(parents=True, exist_ok=True)
    config.write_text("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: /nonexistent\n")
    with serving(["docker-registry", "serve", str(config)], environment, port, ca) as registry:
        yield registry


@contextlib.contextmanager
def kiln_serve(kiln: str, directory: Path, tls: bool) -> Iterator[Registry]:
    port = free_port()
    command = [kiln, "serve", "--addr", f"127.0.0.1:{port}", "--store", str(directory / "served"), "--quiet"]
    ca = None
    if tls:
        ca, own, key = certificate(directory / "tls")
        command += ["--tls-cert", str(own), "--tls-key", str(key)]
    with serving(command, {}, port, ca) as registry:
        yield registry


@contextlib.contextmanager
def far_away(registry: Registry, latency: int, rate: int) -> Iterator[Registry]:
    """The registry behind a line of `latency` ms more, there and back, and `rate` bytes a second for each connection."""
    port = free_port()
    command = [sys.executable, str(Path(__file__).parent / "line.py"), str(port), registry.host.split(":")[1], str(latency), str(rate)]
    with serving(command, {}, port, registry.ca) as line:
        yield line


@contextlib.contextmanager
def serving(command: list[str], environment: dict[str, str], port: int, ca: Path | None) -> Iterator[Registry]:
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        scheme, context = ("https", ssl.create_default_context(cafile=ca)) if ca else ("http", None)
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}/v2/", context=context, timeout=2).close()
                break
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {process.returncode}")
            time.sleep(0.05)
        else:
            raise SystemExit(f"{command[0]} does not answer")
        yield Registry(f"127.0.0.1:{port}", ca, process.pid)
    finally:
        process.terminate()
        process.wait(20)
