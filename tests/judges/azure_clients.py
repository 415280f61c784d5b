"""Judges the Azure stand-in by Microsoft's own clients, unpatched: azure_clients.py PATH-OF-azure-standin.

Names are mapped to the stand-in's addresses where connections are made; host name, SNI and the check of
the certificate stay those of the real service.
"""

import datetime
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

import urllib3.util.connection
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
)
from azure.identity import (
    CertificateCredential,
    ClientAssertionCredential,
    ClientSecretCredential,
    ManagedIdentityCredential,
)
from azure.keyvault.certificates import CertificateClient
from azure.keyvault.keys import KeyClient
from azure.keyvault.secrets import SecretClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

HERE = pathlib.Path(__file__).parent
TENANT = "22222222-2222-4222-8222-222222222222"
CLIENT = "11111111-1111-4111-8111-111111111111"
READER = "33333333-3333-4333-8333-333333333333"
MACHINE = "44444444-4444-4444-8444-444444444444"
OPEN = "https://lab-open.vault.azure.net"
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class StandIn:
    """The stand-in's control listener."""

    def __init__(self, ready):
        self.base = f"http://{ready['control']}/__standin/"

    def call(self, method, path, value=None):
        body = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self.base + path, data=body, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def mint(self, **claims):
        claims = {"namespace": "shop", "serviceAccount": "web", **claims}
        return self.call("POST", "mint", claims)["token"]


def refused(kind, function, *fragments):
    """Expects an exception of this kind with these words."""
    try:
        function()
    except kind as error:
        for fragment in fragments:
            assert fragment in str(error), f"{fragment!r} is not in: {error}"
        return error
    raise AssertionError(f"no {kind.__name__}")


def federated(standin, tenant=TENANT, client=CLIENT, **claims):
    return ClientAssertionCredential(tenant, client, lambda: standin.mint(**claims))


def secrets(standin, url=OPEN, **claims):
    return SecretClient(url, federated(standin, **claims), retry_total=2)


def database(client):
    return client.get_secret("db-password")


@check
def a_secret_with_all_its_properties(standin):
    secret = database(secrets(standin))
    assert (secret.value, secret.properties.version) == ("p@ss\n", "a2")
    assert secret.properties.content_type == "text/plain"
    assert secret.properties.tags == {"team": "shop"}
    assert secret.properties.created_on.isoformat() == "2026-02-01T00:00:00+00:00"
    assert secret.id == f"{OPEN}/secrets/db-password/a2"


@check
def an_older_version_by_its_id(standin):
    assert secrets(standin).get_secret("db-password", "a1").value == "old"


@check
def an_expired_secret_is_readable_and_names_have_no_case(standin):
    client = secrets(standin)
    assert client.get_secret("expired").value == "still readable"
    assert client.get_secret("EXPIRED").name == "EXPIRED"


@check
def versions_over_three_pages(standin):
    for number in range(60):
        version = {"version": f"v{number:02}", "value": "x"}
        where = {"vault": "lab-open", "kind": "secrets", "name": "many"}
        standin.call("POST", "objects", {**where, "version": version})
    pages = list(secrets(standin).list_properties_of_secret_versions("many").by_page())
    pages = [[item.version for item in page] for page in pages]
    assert [len(page) for page in pages] == [25, 25, 10], pages
    assert sum(pages, []) == [f"v{number:02}" for number in range(60)]


@check
def keys_of_two_kinds(standin):
    client = KeyClient(OPEN, federated(standin))
    rsa, ec = client.get_key("rsa"), client.get_key("ec")
    assert (rsa.key_type, rsa.key.e, len(rsa.key.n)) == ("RSA", b"\1\0\1", 256)
    assert (ec.key_type, ec.key.crv, len(ec.key.x), len(ec.key.y)) == ("EC", "P-256", 32, 32)
    assert [item.version for item in client.list_properties_of_key_versions("rsa")] == ["k1"]


@check
def a_certificate(standin):
    client = CertificateClient(OPEN, federated(standin))
    certificate = client.get_certificate_version("web", "w1")
    assert certificate.cer[0] == 0x30 and len(certificate.cer) > 300
    assert certificate.secret_id == f"{OPEN}/secrets/web/w1"
    assert certificate.key_id == f"{OPEN}/keys/web/w1"
    assert client.get_certificate("web").cer == certificate.cer
    assert [item.version for item in client.list_properties_of_certificate_versions("web")] == ["w1"]


