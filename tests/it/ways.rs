//! Every way to an identity that Azure classes can take (azure.md 11), against the stand-in.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyferry::backends::{self, Settings, azure};
use keyferry::call::{Call, Pod};
use keyferry::error::{Kind, Problems};
use keyferry::fetch::{self, Tally};
use keyferry::gather::{Gather, Gathered};
use keyferry::http::{self, Http};
use keyferry::kube;
use keyferry::secret::SecretText;

use crate::standins::azure::cluster::{API_TOKEN, HOST, PROXY_NAME};
use crate::standins::azure::content::{Denial, Identity, Kind as Object, Managed, ObjectVersion};
use crate::standins::azure::{AzureStandIn, CLIENT, TENANT};
use crate::standins::faults::Fault;
use crate::support::azure::{AUDIENCE, Ask, client, secret, start};

const BINDING: &str = "api://AKSIdentityBinding";

fn open(http: &Http, azure: azure::Settings) -> Arc<dyn Gather> {
    let engine = fetch::Settings { tries: 1, ..fetch::Settings::default() };
    backends::open(&Settings { azure, ..Settings::default() }, http, &engine).remove(0)
}

async fn mount(backend: &Arc<dyn Gather>, ask: Ask<'_>) -> Result<Gathered, Problems> {
    backend.gather(&ask.call(), &Tally::default()).await
}

fn has(text: &str, fragments: &[&str]) {
    for fragment in fragments {
        assert!(text.contains(fragment), "{fragment}: {text}");
    }
}

async fn shop() -> AzureStandIn {
    let store = start().await;
    secret(&store, "db", "v1", "canary-value");
    store
}

/// Settings of a token proxy whose authority is the stand-in's.
fn proxy(store: &AzureStandIn, dir: &Path) -> azure::Settings {
    std::fs::write(dir.join("ca.crt"), store.ca_pem()).unwrap();
    let token_proxy = azure::binding::Settings {
        url: format!("https://{HOST}/base/").parse().unwrap(),
        ca: dir.join("ca.crt"),
        ..azure::binding::Settings::default()
    };
    azure::Settings { token_proxy, ..azure::Settings::default() }
}

/// A client that trusts nobody by itself, so that what the file says decides.
fn trusting_nobody(store: &AzureStandIn) -> Http {
    Http::new(http::Settings { connect_to: store.connect_to(), ..http::Settings::default() })
}

