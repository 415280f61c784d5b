//! Clouds: hosts and token resources (azure.md 10).

use std::path::Path;

use serde_json::{Map, Value};

/// One cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloud {
    /// Suffix of vault hosts.
    pub suffix: String,
    /// Authority host with scheme.
    pub authority: String,
    /// Token resource.
    pub resource: String,
    /// Suffix of Managed HSM hosts, where the cloud has them.
    pub hsm: Option<String>,
}

/// Names of the clouds with a fixed table, vault suffix, authority, suffix of Managed HSMs.
pub const CLOUDS: [(&[&str], &str, &str, Option<&str>); 4] = [
    (
        &["AzurePublicCloud", "AzureCloud"],
        "vault.azure.net",
        "https://login.microsoftonline.com/",
        Some("managedhsm.azure.net"),
    ),
    (
        &["AzureUSGovernmentCloud", "AzureUSGovernment"],
        "vault.usgovcloudapi.net",
        "https://login.microsoftonline.us/",
        Some("managedhsm.usgovcloudapi.net"),
    ),
    (&["AzureChinaCloud"], "vault.azure.cn", "https://login.chinacloudapi.cn/", Some("managedhsm.azure.cn")),
    (&["AzureGermanCloud"], "vault.microsoftazure.de", "https://login.microsoftonline.de/", None),
];

impl Cloud {
    /// The public cloud.
    pub fn public() -> Self {
        by_name("AzurePublicCloud").expect("it stands in the table")
    }
}

/// The clouds with a fixed table, by name in any case.
pub fn by_name(name: &str) -> Option<Cloud> {
    let known = |names: &[&str]| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    let (_, suffix, authority, hsm) = CLOUDS.into_iter().find(|(names, ..)| known(names))?;
    Some(Cloud {
        suffix: suffix.into(),
        authority: authority.into(),
        resource: format!("https://{suffix}"),
        hsm: hsm.map(Into::into),
    })
}

/// Name of the cloud that a file describes.
pub fn is_stack(name: &str) -> bool {
    name.eq_ignore_ascii_case("AzureStackCloud")
}

/// The cloud of a file that is not at hand, in words.
pub(super) fn assumed(path: &Path) -> Cloud {
    let of = |key: &str| format!("<{key} of {}>", path.display());
    Cloud {
        suffix: of("keyVaultDNSSuffix"),
        authority: of("activeDirectoryEndpoint"),
        resource: of("keyVaultEndpoint"),
        hsm: Some(of("managedHSMDNSSuffix")),
    }
}

/// Reads the file of an `AzureStackCloud`, anew for each request (azure.md 16 row 6).
pub fn from_file(path: &Path) -> Result<Cloud, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("open {}: {error}", path.display()))?;
    let map: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|error| format!("{}: not a JSON object (line {})", path.display(), error.line()))?;
    let get = |key: &str| {
        let found = map.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
        let text = found.and_then(|(_, value)| value.as_str()).filter(|text| !text.is_empty());
        text.map(ToOwned::to_owned).ok_or_else(|| format!("{}: {key} is missing", path.display()))
    };
    let (authority, suffix) = (get("activeDirectoryEndpoint")?, get("keyVaultDNSSuffix")?);
    let resource = get("keyVaultEndpoint").unwrap_or_else(|_| format!("https://{suffix}"));
    if !authority.starts_with("https://") {
        return Err(format!("{}: activeDirectoryEndpoint must be https", path.display()));
    }
    let resource = resource.trim_end_matches('/').to_owned();
    let authority = format!("{}/", authority.trim_end_matches('/'));
    Ok(Cloud { suffix, authority, resource, hsm: get("managedHSMDNSSuffix").ok() })
}
