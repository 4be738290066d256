"""Who may post: by origin, so that no foreign page posts to an operator's loopback, and by bearer token.

A token is never logged and never part of an answer; given tokens are compared in constant time.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from falcon.asgi import Request, Response

from netwatch.errors import Refused
from netwatch.http.headers import header
from netwatch.settings import Network

PREFLIGHT_MAX_AGE_S: Final = 7200  # more is capped by Chromium
_TAKEN_HEADERS: Final = "authorization, content-encoding, content-type, idempotency-key"
_ORIGIN: Final = re.compile(r"[!-~]+")
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="netwatch"'}


class Sender(NamedTuple):
    """Who sends a request: the name of its token ("" where there are none), its address, whether a page sent it."""

    token: str
    address: str
    is_page: bool


Guard = Callable[[Request, Response], object]
"""Raises :class:`Refused` for who may not see this."""


class Access:
    """Decides who may post. ``tokens`` maps names to tokens; none at all lets everybody post."""

    def __init__(
        self, tokens: Mapping[str, str], allowed_origins: Sequence[str], trusted_proxies: Sequence[Network]
    ) -> None:
        self._digests = {name: hashlib.sha256(token.encode()).digest() for name, token in tokens.items()}
        self._origins = frozenset(allowed_origins)
        self._proxies = tuple(trusted_proxies)

    def admit(self, req: Request, resp: Response) -> Sender:
        """Who sends the request; raises :class:`Refused` if they may not. Puts the CORS headers on the answer."""
        origin = header(req, b"origin")
        if origin:
            self._admit_origin(origin, req, resp)
        return Sender(self._token(req) if self._digests else "", self._address(req), origin is not None)

    def preflight(self, req: Request, resp: Response) -> None:
        """Answer a page's question whether it may post here (Fetch standard, CORS preflight)."""
        origin = req.get_header("origin")
        if origin:
            self._admit_origin(origin, req, resp)
            resp.set_header("Access-Control-Allow-Methods", "POST")
            resp.set_header("Access-Control-Allow-Headers", _TAKEN_HEADERS)
            resp.set_header("Access-Control-Max-Age", str(PREFLIGHT_MAX_AGE_S))
        resp.set_header("Allow", "OPTIONS, POST")
        resp.status = 204

    def _admit_origin(self, origin: str, req: Request, resp: Response) -> None:
        resp.append_header("Vary", "Origin")
        host = origin.partition("://")[2]
        if origin in self._origins or ("*" in self._origins and _ORIGIN.fullmatch(origin)):
            resp.set_header("Access-Control-Allow-Origin", origin)
            resp.set_header("Access-Control-Allow-Credentials", "true")
        elif not host or host != req.get_header("host"):
            raise Refused(
                "origin_not_allowed", "Pages of this origin may not post here; allowed_origins names those that may."
            )

    def _token(self, req: Request) -> str:
        """The name of the token that came in the header or, as a beacon has no headers, in the query.

        In the header it may also be a password (``curl -u name:token``), whatever the user's name is.
        """
        scheme, _, given = (req.get_header("authorization") or "").partition(" ")
        if not given or scheme.lower() != "bearer":
            password = _password(given) if scheme.lower() == "basic" else ""
            in_query: str = req.get_param("token") or ""
            given = in_query.replace(" ", "+") or password  # a query that nobody encoded has the one for the other
        if not given:
            raise Refused(
                "token_missing",
                "Send a token: Authorization: Bearer …, as the password of Basic, or ?token=… from a beacon.",
                headers=_CHALLENGE,
            )
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        names = [name for name, known in self._digests.items() if hmac.compare_digest(digest, known)]
        if not names:
            raise Refused("token_unknown", "This token is not known here.", headers=_CHALLENGE)
        return names[0]

    def _address(self, req: Request) -> str:
        """The client's address: the peer's, or what the proxies that are trusted say of it, the nearest first."""
        client = req.scope.get("client")
        address: str = client[0] if client else ""
        if ":" in address:
            address = _plain(address)
        if not self._proxies or not self._is_trusted(address):
            return address
        for hop in reversed(_hops(req)):
            if not _is_address(hop):
                return address
            address = hop
            if not self._is_trusted(hop):
                return address
        return address

    def _is_trusted(self, address: str) -> bool:
        return _is_address(address) and any(ipaddress.ip_address(address) in network for network in self._proxies)


def _password(credentials: str) -> str:
    """The password of Basic credentials (RFC 7617), "" if there is none."""
    try:
        decoded = binascii.a2b_base64(credentials.encode("ascii"), strict_mode=True)
    except ValueError:
        return ""
    return decoded.decode("utf-8", "surrogateescape").partition(":")[2]


def _hops(req: Request) -> list[str]:
    """The addresses in ``Forwarded`` (RFC 7239), or else ``X-Forwarded-For``, the client's first."""
    if req.get_header("forwarded"):
        return [_without_port(element.src or "") for element in req.forwarded or []]
    return [_without_port(hop.strip()) for hop in (req.get_header("x-forwarded-for") or "").split(",")]


def _without_port(node: str) -> str:
    if node.startswith("["):
        return _plain(node[1:].partition("]")[0])
    return node.partition(":")[0] if node.count(":") == 1 else _plain(node)


def _plain(address: str) -> str:
    """The address, an IPv4 one also where a socket of both families writes it as ``::ffff:192.0.2.1``."""
    mapped = ipaddress.IPv6Address(address).ipv4_mapped if ":" in address and _is_address(address) else None
    return str(mapped) if mapped else address


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def truncated(address: str) -> str:
    """The address without what tells one household from its neighbours: the last 8 bits of IPv4, 80 of IPv6."""
    if not _is_address(address):
        return address
    ip = ipaddress.ip_address(address)
    network = ipaddress.ip_network((ip, 24 if ip.version == 4 else 48), strict=False)
    return str(network.network_address)