const BOUND: &[(&str, &str)] = &[("useAzureTokenProxy", "true"), ("clientID", CLIENT)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_11_6_identity_binding_asks_the_proxy_by_its_own_name() {
    let store = shop().await;
    store.identity(Identity::new(CLIENT).bound("shop", "web"));
    let dir = tempfile::tempdir().unwrap();
    let backend = open(&client(&store, |_| true), proxy(&store, dir.path()));
    let tokens = [(BINDING, store.issuer().mint("shop", "web", BINDING))].into();
    let got = mount(&backend, Ask { parameters: BOUND, tokens, ..Ask::default() }).await.unwrap();
    assert_eq!(got.files[0].contents.expose(), b"canary-value");
    let asked: Vec<_> = store.log().iter().map(|l| (l.service, l.host.clone(), l.path.clone())).collect();
    assert_eq!(
        asked[0],
        ("cluster", HOST.to_owned(), format!("/base/{TENANT}/oauth2/v2.0/token")),
        "no discovery, and nothing to the authority"
    );
    assert_eq!(asked.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_11_6_a_name_that_is_set_needs_no_look_at_the_api_server() {
    let store = shop().await;
    store.identity(Identity::new(CLIENT).bound("shop", "web"));
    let dir = tempfile::tempdir().unwrap();
    let mut settings = proxy(&store, dir.path());
    settings.token_proxy.server_name = Some(PROXY_NAME.into());
    settings.token_proxy.api = "https://nowhere.invalid".parse().unwrap();
    let backend = open(&client(&store, |_| true), settings);
    let token = |account| [(BINDING, store.issuer().mint("shop", account, BINDING))].into();
    mount(&backend, Ask { parameters: BOUND, tokens: token("web"), ..Ask::default() }).await.unwrap();
    let ask = Ask { parameters: BOUND, tokens: token("other"), ..Ask::default() };
    let problems = mount(&backend, ask).await.unwrap_err();
    assert_eq!(problems.kind(), Kind::Unauthenticated);
    has(
        &problems.to_string(),
        &["AADSTS700213", "use-managed-identity", "cid.wi.aks.azure.com", "system:serviceaccount:shop:other"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_16_28_a_proxy_that_was_not_there_is_tried_again() {
    let store = shop().await;
    store.identity(Identity::new(CLIENT).bound("shop", "web"));
    let dir = tempfile::tempdir().unwrap();
    let settings = proxy(&store, dir.path());
    std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
    // No file: the roots of the client itself, which do not hold the lab's authority.
    let backend = open(&trusting_nobody(&store), settings);
    let tokens = || [(BINDING, store.issuer().mint("shop", "web", BINDING))].into();
    let ask = || Ask { parameters: BOUND, tokens: tokens(), ..Ask::default() };
    let text = mount(&backend, ask()).await.unwrap_err().to_string();
    has(&text, &["failed to get keyvault client: proxy transport not available: ", HOST]);
    std::fs::write(dir.path().join("ca.crt"), store.ca_pem()).unwrap();
    let text = mount(&backend, ask()).await.unwrap_err().to_string();
    assert!(!text.contains("proxy transport"), "the file is read again: {text}");
    assert!(store.log().iter().any(|l| l.service == "cluster" && l.status == 200));
}

#[tokio::test]
async fn azure_11_6_what_identity_binding_needs_is_named() {
    let store = shop().await;
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let text = mount(&backend, Ask { parameters: &[("useAzureTokenProxy", "T")], ..Ask::default() }).await;
    has(
        &text.unwrap_err().to_string(),
        &[
            "failed to build auth config for mode AzureTokenProxy: clientID is required for identity binding",
            "service account tokens are required for identity binding",
            "tokenRequests: [{audience: api://AKSIdentityBinding}]",
        ],
    );
    let tokens = [(AUDIENCE, "x".to_owned())].into();
    let text = mount(&backend, Ask { parameters: BOUND, tokens, ..Ask::default() }).await.unwrap_err();
    has(
        &text.to_string(),
        &[
            "failed to parse service account token for identity binding, error: token for audience api://AKSIdentityBinding not found",
            "\"api://AzureADTokenExchange\"",
        ],
    );
}

const POD: &[(&str, &str)] = &[("usePodIdentity", "true")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_11_5_pod_identity_speaks_for_the_pod() {
    let store = shop().await;
    store.pod("shop", "web-0", CLIENT);
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let got = mount(&backend, Ask { parameters: POD, ..Ask::default() }).await.unwrap();
    assert_eq!(got.files[0].contents.expose(), b"canary-value");
    let log = store.log();
    assert_eq!(
        (log[0].service, log[0].path.as_str()),
        ("podIdentity", "/host/token/?resource=https://vault.azure.net")
    );
    // Another pod of the node has nothing from it.
    let other = Call {
        pod: Pod { name: "web-1".into(), ..Ask::default().call().pod },
        ..Ask { parameters: POD, ..Ask::default() }.call()
    };
    let problems = backend.gather(&other, &Tally::default()).await.unwrap_err();
    assert_eq!(problems.kind(), Kind::Unauthenticated);
    has(&problems.to_string(), &["nmi response failed with status code: 404", "shop/web-1"]);
    assert!(!problems.to_string().contains("AzureAssignedIdentity"), "the body stays outside");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_11_5_an_empty_answer_of_pod_identity_is_named() {
    let store = shop().await;
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    for body in [
        "{}",
        r#"{"token":{"access_token":""},"clientid":"c"}"#,
        r#"{"token":{"access_token":"canary-token","expires_on":"1"},"clientid":""}"#,
        "no json",
    ] {
        store.fault(Fault::status(200).path("/host/token/").body(body));
        let text = mount(&backend, Ask { parameters: POD, ..Ask::default() }).await.unwrap_err().to_string();
        has(&text, &["nmi did not return expected values"]);
        assert!(!text.contains("canary"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_16_29_a_machine_is_known_by_each_of_its_ids() {
    let store = shop().await;
    let resource =
        "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/shop";
    let identity = Identity { resource_id: Some(resource.into()), ..Identity::new(CLIENT) };
    let object = identity.object_id.clone();
    store.identity(identity.managed(Managed::User));
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let vm = ("useVMManagedIdentity", "true");
    for (key, id, query) in [
        ("userAssignedIdentityID", CLIENT, "client_id="),
        ("userAssignedIdentityObjectID", object.as_str(), "object_id="),
        ("userAssignedIdentityResourceID", resource, "msi_res_id="),
    ] {
        store.clear_log();
        mount(&backend, Ask { parameters: &[vm, (key, id)], ..Ask::default() }).await.unwrap();
        assert!(store.log()[0].path.contains(query), "{:?}", store.log()[0].path);
    }
    let both = [vm, ("userAssignedIdentityID", CLIENT), ("userAssignedIdentityObjectID", "o")];
    let text = mount(&backend, Ask { parameters: &both, ..Ask::default() }).await.unwrap_err().to_string();
    has(&text, &["named twice"]);
    let unknown = [vm, ("userAssignedIdentityID", "none")];
    let text = mount(&backend, Ask { parameters: &unknown, ..Ask::default() }).await.unwrap_err().to_string();
    has(
        &text,
        &[
            "ManagedIdentityCredential authentication failed.",
            "the requested identity isn't assigned to this resource",
        ],
    );
}

/// A self-signed certificate with an RSA key, as one PEM text; and the certificate alone.
fn rsa_certificate() -> (String, String) {
    let pem = include_str!("../standins/keys/one-test-only.pem");
    let key = rcgen::KeyPair::from_pem_and_sign_algo(pem, &rcgen::PKCS_RSA_SHA256).unwrap();
    let certificate = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap().pem();
    (format!("{certificate}{}", key.serialize_pem()), certificate)
}

fn principal(key: &str, value: &str) -> Option<BTreeMap<String, SecretText>> {
    let pairs = [("ClientID", CLIENT), (key, value)];
    Some(pairs.map(|(k, v)| (k.to_owned(), SecretText::new(v.to_owned()))).into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_16_29_a_certificate_proves_a_service_principal() {
    let store = shop().await;
    let (both, certificate) = rsa_certificate();
    store.identity(Identity::new(CLIENT).certificate(&certificate));
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let secrets = principal("ClientCertificate", &both);
    mount(&backend, Ask { secrets, ..Ask::default() }).await.unwrap();
    // Entra does not know it any more; sessions that were proven stay until they end, so another backend.
    store.identity(Identity::new(CLIENT));
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let ask = Ask { secrets: principal("clientcertificate", &both), ..Ask::default() };
    let problems = mount(&backend, ask).await.unwrap_err();
    assert_eq!(problems.kind(), Kind::Unauthenticated);
    let text = problems.to_string();
    has(&text, &["AADSTS700027", "add the certificate", CLIENT]);
    let key = both.lines().nth(both.lines().count() - 3).unwrap();
    assert!(!text.contains(key), "{text}");
}

#[tokio::test]
async fn azure_16_29_a_certificate_that_cannot_sign_is_refused_before_any_request() {
    let store = shop().await;
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let ec = rcgen::generate_simple_self_signed(vec!["x".into()]).unwrap();
    let ec = format!("{}{}", ec.cert.pem(), ec.signing_key.serialize_pem());
    for (pem, what) in [
        ("canary", "holds no certificate as PEM"),
        (rsa_certificate().1.as_str(), "holds no private key as PEM"),
        (ec.as_str(), "no RSA key"),
    ] {
        let ask = Ask { secrets: principal("clientcertificate", pem), ..Ask::default() };
        let text = mount(&backend, ask).await.unwrap_err().to_string();
        has(&text, &["failed to build auth config for mode None: ", what]);
        assert!(!text.contains("canary"), "{text}");
    }
    assert_eq!(store.log().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_16_29_a_managed_hsm_is_named_by_its_address() {
    let store = shop().await;
    let jwk = serde_json::json!({
        "kty": "EC-HSM", "crv": "P-256", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"
    });
    store.vault("shophsm.managedhsm.azure.net").set_key("signer", "k1", jwk, ObjectVersion::default());
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let key = "- objectName: signer\n  objectType: key\n";
    let vm = ("useVMManagedIdentity", "true");
    let at = [vm, ("vaultURI", "https://shophsm.managedhsm.azure.net/")];
    let got = mount(&backend, Ask { parameters: &at, objects: key, ..Ask::default() }).await.unwrap();
    assert!(got.files[0].contents.expose().starts_with(b"-----BEGIN PUBLIC KEY-----\n"));
    let text = mount(&backend, Ask { parameters: &at, ..Ask::default() }).await.unwrap_err().to_string();
    has(&text, &["a Managed HSM holds keys alone", "objects[0].objectType"]);
    store.vault("shophsm.managedhsm.azure.net").deny(Some(CLIENT), Some(Object::Keys), None, Denial::Rbac);
    backend.forget();
    let ask = Ask { parameters: &at, objects: key, ..Ask::default() };
    has(&mount(&backend, ask).await.unwrap_err().to_string(), &["Managed HSM Crypto User"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_16_29_an_address_must_be_of_the_cloud_that_gives_the_token() {
    let store = shop().await;
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let vm = ("useVMManagedIdentity", "true");
    for good in ["https://shopkv.vault.azure.net", "https://SHOPKV.vault.azure.net/"] {
        mount(&backend, Ask { parameters: &[vm, ("vaultURI", good)], ..Ask::default() }).await.unwrap();
    }
    store.clear_log();
    for (bad, what) in [
        ("https://shopkv.vault.azure.cn", "not in this cloud"),
        ("https://evil.example", "not in this cloud"),
        ("https://shopkv.vault.azure.net.evil.example", "not in this cloud"),
        ("https://shopkv.vault.azure.net@evil.example", "must be https"),
        ("https://shopkv.vault.azure.net:8443", "must be https"),
        ("https://shopkv.vault.azure.net/secrets", "must be https"),
        ("http://shopkv.vault.azure.net", "must be https"),
        ("shopkv", "must be https"),
        ("https://kv.vault.azure.net", "must match"),
    ] {
        let ask = Ask { parameters: &[vm, ("vaultURI", bad)], ..Ask::default() };
        let text = mount(&backend, ask).await.unwrap_err().to_string();
        has(&text, &["failed to get vault: vaultURI", what]);
    }
    let both = [vm, ("vaultURI", "https://shopkv.vault.azure.net"), ("keyvaultName", "shopkv")];
    let text = mount(&backend, Ask { parameters: &both, ..Ask::default() }).await.unwrap_err().to_string();
    has(&text, &["keyvaultName and vaultURI exclude each other"]);
    assert_eq!(store.log().len(), 0, "no token leaves for a host that is not the cloud's");
}

/// Settings with the annotations of service accounts switched on.
fn annotated(store: &AzureStandIn, dir: &Path) -> azure::Settings {
    std::fs::write(dir.join("ca.crt"), store.ca_pem()).unwrap();
    std::fs::write(dir.join("token"), format!("{API_TOKEN}\n")).unwrap();
    let api = kube::Settings { authority: HOST.into(), credentials: dir.to_owned() };
    azure::Settings { service_accounts: Some(api), ..azure::Settings::default() }
}

const CLIENT_KEY: &str = "azure.workload.identity/client-id";
const TENANT_KEY: &str = "azure.workload.identity/tenant-id";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_client_and_tenant_come_from_the_service_account() {
    let store = shop().await;
    store.service_account("shop", "web", &[(CLIENT_KEY, CLIENT), (TENANT_KEY, TENANT)]);
    let dir = tempfile::tempdir().unwrap();
    let backend = open(&client(&store, |_| true), annotated(&store, dir.path()));
    let mounts: Vec<_> = (0..20)
        .map(|_| {
            let tokens = [(AUDIENCE, store.issuer().mint("shop", "web", AUDIENCE))].into();
            let ask = Ask { parameters: &[("tenantID", "")], tokens, ..Ask::default() };
            let (backend, call) = (backend.clone(), ask.call());
            tokio::spawn(async move { backend.gather(&call, &Tally::default()).await })
        })
        .collect();
    for mount in futures_util::future::join_all(mounts).await {
        assert_eq!(mount.unwrap().unwrap().files[0].contents.expose(), b"canary-value");
    }
    let log = store.log();
    assert_eq!(log.iter().filter(|l| l.service == "cluster").count(), 1, "one read of the API for all");
    assert!(log.iter().any(|l| l.path == format!("/{TENANT}/oauth2/v2.0/token")));
    assert_eq!(log.iter().filter(|l| l.service == "vault").count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_the_class_wins_and_then_the_api_is_not_asked() {
    let store = shop().await;
    store.service_account("shop", "web", &[(CLIENT_KEY, "wrong"), (TENANT_KEY, "wrong")]);
    let dir = tempfile::tempdir().unwrap();
    let backend = open(&client(&store, |_| true), annotated(&store, dir.path()));
    let tokens = || [(AUDIENCE, store.issuer().mint("shop", "web", AUDIENCE))].into();
    for parameters in [&[("clientID", CLIENT)][..], &[("useVMManagedIdentity", "true")]] {
        mount(&backend, Ask { parameters, tokens: tokens(), ..Ask::default() }).await.unwrap();
    }
    let secrets = principal("clientsecret", "right");
    mount(&backend, Ask { secrets, tokens: tokens(), ..Ask::default() }).await.unwrap();
    assert!(store.log().iter().all(|l| l.service != "cluster"));
    // The tenant of the class, the client of the account.
    store.service_account("shop", "web", &[(CLIENT_KEY, CLIENT), (TENANT_KEY, "wrong")]);
    mount(&backend, Ask { tokens: tokens(), ..Ask::default() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_what_is_missing_is_named() {
    let store = shop().await;
    let dir = tempfile::tempdir().unwrap();
    let ask = || {
        let tokens = [(AUDIENCE, store.issuer().mint("shop", "web", AUDIENCE))].into();
        Ask { tokens, ..Ask::default() }
    };
    let fails = async |fragments: &[&str]| {
        let backend = open(&client(&store, |_| true), annotated(&store, dir.path()));
        has(&mount(&backend, ask()).await.unwrap_err().to_string(), fragments);
    };
    fails(&["serviceaccounts/web in namespace shop", "RESPONSE 404"]).await;
    store.service_account("shop", "web", &[("azure.workload.identity/client_id", CLIENT)]);
    fails(&["azure.workload.identity/client_id, which is no such key", CLIENT_KEY, "shop/web", "clientID"])
        .await;
    store.fault(Fault::status(403).path("/api/v1/"));
    fails(&["RESPONSE 403", "get serviceaccounts", "ClusterRole"]).await;
    std::fs::write(dir.path().join("token"), "wrong-canary").unwrap();
    let backend = open(&client(&store, |_| true), {
        let settings = annotated(&store, dir.path());
        std::fs::write(dir.path().join("token"), "wrong-canary").unwrap();
        settings
    });
    let text = mount(&backend, ask()).await.unwrap_err().to_string();
    has(&text, &["RESPONSE 401"]);
    assert!(!text.contains("canary"), "{text}");
    // Off: the error of a class without an identity.
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let text = mount(&backend, ask()).await.unwrap_err().to_string();
    has(
        &text,
        &[
            "nodePublishSecretRef secret is not set",
            "clientID",
            "useVMManagedIdentity",
            "useAzureTokenProxy",
            "nodePublishSecretRef",
        ],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t04_a_missing_federated_credential_is_explained_and_not_remembered() {
    let store = shop().await;
    let token = store.issuer().mint("shop", "web", AUDIENCE);
    let ask = || Ask {
        parameters: &[("clientID", CLIENT)],
        tokens: [(AUDIENCE, token.clone())].into(),
        ..Ask::default()
    };
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    for code in ["70021", "700211", "700212", "700213"] {
        store.fault(Fault::status(400).path(&format!("/{TENANT}/oauth2")).code(code));
        let text = mount(&backend, ask()).await.unwrap_err().to_string();
        has(
            &text,
            &[
                "ClientAssertionCredential authentication failed",
                &format!("AADSTS{code}:"),
                "RESPONSE 400",
                "subject system:serviceaccount:shop:web",
                "issuer https://issuer.lab.example",
                "api://AzureADTokenExchange",
                "create a federated credential",
                CLIENT,
                TENANT,
            ],
        );
        assert!(!text.contains(&token), "{text}");
    }
    mount(&backend, ask()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_11_7_the_tenant_of_a_challenge_is_not_believed_and_a_foreign_resource_neither() {
    let store = shop().await;
    let challenge = |resource: &str| {
        format!("Bearer authorization=\"https://login.microsoftonline.com/other\", resource=\"{resource}\"")
    };
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let vm = [("useVMManagedIdentity", "true")];
    for resource in ["https://evil.example", "https://net", "https://azure.net.evil.example"] {
        let fault = Fault::status(401).path("/secrets/").header("www-authenticate", &challenge(resource));
        store.fault(fault.times(2));
        let text = mount(&backend, Ask { parameters: &vm, ..Ask::default() }).await.unwrap_err().to_string();
        has(&text, &["RESPONSE 401", "ERROR CODE: Unauthorized"]);
        backend.forget();
    }
    let asked = store.log();
    let asked: Vec<_> = asked.iter().filter(|l| l.service == "imds").collect();
    assert!(asked.iter().all(|l| l.path.contains("vault.azure.net")), "only the cloud's own resource");
}

#[tokio::test]
async fn t06_a_class_without_an_identity_hears_the_ways_what_it_has_and_what_looks_like_one() {
    let store = shop().await;
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let ways = [
        "nodePublishSecretRef secret is not set",
        "clientID",
        "useVMManagedIdentity",
        "useAzureTokenProxy",
        "nodePublishSecretRef",
    ];
    let text = mount(&backend, Ask::default()).await.unwrap_err().to_string();
    has(&text, &ways);
    has(&text, &["the request has none of them"]);
    let parameters = [("clientid", "x"), ("useVmManagedIdentity", "true"), ("useAzureTokenProxy", "false")];
    let text =
        mount(&backend, Ask { parameters: &parameters, ..Ask::default() }).await.unwrap_err().to_string();
    has(&text, &ways);
    has(
        &text,
        &[
            "the request has useAzureTokenProxy: \"false\"",
            "\"clientid\" is unknown, did you mean \"clientID\"?",
            "\"useVmManagedIdentity\" is unknown, did you mean \"useVMManagedIdentity\"?",
        ],
    );
    assert_eq!(store.log().len(), 0);
    // The other spelling is taken.
    let tokens = [(AUDIENCE, store.issuer().mint("shop", "web", AUDIENCE))].into();
    mount(&backend, Ask { parameters: &[("clientId", CLIENT)], tokens, ..Ask::default() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t07_three_refusals_are_three_texts_and_name_the_role_of_the_kind() {
    let store = shop().await;
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let vm = [("useVMManagedIdentity", "true"), ("userAssignedIdentityID", CLIENT)];
    let mut all = std::collections::BTreeSet::new();
    for (kind, role) in [
        ("secret", "Key Vault Secrets User"),
        ("key", "Key Vault Crypto User"),
        ("cert", "Key Vault Certificate User"),
    ] {
        for (denial, inner) in [
            (Denial::Rbac, "ForbiddenByRbac"),
            (Denial::Policy, "ForbiddenByPolicy"),
            (Denial::Firewall, "ForbiddenByFirewall"),
        ] {
            store.vault("shopkv").allow_all();
            store.vault("shopkv").deny(Some(CLIENT), None, None, denial);
            let objects = format!("- objectName: db\n  objectType: {kind}\n");
            let ask = Ask { parameters: &vm, objects: &objects, ..Ask::default() };
            let problems = mount(&backend, ask).await.unwrap_err();
            assert_eq!(problems.kind(), Kind::Denied);
            let text = problems.to_string();
            has(&text, &["RESPONSE 403", inner, &format!("objectType:{kind}")]);
            match denial {
                Denial::Rbac => has(&text, &[role, &format!("appid={CLIENT}"), "Microsoft.KeyVault/vaults/"]),
                Denial::Policy => has(&text, &["access policy", &format!("appid={CLIENT}")]),
                Denial::Firewall => has(&text, &["the network was refused, not the identity"]),
            }
            all.insert(text);
        }
    }
    assert_eq!(all.len(), 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t01_a_second_account_is_asked_for_itself_although_the_first_ones_value_is_there() {
    let store = shop().await;
    let second = "33333333-3333-4333-8333-333333333333";
    store.identity(Identity::new(second).federated("shop", "other"));
    store.vault("shopkv").deny(Some(second), None, None, Denial::Rbac);
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let ask = |client: &'static str, account: &str| {
        let tokens = [(AUDIENCE, store.issuer().mint("shop", account, AUDIENCE))].into();
        Ask { parameters: if client == CLIENT { WORKLOAD } else { SECOND }, tokens, ..Ask::default() }
    };
    mount(&backend, ask(CLIENT, "web")).await.unwrap();
    let problems = mount(&backend, ask(second, "other")).await.unwrap_err();
    assert_eq!(problems.kind(), Kind::Denied);
    assert!(!problems.to_string().contains("canary"), "{problems}");
    mount(&backend, ask(CLIENT, "web")).await.unwrap();
}

const WORKLOAD: &[(&str, &str)] = &[("clientID", CLIENT)];
const SECOND: &[(&str, &str)] = &[("clientID", "33333333-3333-4333-8333-333333333333")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t13_every_form_of_an_entry_list_gives_the_same_files() {
    let store = shop().await;
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let vm = [("useVMManagedIdentity", "true")];
    for objects in [
        "array:\n  - |\n    objectName: db\n    objectType: secret\n",
        "array:\n  - objectName: db\n    objectType: secret\n",
        "- objectName: db\n  objectType: secret\n",
        "- |\n  objectName: db\n  objectType: secret\n",
        "[{objectName: db, objectType: secret}]",
        r#"{"array": ["{\"objectName\": \"db\", \"objectType\": \"secret\"}"]}"#,
    ] {
        let got = mount(&backend, Ask { parameters: &vm, objects, ..Ask::default() }).await.unwrap();
        assert_eq!(got.files[0].contents.expose(), b"canary-value", "{objects}");
        assert_eq!(got.versions, [("secret/db".to_owned(), "v1".to_owned())]);
    }
    for (objects, fragments) in [
        (
            "array:\n  - objectName: db\narray:\n  - objectName: db\n",
            &["line 3", "already defined at line 1"][..],
        ),
        ("array:\n\t- objectName: db\n", &["line 2", "tab"]),
        ("array: |\n  - objectName: db\n", &["cannot unmarshal !!str", "array:\n  - |"]),
    ] {
        let text = mount(&backend, Ask { parameters: &vm, objects, ..Ask::default() }).await.unwrap_err();
        has(&text.to_string(), fragments);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t11_split_files_of_a_pfx_match_and_a_key_can_come_alone() {
    let store = shop().await;
    let pfx = include_str!("../shape/pfx/rsa-openssl.b64").replace('\n', "");
    let rest = ObjectVersion {
        content_type: Some("application/x-pkcs12".into()),
        kid: Some("https://shopkv.vault.azure.net/keys/tls/v1".into()),
        ..ObjectVersion::default()
    };
    store.vault("shopkv").set_secret("tls", "v1", &pfx, rest);
    let settings = azure::Settings { split: true, ..azure::Settings::default() };
    let backend = open(&client(&store, |_| true), settings);
    let vm = [("useVMManagedIdentity", "true")];
    let objects = "- {objectName: tls, objectType: secret, objectFormat: pfx}\n- {objectName: tls, objectType: secret, \
                   objectAlias: alone, objectPart: key}\n";
    let got = mount(&backend, Ask { parameters: &vm, objects, ..Ask::default() }).await.unwrap();
    let file = |path: &str| got.files.iter().find(|f| f.path.as_str() == path).unwrap().contents.expose();
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain: Vec<_> = CertificateDer::pem_slice_iter(file("tls.crt")).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(file("tls.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let loaded = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    loaded.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
    assert_eq!(file("tls"), pfx.as_bytes());
    assert_eq!(file("alone"), file("tls.key"));
    assert_eq!(String::from_utf8_lossy(file("alone")).matches("-----BEGIN PRIVATE KEY-----").count(), 1);
    assert!(!String::from_utf8_lossy(file("alone")).contains("CERTIFICATE"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_endless_throttling_costs_the_documented_tries_however_many_wait() {
    let store = shop().await;
    store.fault(Fault { times: None, ..Fault::status(429).path("/secrets/").header("retry-after-ms", "50") });
    let engine = fetch::Settings { tries: 3, ..fetch::Settings::default() };
    let backend = backends::open(&Settings::default(), &client(&store, |_| true), &engine).remove(0);
    let vm = [("useVMManagedIdentity", "true")];
    let mounts: Vec<_> =
        (0..20).map(|_| mount(&backend, Ask { parameters: &vm, ..Ask::default() })).collect();
    for problems in futures_util::future::join_all(mounts).await {
        let problems = problems.unwrap_err();
        assert_eq!(problems.kind(), Kind::Throttled);
        let text = problems.to_string();
        has(
            &text,
            &[
                "shopkv.vault.azure.net",
                "objectName:db",
                "RESPONSE 429",
                "Throttled",
                "tries: 3",
                "asked to wait",
            ],
        );
    }
    let asked = store.log().iter().filter(|l| l.service == "vault").count();
    assert_eq!(asked, 3, "twenty waited for one flight");
}

#[tokio::test]
async fn azure_16_21_equal_paths_are_told_along_with_the_other_mistakes() {
    let store = shop().await;
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let objects = "- {objectName: a, objectType: secret}\n- {objectName: a, objectType: key}\n- {objectName: b, objectType: x}\n";
    let ask = Ask { parameters: &[("useVMManagedIdentity", "true")], objects, ..Ask::default() };
    let text = mount(&backend, ask).await.unwrap_err().to_string();
    has(
        &text,
        &["2 problems", "Invalid vaultObjectTypes", "objects[0] and objects[1] both write the file \"a\""],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t03_a_port_that_stays_silent_is_told_from_one_that_refuses_and_from_a_wrong_name() {
    let store = shop().await;
    // A queue of one place, which is taken: the system answers no further attempt.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let silent = socket.listen(0).unwrap();
    let address = silent.local_addr().unwrap();
    let _taken = tokio::net::TcpStream::connect(address).await.unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (vault, own, other) in [
        (address, ["no answer to the connection attempt", "nothing answers at this address"], "refuses"),
        (closed, ["Connection refused", "the host refuses the connection"], "no answer"),
    ] {
        let mut connect_to = store.connect_to();
        connect_to.retain(|(host, _)| !host.starts_with("shopkv"));
        connect_to.push(("shopkv.vault.azure.net".into(), vault));
        let http = Http::new(http::Settings {
            connect_to,
            connect_timeout: Duration::from_millis(300),
            roots: http::Roots::Pem(store.ca_pem().as_bytes().to_vec()),
            ..http::Settings::default()
        });
        let backend = open(&http, azure::Settings::default());
        let ask = Ask { parameters: &[("useVMManagedIdentity", "true")], ..Ask::default() };
        let problems = mount(&backend, ask).await.unwrap_err();
        assert_eq!(problems.kind(), Kind::Unavailable);
        let text = problems.to_string();
        has(&text, &own);
        has(
            &text,
            &["shopkv.vault.azure.net", &vault.to_string(), "check network, firewall and private endpoint"],
        );
        assert!(!text.contains(other) && !text.contains("DNS"), "{text}");
    }
}

#[test]
fn azure_10_and_11_6_settings_that_cannot_be_are_refused_at_the_start() {
    for (flags, fragment) in [
        (&["--azure-cloud-name", "Mars"][..], "--azure-cloud-name \"Mars\" is not valid"),
        (&["--azure-cloud-name", "AzureStackCloud"], "needs --azure-environment-file"),
        (&["--azure-token-proxy-url", "http://proxy"], "must be https://HOST"),
        (&["--azure-token-proxy-url", "https://u@proxy"], "must be https://HOST"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keyferry"));
        command.args(["serve", "--admin-addr", "127.0.0.1:0", "--socket-dir"]).arg(dir.path()).args(flags);
        let output = command.env_remove("AZURE_ENVIRONMENT_FILEPATH").output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        has(&String::from_utf8_lossy(&output.stderr), &[fragment]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t08_an_optional_object_that_appears_is_there_at_the_next_fetch() {
    let store = shop().await;
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let objects =
        "- {objectName: db, objectType: secret}\n- {objectName: late, objectType: secret, optional: true}\n";
    let parameters = &[("useVMManagedIdentity", "true"), ("maxAge", "0")];
    let ask = || Ask { parameters, objects, ..Ask::default() };
    let got = mount(&backend, ask()).await.unwrap();
    assert_eq!((got.files.len(), got.versions[1].1.as_str()), (1, "absent"));
    secret(&store, "late", "v1", "here");
    let repeat = Call { occasion: keyferry::call::Occasion::Repeat, ..ask().call() };
    let got = backend.gather(&repeat, &Tally::default()).await.unwrap();
    assert_eq!((got.files[1].contents.expose(), got.versions[1].1.as_str()), (&b"here"[..], "v1"));
    store.vault("shopkv").delete(Object::Secrets, "late");
    store.vault("shopkv").deny(Some(CLIENT), None, None, Denial::Policy);
    backend.forget();
    assert_eq!(mount(&backend, ask()).await.unwrap_err().kind(), Kind::Denied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t08_a_404_that_key_vault_has_not_written_is_not_missing() {
    let store = shop().await;
    let backend = open(&client(&store, |_| true), azure::Settings::default());
    let objects = "- {objectName: late, objectType: secret, optional: true}\n";
    let ask = || Ask { parameters: &[("useVMManagedIdentity", "true")], objects, ..Ask::default() };
    store.fault(Fault::status(404).host("shopkv.vault.azure.net").body("<html>no such page</html>").times(9));
    let problems = mount(&backend, ask()).await.unwrap_err();
    assert_eq!(problems.kind(), Kind::Unavailable);
    has(&problems.to_string(), &["RESPONSE 404", "this is no answer of Key Vault"]);
    store.clear_faults();
    assert_eq!(mount(&backend, ask()).await.unwrap().versions[0].1, "absent");
}
