//! What the stand-in holds: identities, vaults, objects and rights, built in code or read from a file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::issuer::uid;
use super::{CLOUDS, TENANT};

/// The audience that federated credentials ask for unless told otherwise.
pub const AUDIENCE: &str = "api://AzureADTokenExchange";

/// The content file: see README.md.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Store {
    /// The tenant's id.
    pub tenant: Option<String>,
    /// The issuer of service-account tokens, as in their `iss`.
    pub issuer: Option<String>,
    /// Who is known to Entra.
    pub identities: Vec<Identity>,
    /// The vaults.
    pub vaults: Vec<VaultContent>,
    /// Annotations of service accounts, by `NAMESPACE/NAME`.
    pub service_accounts: BTreeMap<String, BTreeMap<String, String>>,
    /// Client ids of pods for the pod identity service, by `NAMESPACE/NAME`.
    pub pods: BTreeMap<String, String>,
}

/// An identity that Entra knows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Identity {
    /// Its client (application) id.
    pub client_id: String,
    /// Its object id; one is derived from the client id if empty.
    pub object_id: String,
    /// The service accounts that may act as it.
    pub federated: Vec<Federated>,
    /// Its passwords.
    pub client_secrets: Vec<String>,
    /// Certificates it may sign assertions with, in PEM.
    pub certificates: Vec<String>,
    /// Subjects of service accounts that the cluster's token proxy lets use it.
    pub bound: Vec<String>,
    /// Whether the machine has it.
    pub managed: Option<Managed>,
    /// The resource id of a user-assigned identity.
    pub resource_id: Option<String>,
}

/// A federated credential.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Federated {
    /// The issuer; without it the stand-in's own.
    pub issuer: Option<String>,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub subject: String,
    /// The audience; without it `api://AzureADTokenExchange`.
    pub audience: Option<String>,
}

/// How a machine has an identity.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Managed {
    /// As its own.
    System,
    /// Assigned to it.
    User,
}

impl Identity {
    /// Makes an identity that nobody can act as yet.
    pub fn new(client_id: &str) -> Self {
        Self { client_id: client_id.to_owned(), object_id: uid(client_id), ..Self::default() }
    }

    /// Lets a service account act as it.
    pub fn federated(mut self, namespace: &str, account: &str) -> Self {
        let subject = format!("system:serviceaccount:{namespace}:{account}");
        self.federated.push(Federated { issuer: None, subject, audience: None });
        self
    }

    /// Gives it a password.
    pub fn client_secret(mut self, secret: &str) -> Self {
        self.client_secrets.push(secret.to_owned());
        self
    }

    /// Lets it sign with the key of a certificate.
    pub fn certificate(mut self, pem: &str) -> Self {
        self.certificates.push(pem.to_owned());
        self
    }

    /// Lets a service account use it through the token proxy.
    pub fn bound(mut self, namespace: &str, account: &str) -> Self {
        self.bound.push(format!("system:serviceaccount:{namespace}:{account}"));
        self
    }

    /// Gives it to the machine.
    pub fn managed(self, managed: Managed) -> Self {
        Self { managed: Some(managed), ..self }
    }
}

/// A vault in the content file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VaultContent {
    /// A name in the public cloud, or a whole host name.
    pub name: String,
    /// Whether its firewall keeps everybody out.
    pub firewall: bool,
    /// Client id to rights such as `secrets/get`; without it every known client has all rights.
    pub rights: Option<BTreeMap<String, Vec<String>>>,
    /// How it refuses: by role assignments unless set.
    pub denial: Option<Denial>,
    /// Secrets by name, versions in the order of their creation.
    pub secrets: BTreeMap<String, Vec<ObjectVersion>>,
    /// Keys by name.
    pub keys: BTreeMap<String, Vec<ObjectVersion>>,
    /// Certificates by name.
    pub certificates: BTreeMap<String, Vec<ObjectVersion>>,
}

