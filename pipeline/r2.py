"""The store in Cloudflare R2: the only importer of boto3, itself loaded by `store.open_store` alone.

One call is one request: the spool tries again, boto3 does not. The client's settings are those that R2 is known to
take; above all `when_required`, without which boto3 sends uploads over HTTPS as `aws-chunked`, which R2 refuses.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
import os
import re
import ssl
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from time import time_ns
from typing import Any, TypeVar
from urllib.parse import quote

import boto3.session
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    ParamValidationError,
    ProxyConnectionError,
    SSLError,
)
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from pipeline.store import ENVIRONMENT_PREFIX, Kind, R2Settings, StoreError, check_key

CONNECT_S = 5.0  # per address; R2 has a few
READ_S = 20.0  # of silence
MAX_EXPIRES_S = 7 * 24 * 3600  # what signature version 4 allows; boto3 would sign for longer
SKEW_S = 14 * 60  # the signature's limit is 15 min; `Date` has whole seconds

_T = TypeVar("_T")
_FAILURES = (BotoCoreError, ClientError, HTTPError, ResponseParserError, OSError, ValueError)
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_...: or the clock is wrong by years, as a Pi's is at boot

_CLOCK = {"RequestTimeTooSkewed", "ExpiredRequest", "RequestExpired"}
_DEAD = {
    "EntityTooLarge",
    "InvalidObjectName",
    "InvalidURI",
    "KeyTooLong",
    "KeyTooLongError",
    "MetadataTooLarge",
    "NoSuchKey",
    "ObjectLockedByBucketPolicy",  # a 403, but about this object: it is there, and a lock rule keeps it
}
_REFUSED = {
    "AccessDenied": "give the token Object Read & Write on this bucket",
    "InvalidAccessKeyId": f"check {ENVIRONMENT_PREFIX}ACCESS_KEY_ID",
    "InvalidBucketName": f"correct {ENVIRONMENT_PREFIX}BUCKET",
    "MissingContentLength": "this server does not take uploads as they are sent; report it",
    "NoSuchBucket": f"create the bucket, or correct {ENVIRONMENT_PREFIX}BUCKET",
    "NotEntitled": "enable R2 for this account",
    "SignatureDoesNotMatch": f"check {ENVIRONMENT_PREFIX}SECRET_ACCESS_KEY",
    "Unauthorized": f"check {ENVIRONMENT_PREFIX}ACCESS_KEY_ID and {ENVIRONMENT_PREFIX}SECRET_ACCESS_KEY",
}
_SIGNED = re.compile(r"((?:X-Amz-)?(?:Signature|Credential|Security-Token)=)[^&,\s\"'<>]+", re.IGNORECASE)


class R2Store:
    """A bucket. Network I/O and nothing else; safe to use from two threads."""

    def __init__(self, settings: R2Settings, *, connect_s: float = CONNECT_S, read_s: float = READ_S) -> None:
        self._settings = settings
        self._bucket = settings.bucket
        self._client = _make_client(settings, connect_s, read_s)

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """See ObjectStore. The server compares the MD5 before it keeps anything, and says it back afterwards."""
        self._call("put", key, lambda: self._write(key, data, content_type))

    def _write(self, key: str, data: bytes, content_type: str) -> None:
        md5 = hashlib.md5(data, usedforsecurity=False)
        fields = {"Body": data, "ContentType": content_type, "ContentMD5": base64.b64encode(md5.digest()).decode()}
        answer = self._client.put_object(Bucket=self._bucket, Key=key, **fields)
        if answer.get("ETag", "").strip('"') != md5.hexdigest():
            raise OSError(errno.EIO, "the server did not confirm what was sent")

    def get(self, key: str) -> bytes:
        """See ObjectStore."""
        return self._call("get", key, lambda: self._read(key))

    def _read(self, key: str) -> bytes:
        answer = self._client.get_object(Bucket=self._bucket, Key=key)
        try:
            data: bytes = answer["Body"].read()
        finally:
            answer["Body"].close()
        if answer.get("ContentLength") != len(data):  # headers that were cut look like those of an empty object
            raise OSError(errno.EIO, "the answer was cut short")
        return data

    def head(self, key: str) -> int | None:
        """See ObjectStore."""
        return self._call("head", key, lambda: self._size(key))

    def _size(self, key: str) -> int | None:
        try:
            return int(self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"])
        except ClientError as error:
            if _status(error) != 404:
                raise
        try:  # the answer to a HEAD has no body to say what is missing, object or bucket
            found = self._client.get_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if _code(error) == "NoSuchKey":
                return None
            raise
        found["Body"].close()
        return int(found["ContentLength"])

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        self._call("delete", key, lambda: self._client.delete_object(Bucket=self._bucket, Key=key))

    def url(self, key: str, *, expires_s: int | None = None) -> str:
        """See ObjectStore. A presigned URL opens the object to whoever has it: for a person, never for a log."""
        check_key("url", key)
        if expires_s is not None:
            return self._presigned(key, expires_s)
        if self._settings.public_url:
            return f"{self._settings.public_url}/{quote(key)}"
        return f"r2://{self._bucket}/{key}"

    def _presigned(self, key: str, expires_s: int) -> str:
        if not 1 <= expires_s <= MAX_EXPIRES_S:
            raise ValueError(f"a presigned URL lives 1 to {MAX_EXPIRES_S} s, not {expires_s}")
        where = {"Bucket": self._bucket, "Key": key}
        return str(self._client.generate_presigned_url("get_object", Params=where, ExpiresIn=expires_s))

    def describe(self) -> str:
        """See ObjectStore."""
        return f"R2 bucket {self._bucket} at {self._settings.endpoint}"

    def server_date_ns(self) -> int | None:
        """The server's wall time, for one request; None if it did not say. What it refuses to say is a StoreError."""
        answer = self._call("head", "bucket", lambda: self._client.head_bucket(Bucket=self._bucket))
        return _date_ns(answer)

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._client.close()

    def _call(self, op: str, key: str, request: Callable[[], _T]) -> _T:
        """The request's result. Its failure is raised without a chain: a traceback would print what boto3 wrote."""
        check_key(op, key)
        try:
            return request()
        except _FAILURES as error:
            failure = self._failure(op, key, error)
        raise failure

    def _failure(self, op: str, key: str, error: Exception) -> StoreError:
        if not isinstance(error, ClientError):
            kind, hint = _transport_mend(error)
            return StoreError(op, key, self._scrub(_reason(error)), hint, kind)
        date_ns = _server_date_ns(error)
        ahead_s = None if date_ns is None else (time_ns() - date_ns) / 1e9
        status, code = _status(error), _code(error)
        kind, hint = _mend(status, code, ahead_s)
        said = [
            str(status),
            code if code != str(status) else "",
            str(error.response.get("Error", {}).get("Message", "")),
        ]
        return StoreError(op, key, self._scrub(" ".join(filter(None, said))), hint, kind, date_ns)

    def _scrub(self, text: str) -> str:
        """A text that the server or boto3 wrote, without keys: an error may repeat the access key id it was sent."""
        for secret in (self._settings.secret_access_key, self._settings.access_key_id):
            text = text.replace(secret, "***")
        return _SIGNED.sub(r"\1***", text)


