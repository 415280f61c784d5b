//! From readings to files: applies the steps of each output, in the user's order.

use std::fmt::Write as _;

use ring::digest;

use crate::error::{Kind, Problem, Problems};
use crate::gather::{Absent, Gathered};
use crate::path::{Mode, RelPath};
use crate::plan::{Answer, Answers, Form, Missing, Only, Output, Part, Reading, Step};
use crate::secret::SecretBytes;
use crate::shape;

/// One file of the volume.
#[derive(Debug, Clone)]
pub struct File {
    /// Path in the volume.
    pub path: RelPath,
    /// Permission bits.
    pub mode: Mode,
    /// The bytes.
    pub contents: SecretBytes,
}

/// Version of an object that may be missing and is.
const ABSENT: &str = "absent";
/// Begin of the version where the entry's default stands in; the rest changes with the default.
const DEFAULT: &str = "default-";
/// End of the version of a value that is served because the store is down: others learn of it, and it
/// stays the same throughout, so that nobody writes anew what did not change.
const LAST_GOOD: &str = "+last-good";

/// Makes all files, or names every output that cannot be made.
pub fn make(outputs: &[Output], readings: &Answers, mode: Mode) -> Result<Gathered, Problems> {
    let mut gathered = Gathered::default();
    let mut problems = Vec::new();
    for output in outputs {
        if let Err(problem) = one(output, &readings[output.read], mode, &mut gathered) {
            problems.push(labelled(output, problem));
        }
    }
    match Problems::some(problems) {
        Some(problems) => Err(problems),
        None => Ok(gathered),
    }
}

fn one(
    output: &Output,
    answer: &Result<Answer, Problem>,
    mode: Mode,
    gathered: &mut Gathered,
) -> Result<(), Problem> {
    let (contents, version) = match answer {
        Err(problem) => {
            let Some((contents, version)) = absent(output, problem)? else { return Ok(()) };
            gathered.absent.push(Absent { object: output.id.clone(), given: contents.is_some() });
            (contents, version)
        }
        Ok(reading) if output.only == Only::Certificates && reading.form == Form::Plain => return Ok(()),
        Ok(reading) => {
            let end = if reading.last_good.is_some() { LAST_GOOD } else { "" };
            let value = apply(output, reading, &mut gathered.warnings)?;
            (Some(value), format!("{}{end}", reading.version))
        }
    };
    if let Some(contents) = contents {
        let mode = output.mode.unwrap_or(mode);
        gathered.files.push(File { path: output.path.clone(), mode, contents });
    }
    gathered.versions.push((output.id.clone(), version));
    Ok(())
}

/// What stands in for an object that the store does not have; nothing for the files beside its main one.
fn absent(output: &Output, problem: &Problem) -> Result<Option<(Option<SecretBytes>, String)>, Problem> {
    let made = match (&output.missing, problem.kind) {
        (Missing::Skips, Kind::NotFound) => (None, ABSENT.to_owned()),
        (Missing::Gives(value), Kind::NotFound) => (Some(value.clone()), default_version(value)),
        _ => return Err(problem.clone()),
    };
    Ok((output.only == Only::Always).then_some(made))
}

/// A default is text of the class and no value of a store, so a hash of it may be told.
fn default_version(value: &SecretBytes) -> String {
    let hash = digest::digest(&digest::SHA256, value.expose());
    let mut version = DEFAULT.to_owned();
    for byte in &hash.as_ref()[..4] {
        // Writing into a String cannot fail.
        let _ = write!(version, "{byte:02x}");
    }
    version
}

fn apply(output: &Output, reading: &Reading, warnings: &mut Vec<String>) -> Result<SecretBytes, Problem> {
    if let (Form::CertificateUnknown(kind), true) = (&reading.form, wants_certificate(output)) {
        return Err(Problem::new(
            Kind::Shape,
            format!("failed to get certificate. unknown content type '{kind}'"),
        )
        .hint("expected application/x-pem-file or application/x-pkcs12"));
    }
    let mut value = reading.value.clone();
    for step in &output.steps {
        value = change(step, &reading.form, &value, output, warnings)
            .map_err(|error| Problem::new(Kind::Shape, error.to_string()))?;
    }
    Ok(value)
}

fn wants_certificate(output: &Output) -> bool {
    output.only == Only::Certificates
        || output.steps.iter().any(|s| matches!(s, Step::Pem { .. } | Step::Part(_)))
}

fn change(
    step: &Step,
    form: &Form,
    value: &SecretBytes,
    output: &Output,
    warnings: &mut Vec<String>,
) -> Result<SecretBytes, shape::Error> {
    let noted = |pem: shape::Pem| {
        warnings.extend(pem.note.map(|note| format!("{}: {note}", output.spot.field)));
        pem.text
    };
    match step {
        Step::Pem { order_chain, .. } if *form == Form::CertificatePkcs12 => {
            let der = shape::decode::base64(value.expose())?;
            shape::pkcs12::to_pem(der.expose(), *order_chain).map(noted)
        }
        Step::Pem { order_pem: true, .. } if *form == Form::CertificatePem => {
            shape::parts::in_order(value.expose()).map(noted)
        }
        Step::Pem { .. } => Ok(value.clone()),
        Step::Part(part) => pick(*part, form, value.expose()),
        Step::Certificates => Ok(shape::pem::certificates(value.expose())),
        Step::Keys => Ok(shape::pem::keys(value.expose())),
        Step::PublicKey => shape::jwk::to_pem(value.expose()),
        Step::Certificate => Ok(shape::pem::certificate(value.expose())),
        Step::Base64 => shape::decode::base64(value.expose()),
        Step::Base64Url => shape::decode::base64url(value.expose()),
        Step::Hex => shape::decode::hex(value.expose()),
        Step::Field(path) => shape::extract::field(value.expose(), path),
    }
}

fn pick(part: Part, form: &Form, value: &[u8]) -> Result<SecretBytes, shape::Error> {
    match part {
        Part::Key => shape::parts::key(value),
        Part::Leaf => shape::parts::leaf(value),
        Part::Chain => shape::parts::chain(value),
        Part::Authorities => shape::parts::authorities(value),
        Part::Pfx if *form == Form::CertificatePkcs12 => shape::decode::base64(value),
        Part::Pfx => Err(shape::Error("the store does not hold this object as a PFX".to_owned())),
    }
}

fn labelled(output: &Output, mut problem: Problem) -> Problem {
    problem.what = format!("{}{}", output.label, problem.what);
    problem.spot.get_or_insert_with(|| output.spot.clone());
    problem
}
