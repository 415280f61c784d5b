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
}

impl Cloud {
    fn new(suffix: &str, authority: &str) -> Self {
        Self { suffix: suffix.into(), authority: authority.into(), resource: format!("https://{suffix}") }
    }

    /// The public cloud.
    pub fn public() -> Self {
        Self::new("vault.azure.net", "https://login.microsoftonline.com/")
    }
}

/// The clouds with a fixed table, by name in any case.
pub fn by_name(name: &str) -> Option<Cloud> {
    match name.to_ascii_uppercase().as_str() {
        "AZUREPUBLICCLOUD" | "AZURECLOUD" => Some(Cloud::public()),
        "AZUREUSGOVERNMENTCLOUD" | "AZUREUSGOVERNMENT" => {
            Some(Cloud::new("vault.usgovcloudapi.net", "https://login.microsoftonline.us/"))
        }
        "AZURECHINACLOUD" => Some(Cloud::new("vault.azure.cn", "https://login.chinacloudapi.cn/")),
        "AZUREGERMANCLOUD" => {
            Some(Cloud::new("vault.microsoftazure.de", "https://login.microsoftonline.de/"))
        }
        _ => None,
    }
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
    Ok(Cloud { suffix, authority, resource: resource.trim_end_matches('/').to_owned() })
}
