//! What a class asks for, as data: requests to make and files to write from their answers.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use tokio::time::Instant;

use crate::backends::Backend;
use crate::error::{Problem, Spot, Warning};
use crate::path::{Mode, RelPath};
use crate::secret::{SecretBytes, SecretText};
use crate::series::Series;

/// Requests and files of one class. Reads are upstream requests, outputs are files: two files from
/// one object share one read, so user and password are always from one answer.
pub struct Plan<B: Backend> {
    /// Where, and as whom.
    pub target: B::Target,
    /// What the caller presents to prove the identity.
    pub credential: Credential,
    /// Name of the service that is asked for a session, for limits and errors.
    pub login_at: String,
    /// Name of the store that is read, for limits and errors.
    pub read_at: String,
    /// Upstream requests, each once.
    pub reads: Vec<B::Read>,
    /// Files in the user's order.
    pub outputs: Vec<Output>,
    /// Files whose number the store decides.
    pub series: Vec<Series<B>>,
    /// What is odd but allowed.
    pub warnings: Vec<Warning>,
    /// Mistakes that a mount forgives with a warning and `check` refuses.
    pub slips: Vec<Problem>,
}

/// What a plan would do, in words for people (`check --explain`).
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Whom the store will see, and what proves it.
    pub identity: String,
    /// What is asked to prove the identity, if anything.
    pub logins: Vec<String>,
    /// One line for each read.
    pub requests: Vec<String>,
    /// What the identity must be allowed, each right once.
    pub permissions: Vec<String>,
}

impl<B: Backend> Plan<B> {
    /// A plan without requests and files.
    pub fn new(target: B::Target, credential: Credential, login_at: String, read_at: String) -> Self {
        Self {
            target,
            credential,
            login_at,
            read_at,
            reads: Vec::new(),
            outputs: Vec::new(),
            series: Vec::new(),
            warnings: Vec::new(),
            slips: Vec::new(),
        }
    }

    /// Index of `read` in the plan, added if it is new.
    pub fn read(&mut self, read: B::Read) -> usize {
        match self.reads.iter().position(|known| *known == read) {
            Some(index) => index,
            None => {
                self.reads.push(read);
                self.reads.len() - 1
            }
        }
    }
}

/// What a caller presents to a store.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Nothing of its own: the node's identity counts, for every pod of the node alike.
    Node,
    /// Token of the pod's service account.
    Token(SecretText),
    /// Secret of a service principal.
    Password(SecretText),
    /// Certificate and private key of a service principal, as PEM.
    Certificate(SecretText),
}

/// One file to make.
#[derive(Debug, Clone)]
pub struct Output {
    /// Index of the read that gives the value.
    pub read: usize,
    /// Which answers make this file at all.
    pub only: Only,
    /// Changes of the bytes, in order.
    pub steps: Vec<Step>,
    /// Path in the volume.
    pub path: RelPath,
    /// Mode, else the request's.
    pub mode: Option<Mode>,
    /// Id of the object version that is reported.
    pub id: String,
    /// What happens when the store has no such object.
    pub missing: Missing,
    /// Words before an error of this object.
    pub label: String,
    /// Place of the entry.
    pub spot: Spot,
}

impl Output {
    /// This file for version number `index` of its series.
    pub(crate) fn numbered(&self, read: usize, index: u32) -> Self {
        Self { read, path: self.path.numbered(index), id: format!("{}/{index}", self.id), ..self.clone() }
    }
}

/// Which answers make a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only {
    /// All.
    Always,
    /// Those that hold a certificate with its key.
    Certificates,
}

/// What happens when an object does not exist. Only *not found* counts, never a refusal.
#[derive(Debug, Clone)]
pub enum Missing {
    /// The mount fails.
    Fails,
    /// The file is left out.
    Skips,
    /// The file holds this instead.
    Gives(SecretBytes),
}

/// One change of the bytes (azure.md 9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// PKCS#12 becomes PEM; other forms stay.
    Pem {
        /// Leaf first, root last.
        order_chain: bool,
        /// The same for a certificate that is PEM in the store.
        order_pem: bool,
    },
    /// One part of a certificate with its key; an empty one is an error.
    Part(Part),
    /// The certificate blocks of a PEM text.
    Certificates,
    /// All other blocks of a PEM text.
    Keys,
    /// A JSON Web Key becomes a public key in PEM.
    PublicKey,
    /// A certificate in DER becomes one PEM block.
    Certificate,
    /// Standard base64 is decoded.
    Base64,
    /// URL-safe base64 is decoded.
    Base64Url,
    /// Hex digits are decoded.
    Hex,
    /// A member of a JSON or YAML value.
    Field(String),
}

/// A part of a certificate with its key (azure.md 16 row 33).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The private key.
    Key,
    /// The certificate that signs no other.
    Leaf,
    /// All certificates.
    Chain,
    /// All but the leaf.
    Authorities,
    /// The PFX, as a binary file.
    Pfx,
}

/// One answer of a store.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The value.
    pub value: SecretBytes,
    /// Version that was read, resolved.
    pub version: String,
    /// What the bytes are.
    pub form: Form,
    /// Whether the value can never change.
    pub pinned: bool,
}

/// A reading as one mount gets it.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The reading.
    pub reading: Arc<Reading>,
    /// When it was read, if it is served only because the store is down.
    pub last_good: Option<Instant>,
}

impl Deref for Answer {
    type Target = Reading;

    fn deref(&self) -> &Reading {
        &self.reading
    }
}

/// The answer to each read of a plan, in its order.
pub type Answers = [Result<Answer, Problem>];

/// What the bytes of an answer are, as far as the store says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// Bytes without a meaning to us.
    Plain,
    /// A certificate with its key as PEM.
    CertificatePem,
    /// A certificate with its key as base64 of PKCS#12.
    CertificatePkcs12,
    /// A certificate with its key in a form nobody knows; holds the content type.
    CertificateUnknown(String),
    /// Versions of an object, one id a line, newest first.
    Versions,
}

/// Finds equal paths and paths that lie inside another file. Equal ones are refused, or only noted in
/// `slips` where the peer lets them pass (azure.md 16 row 21).
pub fn check_paths<'a>(
    outputs: impl Iterator<Item = &'a Output>,
    mut slips: Option<&mut Vec<Problem>>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut seen: BTreeMap<&RelPath, &Output> = BTreeMap::new();
    for output in outputs {
        let path = output.path.as_str();
        if let Some(first) = seen.get(&output.path) {
            let kept = if slips.is_some() { "; the later one is kept" } else { "" };
            let text =
                format!("{} and {} both write the file {path:?}{kept}", first.spot.field, output.spot.field);
            let slip = Problem::config(text).at(output.spot.clone()).hint("give one of the two another path");
            slips.as_deref_mut().unwrap_or(&mut problems).push(slip);
            continue;
        }
        let clash =
            seen.values().find(|o| o.path.is_parent_of(&output.path) || output.path.is_parent_of(&o.path));
        if let Some(other) = clash {
            problems.push(
                Problem::config(format!(
                    "{:?} of {} and {path:?} of {} cannot both exist: one is a folder of the other",
                    other.path.as_str(),
                    other.spot.field,
                    output.spot.field
                ))
                .at(output.spot.clone())
                .hint("give one of the two another path"),
            );
        }
        seen.insert(&output.path, output);
    }
    problems
}
