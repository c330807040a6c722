"""A real server with the HTTP interface of S3, on 127.0.0.1, that can go away and come back."""

import logging
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from tests.support.postgres_server import free_port

KEY, SECRET = "AKIATESTTESTTESTTEST", "hunter2-hunter2-hunter2"


class S3Server:
    """The server; what it holds outlives a stop, as it is kept in this process.

    Attributes:
        url: where it listens.
        environ: the variables by which clients find it.
    """

    def __init__(self):
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.environ = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }
        self._server = None

    def start(self):
        """Listen."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()

    def stop(self):
        """Listen no more."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    @contextmanager
    def away(self):
        """Be out of reach for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()


class Bucket:
    """A bucket, as somebody else sees it who has the keys."""

    def __init__(self, name):
        self.name = name
        self.url = f"s3://{name}/models"
        self._client = boto3.client("s3")
        self._client.create_bucket(Bucket=name)

    def objects(self):
        """The names of all objects."""
        found = self._client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return [each["Key"] for each in found]

    def read(self, key):
        """The bytes of an object."""
        return self._client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def write(self, key, content):
        """Put bytes in the place of an object."""
        self._client.put_object(Bucket=self.name, Key=key, Body=content)

    def remove(self, key):
        """Take an object away."""
        self._client.delete_object(Bucket=self.name, Key=key)

    def all_buckets(self):
        """The names of all buckets there are."""
        return [each["Name"] for each in self._client.list_buckets()["Buckets"]]


def forget_clients():
    """Let fsspec open new connections, and not those of a test before."""
    S3FileSystem.clear_instance_cache()