@check
def a_missing_object_of_each_kind(standin):
    credential = federated(standin)
    ask = SecretClient(OPEN, credential).get_secret
    error = refused(ResourceNotFoundError, lambda: ask("nothing"), "SecretNotFound")
    assert error.status_code == 404
    refused(ResourceNotFoundError, lambda: ask("db-password", "zz"), "SecretNotFound")
    ask = KeyClient(OPEN, credential).get_key
    refused(ResourceNotFoundError, lambda: ask("nothing"), "KeyNotFound")
    ask = CertificateClient(OPEN, credential).get_certificate
    refused(ResourceNotFoundError, lambda: ask("nothing"), "CertificateNotFound")


def forbidden(function, inner):
    error = refused(HttpResponseError, function, "Forbidden")
    assert (error.status_code, error.error.innererror["code"]) == (403, inner), error.error.innererror


@check
def a_disabled_secret(standin):
    forbidden(lambda: secrets(standin).get_secret("closed"), "SecretDisabled")


@check
def rights_are_asked_for_each_client_and_operation(standin):
    readonly = "https://lab-readonly.vault.azure.net"
    client = secrets(standin, readonly)
    assert database(client).value == "x"
    listing = client.list_properties_of_secret_versions("db-password")
    forbidden(lambda: list(listing), "ForbiddenByRbac")
    other = SecretClient(readonly, ClientSecretCredential(TENANT, READER, "reader"))
    forbidden(lambda: database(other), "ForbiddenByRbac")


@check
def a_vault_behind_a_firewall(standin):
    client = secrets(standin, "https://lab-walled.vault.azure.net")
    forbidden(lambda: database(client), "ForbiddenByFirewall")


@check
def tokens_that_are_wrong_in_one_way_each(standin):
    cases = [
        ({"serviceAccount": "other"}, "AADSTS700213"),
        ({"variant": "expired"}, "AADSTS700024"),
        ({"variant": "notYetValid"}, "AADSTS700024"),
        ({"variant": "forgedKey"}, "AADSTS50027"),
        ({"variant": "unknownKid"}, "AADSTS50027"),
        ({"variant": "algNone"}, "AADSTS50027"),
        ({"variant": "altered"}, "AADSTS50027"),
        ({"variant": "wrongIssuer"}, "AADSTS700211"),
        ({"audience": "elsewhere"}, "AADSTS700212"),
    ]
    for claims, number in cases:
        refused(ClientAuthenticationError, lambda: database(secrets(standin, **claims)), number)


@check
def unknown_tenant_and_client(standin):
    other = "99999999-9999-4999-8999-999999999999"
    ask = federated(standin, client=other).get_token
    refused(ClientAuthenticationError, lambda: ask("https://vault.azure.net/.default"), "AADSTS700016")
    ask = federated(standin, tenant=other).get_token
    kinds = (ClientAuthenticationError, ValueError)
    refused(kinds, lambda: ask("https://vault.azure.net/.default"))


@check
def client_secrets(standin):
    right = SecretClient(OPEN, ClientSecretCredential(TENANT, CLIENT, "right"))
    assert database(right).value == "p@ss\n"
    wrong = SecretClient(OPEN, ClientSecretCredential(TENANT, CLIENT, "wrong"))
    refused(ClientAuthenticationError, lambda: database(wrong), "AADSTS7000215")


@check
def identities_of_the_machine(standin):
    for credential in ManagedIdentityCredential(), ManagedIdentityCredential(client_id=CLIENT):
        assert database(SecretClient(OPEN, credential)).value == "p@ss\n"
    clients = {entry["client"] for entry in standin.call("GET", "log")["requests"]}
    assert clients - {None} == {MACHINE, CLIENT}, clients
    other = SecretClient(OPEN, ManagedIdentityCredential(client_id=TENANT))
    refused(ClientAuthenticationError, lambda: database(other))


@check
def one_throttled_answer_is_waited_for(standin):
    client = secrets(standin)
    database(client)
    fault = {"status": 429, "times": 1, "path": "/secrets/", "headers": {"retry-after": "1"}}
    standin.call("POST", "faults", fault)
    start = time.monotonic()
    assert database(client).value == "p@ss\n"
    assert 1 <= time.monotonic() - start < 5