/// A version of an object in the content file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ObjectVersion {
    /// Its id.
    pub version: String,
    /// A secret's value.
    pub value: Option<String>,
    /// A file with the secret's value, beside the content file.
    pub value_file: Option<String>,
    /// A key's public JWK: `kty` and `n`, `e` or `crv`, `x`, `y`; `key_ops` if wanted.
    pub jwk: Option<Map<String, Value>>,
    /// A certificate's DER in base64.
    pub cer: Option<String>,
    /// A PEM file whose first certificate it is, beside the content file.
    pub cer_file: Option<String>,
    /// The secret's content type.
    pub content_type: Option<String>,
    /// The key of the certificate that a secret stands behind.
    pub kid: Option<String>,
    /// False if it is disabled.
    pub enabled: Option<bool>,
    /// When it was made.
    pub created: Option<Time>,
    /// When it begins to be good.
    pub not_before: Option<Time>,
    /// When it ends.
    pub expires: Option<Time>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// Seconds since 1970; in files also as RFC 3339 text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Time;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("seconds since 1970 or a time such as 2026-01-02T03:04:05Z")
            }

            fn visit_u64<E>(self, seconds: u64) -> Result<Time, E> {
                Ok(Time(seconds))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Time, E> {
                let time = humantime::parse_rfc3339(text).map_err(E::custom)?;
                Ok(Time(time.duration_since(std::time::UNIX_EPOCH).map_err(E::custom)?.as_secs()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Store {
    /// Reads a file of YAML or JSON, and the files that it names.
    pub fn read(path: &Path) -> Result<Self, String> {
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| at(&error))?;
        let mut store: Self = serde_saphyr::from_str(&text).map_err(|error| at(&error))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for vault in &mut store.vaults {
            let all = [&mut vault.secrets, &mut vault.keys, &mut vault.certificates];
            for version in all.into_iter().flat_map(BTreeMap::values_mut).flatten() {
                if let Some(file) = &version.value_file {
                    let value = std::fs::read_to_string(folder.join(file));
                    version.value = Some(value.map_err(|error| format!("{file}: {error}"))?);
                }
                if let Some(file) = &version.cer_file {
                    let pem =
                        std::fs::read_to_string(folder.join(file)).map_err(|e| format!("{file}: {e}"))?;
                    let lines = pem.lines().skip_while(|line| !line.starts_with("-----BEGIN CERT")).skip(1);
                    version.cer = Some(lines.take_while(|line| !line.starts_with("-----")).collect());
                }
            }
        }
        Ok(store)
    }
}

/// The kinds of objects, as in paths.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// `secrets`
    Secrets,
    /// `keys`
    Keys,
    /// `certificates`
    Certificates,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Secrets, Self::Keys, Self::Certificates];

    /// Gives the word in paths.
    pub fn word(self) -> &'static str {
        match self {
            Self::Secrets => "secrets",
            Self::Keys => "keys",
            Self::Certificates => "certificates",
        }
    }

    /// Gives the word in error codes.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Secrets => "Secret",
            Self::Keys => "Key",
            Self::Certificates => "Certificate",
        }
    }

    /// Finds the kind by its word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// What a client wants of an object.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub enum Right {
    /// Its content.
    Get,
    /// Its versions.
    List,
}

/// By what a client is refused.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Denial {
    /// Role assignments.
    #[default]
    Rbac,
    /// Access policies.
    Policy,
    /// The vault's firewall.
    Firewall,
}

/// A rule about rights; the last that fits decides, and without one known clients may do all.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rule {
    /// For this client only.
    pub client: Option<String>,
    /// For this kind only.
    pub kind: Option<Kind>,
    /// For this right only.
    pub right: Option<Right>,
    /// How it refuses; a rule without allows.
    pub denial: Option<Denial>,
}

impl Rule {
    fn fits(&self, client: &str, kind: Kind, right: Right) -> bool {
        self.client.as_deref().is_none_or(|own| own == client)
            && self.kind.is_none_or(|own| own == kind)
            && self.right.is_none_or(|own| own == right)
    }
}

/// A vault.
#[derive(Default)]
pub(super) struct Vault {
    /// The first label of its host.
    pub(super) name: String,
    pub(super) rules: Vec<Rule>,
    objects: HashMap<(Kind, String), Vec<Version>>,
}

/// A version of an object with its answers made up, all but the object's name as the client wrote it.
pub(super) struct Version {
    pub(super) id: String,
    pub(super) enabled: bool,
    created: u64,
    source: ObjectVersion,
    answer: Vec<String>,
    item: Vec<String>,
}

