"""Signatures of webhooks: the Standard Webhooks scheme, beside the library of that name."""

from __future__ import annotations

import base64
import time
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse.web import SignatureError, Signatures, sign
from support import SOON
from web_support import SECRET

VECTOR = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
VECTOR_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
VECTOR_BODY = b'{"test": 2432232314}'
NOW = 1614265330
OTHER = "whsec_" + base64.b64encode(b"?" * 24).decode()


def verifier(*secrets: str | bytes, now: float = NOW, **options: float) -> Signatures:
    return Signatures(secrets or [VECTOR_SECRET], clock=lambda: now, **options)


def reason(headers: dict[str, str], body: bytes = VECTOR_BODY, **options: float) -> str | None:
    """Why the headers are refused; None if they are not."""
    try:
        assert verifier(**options).verify(headers, body) == headers["webhook-id"]
    except SignatureError as error:
        return error.reason
    return None


def test_the_vector_of_the_specification():
    """Its example is verified, and sign() makes the same of the same."""
    assert verifier().verify(VECTOR, VECTOR_BODY) == VECTOR["webhook-id"]
    made = sign(VECTOR_SECRET, VECTOR_BODY, id=VECTOR["webhook-id"], timestamp=NOW + 0.9)
    assert made == VECTOR


def test_the_library_verifies_ours():
    """What we sign, the library standardwebhooks accepts."""
    webhooks = pytest.importorskip("standardwebhooks")
    for body in (b"{}", '{"key": "\u00e9"}'.encode()):
        webhooks.Webhook(SECRET).verify(body, sign(SECRET, body))


def test_the_library_signs_for_us():
    """What the library standardwebhooks signs, we accept, under its id."""
    webhooks = pytest.importorskip("standardwebhooks")
    body, at = '{"type": "clear_all"}', datetime.fromtimestamp(NOW, timezone.utc)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(NOW)}
    headers["webhook-signature"] = webhooks.Webhook(SECRET).sign("msg_1", at, body)
    assert verifier(SECRET).verify(headers, body.encode()) == "msg_1"


def test_secrets_in_every_form():
    """With the prefix, without it, without padding, and as bytes a secret is the same."""
    plain = base64.b64decode(SECRET[6:])
    for form in (SECRET, SECRET[6:], SECRET.rstrip("="), plain, bytearray(plain)):
        assert Signatures([form]).verify(sign(SECRET, b"x"), b"x")
        assert Signatures([SECRET]).verify(sign(form, b"x"), b"x")


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!!", "not base64", b"", b"x" * 23, "é"])
def test_secrets_that_are_refused(secret):
    """One that is no base64 or too short is a ValueError, which does not show it."""
    with pytest.raises(ValueError, match="secret") as caught:
        Signatures([SECRET, secret])
    assert not secret or str(secret) not in str(caught.value)


@pytest.mark.parametrize("tolerance", [0, -1, float("inf"), float("nan")])
def test_tolerances_that_are_refused(tolerance):
    """A tolerance is positive and finite; and there must be a secret."""
    with pytest.raises(ValueError, match="tolerance"):
        Signatures([SECRET], tolerance=tolerance)
    with pytest.raises(ValueError, match="secret"):
        Signatures([])


def test_rotation():
    """A message signed with any of the secrets is good, whichever signature it comes with."""
    both = verifier(OTHER, VECTOR_SECRET)
    assert both.verify(VECTOR, VECTOR_BODY)
    foreign = sign(SECRET, VECTOR_BODY, id=VECTOR["webhook-id"], timestamp=NOW)
    signatures = [foreign["webhook-signature"], "v1a,xyz", VECTOR["webhook-signature"]]
    assert both.verify(VECTOR | {"webhook-signature": " ".join(signatures)}, VECTOR_BODY)
    with pytest.raises(SignatureError, match="no signature is right"):
        both.verify(foreign, VECTOR_BODY)