def _make_client(settings: R2Settings, connect_s: float, read_s: float) -> Any:
    for name in ("boto3", "botocore", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)  # at DEBUG they log signatures and whole pictures
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    config = Config(
        region_name="auto",
        signature_version="s3v4",
        s3={"addressing_style": "path", "payload_signing_enabled": True},  # else ContentMD5 switches signing off
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=connect_s,
        read_timeout=read_s,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=2,
        tcp_keepalive=True,
    )
    client = boto3.session.Session(botocore_session=_blank_session(), region_name="auto").client(
        "s3",
        endpoint_url=settings.endpoint,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        verify=settings.ca_bundle or True,
        config=config,
    )
    # `Expect: 100-continue` costs a round trip. Worse, botocore takes TLS 1.3's tickets for the first bytes of the
    # answer and waits for the rest, so that a put to a server that never says 100 always fails.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    client.meta.events.register("before-call.s3", _never_redirect)
    return client


def _never_redirect(params: dict[str, Any], **_: object) -> None:
    """R2 has no regions; but to a server that answers 307 to all, botocore would ask for one until the stack ends."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True


def _blank_session() -> Any:
    """A session that reads neither AWS_* variables nor ~/.aws: a stray AWS_PROFILE would stop everything."""
    session = botocore.session.Session()
    for name, (_, _, default, convert) in list(session.session_var_map.items()):
        session.session_var_map[name] = (None, None, default, convert)
    for name in ("config_file", "credentials_file"):
        session.set_config_variable(name, os.devnull)
    return session


# -- what an error means --------------------------------------------------------------------------------------------


def _mend(status: int, code: str, ahead_s: float | None) -> tuple[Kind, str]:
    """Kind and hint for an answer of the server, whose clock ours is ahead of by `ahead_s`, if it told its time.

    A refusal is blamed on a clock that is wrong: it says nothing about the keys, and codes differ (rclone's is
    `400 AccessDenied`, and the answer to a HEAD has none).
    """
    if code in _DEAD or status in (413, 414, 431):
        return Kind.DEAD_LETTER, "this object cannot be had" if code == "NoSuchKey" else "this object is never taken"
    refused = code in _REFUSED or status in (401, 402, 403)
    skewed = ahead_s is not None and abs(ahead_s) > SKEW_S
    if code in _CLOCK or (skewed and (refused or code == "400")):
        return Kind.CLOCK, f"this clock is {_difference(ahead_s)}; wait for NTP or set it"
    if refused:
        return Kind.PAUSE, _REFUSED.get(code, "check the R2 API token and its permissions")
    return Kind.RETRY, "try again later"


def _difference(ahead_s: float | None) -> str:
    if ahead_s is None:
        return "not the server's"
    return f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the server's"


def _transport_mend(error: Exception) -> tuple[Kind, str]:
    if isinstance(error, ParamValidationError):
        return Kind.DEAD_LETTER, "this object cannot be sent"
    certificate = next((e for e in _chain(error) if isinstance(e, ssl.SSLCertVerificationError)), None)
    if certificate and certificate.verify_code in (_NOT_YET_VALID, _EXPIRED):
        return Kind.CLOCK, "if the certificate is right, this clock is wrong; wait for NTP or set it"
    if isinstance(error, SSLError):
        return Kind.RETRY, f"check {ENVIRONMENT_PREFIX}ENDPOINT and AWS_CA_BUNDLE; try again later"
    if isinstance(error, ProxyConnectionError):
        return Kind.RETRY, "check the proxy in HTTPS_PROXY; try again later"
    return Kind.RETRY, f"check the network and {ENVIRONMENT_PREFIX}ENDPOINT; try again later"


def _reason(error: Exception) -> str:
    """The system's own words if there are any (`Connection refused`), else the library's."""
    for inner in _chain(error):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return f"certificate refused: {inner.verify_message}"
        if isinstance(inner, OSError) and inner.strerror and not isinstance(inner, HTTPError):
            return inner.strerror
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error")).lower()
    return name if isinstance(error, HTTPClientError) else f"{name}: {error}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it wraps, outermost first, each once."""
    seen: list[BaseException] = [error]
    for outer in seen:
        yield outer
        inside = getattr(outer, "kwargs", {}).get("error"), outer.__cause__, outer.__context__, *outer.args
        seen += [inner for inner in inside if isinstance(inner, BaseException) and inner not in seen]


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _server_date_ns(error: ClientError) -> int | None:
    return _date_ns(error.response)


def _date_ns(answer: dict[str, Any]) -> int | None:
    """The server's wall time from the `Date` of its answer; None if it said none that can be read."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return int(parsedate_to_datetime(headers["date"]).timestamp()) * 1_000_000_000
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
