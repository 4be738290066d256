"""Where a host that was given no keys finds some: services as Amazon runs them beside instances and containers.

All give the keys of :attr:`Role.keys`, which end after :attr:`Role.lasts_s`, to who asks as the documents say. Sources:
the EC2 user guide, "Use the Instance Metadata Service" (version 2); the SDKs' reference, "Container credential
provider"; the STS reference, "AssumeRoleWithWebIdentity".
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import parse_qs, urlsplit

from tests.bucket.store import KEYS, Store

ROLE: Final = "netwatch-host"
_ROLES: Final = "/latest/meta-data/iam/security-credentials/"
CONTAINER: Final = "/v2/credentials/abc123"
TASK: Final = "/v2/credentials/task"
"""What a task of ECS asks for, without a token."""
TOKEN: Final = "header.payload.signature"
IAM: Final = {
    "sts": {
        "issuer": "tests",
        "signingKey": base64.b64encode(bytes(32)).decode(),
        "tokenDuration": "1h",
        "maxSessionLength": "12h",
    },
    "policy": {"defaultEffect": "Deny", "storeType": "memory"},
    "policies": [
        {
            "name": "ship",
            "document": {
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Action": ["s3:PutObject", "s3:GetObject"], "Resource": ["*"]}],
            },
        }
    ],
    "roles": [
        {
            "roleName": ROLE,
            "roleArn": f"arn:aws:iam::role/{ROLE}",
            "attachedPolicies": ["ship"],
            "trustPolicy": {
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Principal": "*", "Action": ["sts:AssumeRole"]}],
            },
        }
    ],
}
"""What SeaweedFS is told of the role, which may put and get and no more (``-s3.iam.config``)."""
_STS: Final = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><SessionToken>{Token}</SessionToken>
<SecretAccessKey>{SecretAccessKey}</SecretAccessKey><Expiration>{Expiration}</Expiration>
<AccessKeyId>{AccessKeyId}</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""


class Role:
    """All of them, at ``endpoint``; ``has_role`` False is an instance without a role."""

    def __init__(
        self,
        keys: Mapping[str, str],
        lasts_s: float,
        tls: ssl.SSLContext | None = None,
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.keys = keys
        self.lasts_s = lasts_s
        self.has_role = True
        self.given = Counter[str]()
        """How often keys were given, by the service."""
        self._tokens = set[str]()
        role = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                role.put(self)

            def do_GET(self) -> None:
                role.get(self)

            def do_POST(self) -> None:
                role.post(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(address, Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.endpoint = f"http{'s' * bool(tls)}://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, request: BaseHTTPRequestHandler) -> None:
        """The token that version 2 wants with each request."""
        if request.path != "/latest/api/token" or not request.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
            _answer(request, 400)
            return
        self._tokens.add(token := secrets.token_hex(16))
        _answer(request, 200, token)

    def get(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        if path == TASK:
            _answer(request, 200, json.dumps(self._given("task")))
        elif path == CONTAINER and self.has_role and request.headers.get("Authorization") == TOKEN:
            _answer(request, 200, json.dumps(self._given("container")))
        elif request.headers.get("X-aws-ec2-metadata-token") not in self._tokens:
            _answer(request, 401)
        elif path == _ROLES and self.has_role:
            _answer(request, 200, ROLE)
        elif path == _ROLES + ROLE and self.has_role:
            _answer(request, 200, json.dumps({"Code": "Success", "Type": "AWS-HMAC", **self._given("instance")}))
        else:
            _answer(request, 404)

    def post(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("Content-Length") or 0)
        asked = parse_qs(urlsplit(request.path).query or request.rfile.read(length).decode())
        wanted = {"Action": ["AssumeRoleWithWebIdentity"], "WebIdentityToken": [TOKEN]}
        if self.has_role and wanted.items() <= asked.items():
            _answer(request, 200, _STS.format(**self._given("web")))
        else:
            _answer(request, 400)

    def _given(self, service: str) -> dict[str, str]:
        self.given[service] += 1
        print(service, flush=True)
        return {
            "AccessKeyId": self.keys["AWS_ACCESS_KEY_ID"],
            "SecretAccessKey": self.keys["AWS_SECRET_ACCESS_KEY"],
            "Token": self.keys.get("AWS_SESSION_TOKEN", ""),
            "Expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.lasts_s)),
        }


def assumed(store: Store) -> Mapping[str, str]:
    """Keys for a session in the role, of the store's own making; by curl, which can sign the request."""
    form = f"Action=AssumeRole&Version=2011-06-15&RoleArn=arn:aws:iam::role/{ROLE}&RoleSessionName=tests"
    user = f"{KEYS['AWS_ACCESS_KEY_ID']}:{KEYS['AWS_SECRET_ACCESS_KEY']}"
    signed = ["--aws-sigv4", "aws:amz:us-east-1:sts", "--user", user]
    command = ["curl", "--silent", "--fail-with-body", *signed, "--data", form, f"{store.endpoint}/"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
    names = {"AccessKeyId": "AWS_ACCESS_KEY_ID", "SecretAccessKey": "AWS_SECRET_ACCESS_KEY"}
    names |= {"SessionToken": "AWS_SESSION_TOKEN"}
    found: list[tuple[str, str]] = re.findall(r"<(\w+)>([^<>]+)</", said)
    return {names[name]: value for name, value in found if name in names}


def _answer(request: BaseHTTPRequestHandler, status: int, text: str = "") -> None:
    content = text.encode()
    request.send_response(status)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


if __name__ == "__main__":  # of a network of its own, at all its addresses and the port that is Amazon's
    Role({"AWS_ACCESS_KEY_ID": sys.argv[1], "AWS_SECRET_ACCESS_KEY": sys.argv[2]}, 3600.0, address=("", 80))
    threading.Event().wait()
