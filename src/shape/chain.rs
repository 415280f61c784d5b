//! Order of a certificate chain by key identifiers alone (azure.md 9.2).

use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Error, error};

/// An order, and what a reader of the log should know about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// Indices of the certificates.
    pub(super) order: Vec<usize>,
    /// Why the original order was kept, if it was.
    pub(super) note: Option<String>,
}

#[derive(Default)]
struct Ids {
    subject: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    issuer: String,
}

/// Leaf, intermediates, root; the original order where the walk from the leaf does not cover all.
pub(super) fn order(certificates: &[&[u8]]) -> Result<Order, Error> {
    let ids = certificates.iter().map(|der| ids(der)).collect::<Result<Vec<_>, _>>()?;
    let parents: Vec<_> = (0..ids.len()).map(|at| parent(&ids, at)).collect();
    let leaf = nobodys_parent(&ids, &parents)?;
    let mut order = vec![leaf];
    let mut at = leaf;
    while let Some(next) = parents[at] {
        if order.contains(&next) {
            return Err(error("constructing chain resulted in cycle"));
        }
        order.push(next);
        at = next;
    }
    if order.len() == ids.len() {
        return Ok(Order { order, note: None });
    }
    let orphans = (0..ids.len()).filter(|at| parents[*at].is_none() && !ids[*at].is_root());
    let missing: Vec<_> = orphans.map(|at| format!("{:?}", ids[at].issuer)).collect();
    let reason = if missing.is_empty() {
        "the certificates are not one chain".to_owned()
    } else {
        format!("no certificate of issuer {}", missing.join(", "))
    };
    let note = format!("certificate chain is incomplete, order kept: {reason}");
    Ok(Order { order: (0..ids.len()).collect(), note: Some(note) })
}

impl Ids {
    /// Whether it names itself as its authority, or none.
    fn is_root(&self) -> bool {
        self.authority.is_none() || self.authority == self.subject
    }
}

/// Index of the leaf: the first certificate that is nobody's parent, rather not a root.
pub(super) fn leaf(certificates: &[&[u8]]) -> Result<usize, Error> {
    let ids = certificates.iter().map(|der| ids(der)).collect::<Result<Vec<_>, _>>()?;
    let parents: Vec<_> = (0..ids.len()).map(|at| parent(&ids, at)).collect();
    nobodys_parent(&ids, &parents)
}

fn nobodys_parent(ids: &[Ids], parents: &[Option<usize>]) -> Result<usize, Error> {
    let free = || (0..ids.len()).filter(|at| !parents.contains(&Some(*at)));
    free().find(|at| !ids[*at].is_root()).or_else(|| free().next()).ok_or_else(|| error("no leaf found"))
}

/// The first other certificate whose subject id is this one's authority id.
fn parent(ids: &[Ids], at: usize) -> Option<usize> {
    let wanted = ids[at].authority.as_ref()?;
    (0..ids.len()).find(|other| *other != at && ids[*other].subject.as_ref() == Some(wanted))
}

fn ids(der: &[u8]) -> Result<Ids, Error> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| error("a certificate does not parse"))?;
    let mut ids = Ids { issuer: certificate.issuer().to_string(), ..Ids::default() };
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => ids.subject = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                ids.authority = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            _ => {}
        }
    }
    Ok(ids)
}