impl Version {
    /// Gives the body for an object asked for by this name.
    pub(super) fn answer(&self, name: &str) -> String {
        self.answer.join(name)
    }

    /// Gives the item in the list of versions.
    pub(super) fn item(&self, name: &str) -> String {
        self.item.join(name)
    }
}

impl Vault {
    pub(super) fn object(&self, kind: Kind, name: &str) -> Option<&[Version]> {
        self.objects.get(&(kind, name.to_ascii_lowercase())).map(Vec::as_slice)
    }

    pub(super) fn denial(&self, client: &str, kind: Kind, right: Right) -> Option<Denial> {
        self.rules.iter().rev().find(|rule| rule.fits(client, kind, right))?.denial
    }

    pub(super) fn set(&mut self, host: &str, kind: Kind, name: &str, source: ObjectVersion) {
        let versions = self.objects.entry((kind, name.to_ascii_lowercase())).or_default();
        let at = versions.iter().position(|version| version.id == source.version);
        // Fixed by the content, so that two runs give equal bytes.
        let created =
            source.created.map_or(1_700_000_000 + at.unwrap_or(versions.len()) as u64, |time| time.0);
        let version = render(host, kind, source, created);
        match at {
            Some(at) => versions[at] = version,
            None => versions.push(version),
        }
    }

    /// Makes the versions again, of one id or all, with another `enabled`.
    pub(super) fn enable(&mut self, host: &str, kind: Kind, name: &str, id: Option<&str>, enabled: bool) {
        let versions = self.objects.get_mut(&(kind, name.to_ascii_lowercase())).expect("a known object");
        for version in versions.iter_mut().filter(|version| id.is_none_or(|id| id == version.id)) {
            let source = ObjectVersion { enabled: Some(enabled), ..version.source.clone() };
            *version = render(host, kind, source, version.created);
        }
    }

    pub(super) fn delete(&mut self, kind: Kind, name: &str) {
        self.objects.remove(&(kind, name.to_ascii_lowercase()));
    }
}

/// Finds the latest version: the last that was created, also when it is disabled.
pub(super) fn latest(versions: &[Version]) -> Option<&Version> {
    versions.iter().max_by_key(|version| version.created)
}

fn render(host: &str, kind: Kind, source: ObjectVersion, created: u64) -> Version {
    let id = source.version.clone();
    let enabled = source.enabled.unwrap_or(true);
    let mut attributes = json!({
        "enabled": enabled, "created": created, "updated": created,
        "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90,
    });
    if let Some(Time(time)) = source.not_before {
        attributes["nbf"] = time.into();
    }
    if let Some(Time(time)) = source.expires {
        attributes["exp"] = time.into();
    }
    let mut rest = json!({ "attributes": attributes });
    if !source.tags.is_empty() {
        rest["tags"] = json!(source.tags);
    }
    let url = |word: &str| format!("https://{host}/{word}/");
    let (item, answer) = match kind {
        Kind::Secrets => {
            if let Some(text) = &source.content_type {
                rest["contentType"] = text.as_str().into();
            }
            if let Some(kid) = &source.kid {
                (rest["kid"], rest["managed"]) = (kid.as_str().into(), true.into());
            }
            let value = Value::from(source.value.as_deref().unwrap_or_default());
            let id = [format!("\"id\":\"{}", url("secrets")), format!("/{id}\",{}", inner(&rest))];
            let mut item = rest.clone();
            item.as_object_mut().expect("an object").remove("kid");
            let listed = [format!("{{{}", id[0]), format!("/{}\",{}}}", source.version, inner(&item))];
            (listed.into(), vec![format!("{{\"value\":{value},{}", id[0]), format!("{}}}", id[1])])
        }
        Kind::Keys => {
            let mut jwk = source.jwk.clone().unwrap_or_default();
            jwk.remove("kid");
            jwk.entry("key_ops").or_insert_with(|| json!(["sign", "verify"]));
            let kid = format!("\"kid\":\"{}", url("keys"));
            let listed = vec![format!("{{{kid}"), format!("/{id}\",{}}}", inner(&rest))];
            let key = format!("/{id}\",{}}},{}}}", inner(&Value::Object(jwk)), inner(&rest));
            (listed, vec![format!("{{\"key\":{{{kid}"), key])
        }
        Kind::Certificates => {
            let cer = source.cer.clone().unwrap_or_default();
            let der = STANDARD.decode(&cer).expect("base64 of a certificate");
            let hash = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &der);
            rest["x5t"] = URL_SAFE_NO_PAD.encode(hash).into();
            let start = format!("{{\"id\":\"{}", url("certificates"));
            let listed = vec![start.clone(), format!("/{id}\",{}}}", inner(&rest))];
            rest["cer"] = cer.into();
            let kid = format!("/{id}\",\"kid\":\"{}", url("keys"));
            let sid = format!("/{id}\",\"sid\":\"{}", url("secrets"));
            (listed, vec![start, kid, sid, format!("/{id}\",{}}}", inner(&rest))])
        }
    };
    Version { id, enabled, created, source, answer, item }
}

