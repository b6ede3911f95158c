"""The services that hand out credentials, each at the HTTP endpoint that the SDKs really ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from tests.unit.stores.stub_server import Request, answer, stub_server

_STS = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIA{n}</AccessKeyId>
<SecretAccessKey>secret-{n}</SecretAccessKey><SessionToken>token-{n}</SessionToken>
<Expiration>{expires}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""
_STS_ERROR = "<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"


@dataclass
class Identity:
    """What the services hand out: ``token-1``, ``token-2`` … with these lifetimes, the last one for all later ones.

    Args:
        lifetimes_s: Seconds; below zero a token has expired when it arrives.
        refuse_from: Number of the request from which on there are no more, or 0.
        refusal: Code of that refusal.
    """

    lifetimes_s: tuple[float, ...] = (3600.0,)
    refuse_from: int = 0
    refusal: str = "InvalidIdentityToken"
    issued: int = 0
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def answer(self, request: Request) -> bytes:
        """Answer as the service whose path it is."""
        self.requests.append(request)
        if self.refuse_from and len(self.requests) >= self.refuse_from:
            return answer(400, _STS_ERROR.format(code=self.refusal).encode())
        if request.target.startswith("/computeMetadata/v1/") and not request.target.split("?")[0].endswith("/token"):
            return self._describe(request)
        self.issued += 1
        lifetime_s = self.lifetimes_s[min(self.issued, len(self.lifetimes_s)) - 1]
        expires = datetime.now(timezone.utc) + timedelta(seconds=lifetime_s)
        at, n = expires.strftime("%Y-%m-%dT%H:%M:%SZ"), self.issued
        if request.target.startswith("/ecs"):
            document = {"AccessKeyId": f"ASIA{n}", "SecretAccessKey": f"secret-{n}", "Token": f"token-{n}"}
            return answer(200, json.dumps({**document, "Expiration": at}).encode())
        if request.method == "POST" and b"AssumeRoleWithWebIdentity" in request.body:
            return answer(200, _STS.format(n=n, expires=at).encode(), content_type="text/xml")
        document = {
            "access_token": f"token-{n}",
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "token_type": "Bearer",
            "expires_in": int(lifetime_s),
        }
        if request.target.startswith("/msi"):
            document["expires_on"] = str(int(expires.timestamp()))
        return answer(200, json.dumps(document).encode(), Metadata_Flavor="Google", content_type="application/json")

    @staticmethod
    def _describe(request: Request) -> bytes:
        email = "saver@project.iam.gserviceaccount.com"
        body = json.dumps({"email": email, "scopes": [], "aliases": ["default"]}).encode()
        return answer(200, body, Metadata_Flavor="Google", content_type="application/json")


@contextmanager
def identity_service(**settings: object) -> Iterator[Identity]:
    """Run the services on one port."""
    identity = Identity(**settings)  # type: ignore[arg-type]
    with stub_server(identity.answer) as server:
        identity.url = server.url
        yield identity