def test_the_tolerance():
    """A timestamp may be as far from the clock as the tolerance, either way, and no farther."""
    for off, expected in [(-300, None), (300, None), (-300.5, "expired"), (301, "expired")]:
        assert reason(VECTOR, now=NOW + off) == expected
    assert reason(VECTOR, now=NOW + 11, tolerance=10) == "expired"
    assert reason(VECTOR, now=float("nan")) == "expired"


def test_age_counts_only_when_signed():
    """An old message with a wrong signature is told of the signature."""
    assert reason(VECTOR, b"{}", now=NOW + 9999) == "wrong_signature"


@pytest.mark.parametrize("name", VECTOR)
def test_missing_headers(name):
    """Without one of the three headers, or with an empty one, a message is not signed."""
    assert reason({each: text for each, text in VECTOR.items() if each != name}) == "unsigned"
    assert reason(VECTOR | {name: ""}) == "unsigned"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("webhook-id", "a.b"),
        ("webhook-id", "a b"),
        ("webhook-id", "a\nb"),
        ("webhook-id", "\u00e9"),
        ("webhook-id", "x" * 257),
        ("webhook-timestamp", "1614265330.0"),
        ("webhook-timestamp", "+1614265330"),
        ("webhook-timestamp", "-1614265330"),
        ("webhook-timestamp", " 1614265330"),
        ("webhook-timestamp", "1_614_265_330"),
        ("webhook-timestamp", "\u0661\u0662"),
        ("webhook-timestamp", "nan"),
        ("webhook-timestamp", "9" * 400),
        ("webhook-signature", "v1"),
        ("webhook-signature", "v1 " + VECTOR["webhook-signature"]),
        ("webhook-signature", " "),
        ("webhook-signature", "v1," + "A" * 3000),
        ("webhook-signature", " ".join(["v1,AAAA"] * 17)),
    ],
)
def test_malformed_headers(name, text):
    """Headers that are no id, no whole seconds, no signatures are malformed, and nothing raises."""
    assert reason(VECTOR | {name: text}) == "malformed"


@pytest.mark.parametrize(
    "text",
    [
        "v1,",
        "v1,!!!",
        "v1,A",
        "v1,\u00ff\u00fe",
        "V1," + VECTOR["webhook-signature"][3:],
        "v2," + VECTOR["webhook-signature"][3:],
        "v1a," + VECTOR["webhook-signature"][3:],
        VECTOR["webhook-signature"][:-1],
        VECTOR["webhook-signature"] + "=",
        VECTOR["webhook-signature"].replace("+", "-").replace("/", "_"),
        VECTOR["webhook-signature"].replace("1OE=", "1OF="),  # the same bytes in base64
        "v1,*" + VECTOR["webhook-signature"][3:],
    ],
)
def test_wrong_signatures(text):
    """Only the exact text of the signature passes, not what decodes to the same bytes."""
    assert reason(VECTOR | {"webhook-signature": text}) == "wrong_signature"


@given(st.dictionaries(st.sampled_from(list(VECTOR)), st.text()), st.binary())
def test_any_headers(headers, body):
    """Whatever headers and body hold, they are refused with a reason."""
    assert reason(VECTOR | headers, body + b"!") in ("unsigned", "malformed", "wrong_signature")


def test_signing():
    """A new id each time, the time of now, and ids that cannot be sent are refused."""
    one, other = sign(SECRET, "body"), sign(SECRET, "body")
    assert one["webhook-id"] != other["webhook-id"]
    assert abs(int(one["webhook-timestamp"]) - time.time()) < SOON
    assert Signatures([SECRET]).verify(one, b"body") == one["webhook-id"]
    for id in ("", "a.b", "a b", "x" * 257, "a\r\nb"):
        with pytest.raises(ValueError, match="id"):
            sign(SECRET, "body", id=id)


def test_nothing_shows_a_secret():
    """The repr of a verifier says how many secrets, not which."""
    assert repr(verifier()) == "Signatures(1 secrets, tolerance=300.0)"