@check
def tokens_ended_all_at_once_are_got_again(standin):
    client = secrets(standin)
    database(client)
    standin.call("POST", "expire-tokens")
    refused(HttpResponseError, lambda: database(client))
    assert database(secrets(standin)).value == "p@ss\n"


@check
def the_issuers_keys_are_rotated(standin):
    old = standin.mint()
    standin.call("POST", "rotate-signing-keys")
    late = SecretClient(OPEN, ClientAssertionCredential(TENANT, CLIENT, lambda: old))
    refused(ClientAuthenticationError, lambda: database(late), "AADSTS50027")
    assert database(secrets(standin)).value == "p@ss\n"


@check
def a_broken_connection_and_a_name_that_is_not_there(standin):
    client = secrets(standin)
    database(client)
    standin.call("POST", "faults", {"how": "close", "times": 1, "path": "/secrets/"})
    assert database(client).value == "p@ss\n"
    absent = SecretClient("https://lab-absent.vault.azure.net", federated(standin), retry_total=0)
    refused(ServiceRequestError, lambda: database(absent))


def own_certificate():
    """A self-signed certificate and its key as PEM: both, and the certificate alone."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "judge")])
    start = datetime.datetime(2026, 1, 1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start.replace(year=2126))
    public = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return public + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), public.decode()


@check
def a_certificate_as_credential(standin):
    (both, public), (other, _) = own_certificate(), own_certificate()
    client = "55555555-5555-4555-8555-555555555555"
    standin.call("POST", "store", {"identities": [{"clientId": client, "certificates": [public]}]})
    of = lambda pem: SecretClient(OPEN, CertificateCredential(TENANT, client, certificate_data=pem))
    assert database(of(both)).value == "p@ss\n"
    refused(ClientAuthenticationError, lambda: database(of(other)), "AADSTS700027")


@check
def a_log_that_shows_no_secret(standin):
    database(secrets(standin))
    log = standin.call("GET", "log")
    text = json.dumps(log)
    seen = {(entry["service"], entry["method"], entry["status"]) for entry in log["requests"]}
    assert {("entra", "POST", 200), ("vault", "GET", 200)} <= seen, seen
    assert log["inFlightPeak"] >= 1
    assert "p@ss" not in text and "eyJ" not in text


def map_names(connect_to):
    """Connects to the stand-in in place of the hosts it serves, and to nothing else by name."""
    real = urllib3.util.connection.create_connection

    def connect(address, *arguments, **options):
        host, port = address
        target = connect_to.get(f"{host}:{port}") or connect_to.get(host)
        if target is None:
            raise OSError(f"{host} is no name of the stand-in")
        host, _, port = target.rpartition(":")
        return real((host, int(port)), *arguments, **options)

    urllib3.util.connection.create_connection = connect


def main(binary):
    logging.disable()  # the clients log each refusal
    # Preset roots and proxies of the machine have no place here.
    for name in list(os.environ):
        if name.upper().endswith(("_PROXY", "_CA_BUNDLE")) or name.startswith(("SSL_CERT_", "AZURE_", "MSI_")):
            del os.environ[name]
    with tempfile.TemporaryDirectory() as folder:
        ca = f"{folder}/ca.pem"
        command = [binary, "--store", str(HERE / "store.yaml"), "--ca-out", ca]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            ready = json.loads(server.stdout.readline())
            os.environ["REQUESTS_CA_BUNDLE"] = ca
            map_names(ready["connectTo"])
            failed = judge(StandIn(ready))
        finally:
            server.terminate()
            server.wait()
    return 1 if failed else 0


def judge(standin):
    failed = 0
    for function in CHECKS:
        standin.call("DELETE", "log")
        name, result = function.__name__.replace("_", " "), "ok"
        try:
            function(standin)
            unexpected = standin.call("GET", "unexpected")
            assert not unexpected, unexpected
        except Exception as error:  # each check gets its line
            result = f"FAILED {type(error).__name__}: {error}"
            failed += 1
        standin.call("DELETE", "faults")
        standin.call("DELETE", "unexpected")
        print(f"{name}: {result}")
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