/// Gives an object's text without its braces.
fn inner(object: &Value) -> String {
    let text = object.to_string();
    text[1..text.len() - 1].to_owned()
}

/// All that the stand-in holds.
pub(super) struct Content {
    pub(super) tenant: String,
    pub(super) identities: Vec<Identity>,
    /// By host.
    pub(super) vaults: HashMap<String, Vault>,
    pub(super) service_accounts: BTreeMap<String, BTreeMap<String, String>>,
    pub(super) pods: BTreeMap<String, String>,
}

impl Default for Content {
    fn default() -> Self {
        Self {
            tenant: TENANT.to_owned(),
            identities: Vec::new(),
            vaults: HashMap::new(),
            service_accounts: BTreeMap::new(),
            pods: BTreeMap::new(),
        }
    }
}

/// Makes a host of a vault's name; a name with a dot is one.
pub(super) fn host_of(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    if name.contains('.') { name } else { format!("{name}.{}", CLOUDS[0].0) }
}

impl Content {
    pub(super) fn vault(&mut self, host: &str) -> &mut Vault {
        self.vaults.entry(host.to_owned()).or_insert_with(|| Vault {
            name: host.split('.').next().unwrap_or_default().to_owned(),
            ..Vault::default()
        })
    }

    pub(super) fn identity(&mut self, mut identity: Identity) {
        if identity.object_id.is_empty() {
            identity.object_id = uid(&identity.client_id);
        }
        self.identities.retain(|known| known.client_id != identity.client_id);
        self.identities.push(identity);
    }

    /// Adds a file's content to what there is; equal names replace.
    pub(super) fn add(&mut self, store: Store) -> Result<(), String> {
        if let Some(tenant) = store.tenant {
            self.tenant = tenant;
        }
        store.identities.into_iter().for_each(|identity| self.identity(identity));
        self.service_accounts.extend(store.service_accounts);
        self.pods.extend(store.pods);
        for content in store.vaults {
            let host = host_of(&content.name);
            let vault = self.vault(&host);
            if content.firewall {
                vault.rules.push(Rule { denial: Some(Denial::Firewall), ..Rule::default() });
            } else if let Some(rights) = content.rights {
                vault.rules = rules(&rights, content.denial.unwrap_or_default())?;
            }
            let kinds = [content.secrets, content.keys, content.certificates];
            for (kind, objects) in Kind::ALL.into_iter().zip(kinds) {
                for (name, versions) in objects {
                    versions.into_iter().for_each(|version| vault.set(&host, kind, &name, version));
                }
            }
        }
        Ok(())
    }
}

fn rules(rights: &BTreeMap<String, Vec<String>>, denial: Denial) -> Result<Vec<Rule>, String> {
    let mut rules = vec![Rule { denial: Some(denial), ..Rule::default() }];
    for (client, list) in rights {
        for right in list {
            let bad = || format!("rights of {client}: {right} is not KIND/get or KIND/list");
            let (kind, word) = right.split_once('/').ok_or_else(bad)?;
            let right = match word {
                "get" => Right::Get,
                "list" => Right::List,
                _ => return Err(bad()),
            };
            let kind = Some(Kind::parse(kind).ok_or_else(bad)?);
            rules.push(Rule { client: Some(client.clone()), kind, right: Some(right), denial: None });
        }
    }
    Ok(rules)
}
