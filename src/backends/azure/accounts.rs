//! Client and tenant from the annotations of the pod's service account (tracker T05).

use crate::error::{Kind, Problem};
use crate::kube::{Annotations, Kube};

const CLIENT: &str = "azure.workload.identity/client-id";
const TENANT: &str = "azure.workload.identity/tenant-id";

/// What the annotations name.
pub(super) struct Named {
    pub(super) client_id: String,
    tenant: Option<String>,
    account: String,
    near: Vec<String>,
}

/// Reads the annotations; without a client id there is no identity.
pub(super) async fn read(kube: &Kube, namespace: &str, account: &str) -> Result<Named, Problem> {
    named(&*kube.annotations(namespace, account).await?, format!("{namespace}/{account}"))
}

fn named(annotations: &Annotations, account: String) -> Result<Named, Problem> {
    let text = |key: &str| match annotations.get(key).map_or("", |value| value.trim()) {
        "" => Ok(None),
        id if id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') => {
            Ok(Some(id.to_owned()))
        }
        id => Err(Problem::config(format!("annotation {key} of service account {account} is {id:?}, no id"))
            .hint("only letters, digits, '-' and '.' can stand in it")),
    };
    let near: Vec<_> = annotations.keys().filter(|key| misspelled(key)).cloned().collect();
    let (client_id, tenant) = (text(CLIENT)?, text(TENANT)?);
    match client_id {
        Some(client_id) => Ok(Named { client_id, tenant, account, near }),
        None => Err(missing(CLIENT, "clientID", &account, &near)),
    }
}

impl Named {
    /// The tenant: the class's if it names one.
    pub(super) fn tenant<'a>(&'a self, class: &'a str) -> Result<&'a str, Problem> {
        match &self.tenant {
            _ if !class.is_empty() => Ok(class),
            Some(tenant) => Ok(tenant),
            None => Err(missing(TENANT, "tenantID", &self.account, &self.near)),
        }
    }
}

/// Whether a key looks like one of ours and is none.
fn misspelled(key: &str) -> bool {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['_', '-', '.', '/'], "");
    let close = |known: &str| strsim::damerau_levenshtein(&plain(key), &plain(known)) <= 3;
    key != CLIENT && key != TENANT && (close(CLIENT) || close(TENANT))
}

fn missing(key: &str, parameter: &str, account: &str, near: &[String]) -> Problem {
    let found = match near {
        [] => String::new(),
        near => format!("; it has {}, which is no such key", near.join(", ")),
    };
    let what = format!(
        "the class names no {parameter}, and service account {account} has no annotation {key}{found}"
    );
    Problem::new(Kind::Config, what).hint(format!(
        "kubectl annotate serviceaccount with {key}=ID, or give {parameter} in the class; other ways are \
         useVMManagedIdentity, useAzureTokenProxy and nodePublishSecretRef"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn t05_the_class_wins_over_the_annotation() {
        let named = named(&map(&[(CLIENT, " c "), (TENANT, "t")]), "shop/web".into()).unwrap();
        assert_eq!(named.client_id, "c");
        assert_eq!((named.tenant("").unwrap(), named.tenant("class").unwrap()), ("t", "class"));
    }

    #[test]
    fn t05_an_annotation_that_is_no_id_is_refused() {
        for (client, tenant) in [("c", "../../other"), ("c d", "t"), ("c", "t/x?y")] {
            let text = named(&map(&[(CLIENT, client), (TENANT, tenant)]), "shop/web".into()).err().unwrap();
            assert!(text.to_string().contains("no id"), "{text}");
        }
    }

    #[test]
    fn t05_a_misspelled_annotation_is_named_with_the_right_key() {
        let wrong = map(&[("azure.workload.identity/client_id", "c")]);
        let text = named(&wrong, "shop/web".into()).err().unwrap().to_string();
        assert!(text.contains("azure.workload.identity/client_id, which"), "{text}");
        assert!(text.contains(CLIENT) && text.contains("shop/web"), "{text}");
        let half = map(&[(CLIENT, "c"), ("azure.workload.identity/tenant_id", "t")]);
        let named = named(&half, "shop/web".into()).unwrap();
        let text = named.tenant("").unwrap_err().to_string();
        assert!(text.contains("azure.workload.identity/tenant_id, which") && text.contains(TENANT), "{text}");
    }
}
