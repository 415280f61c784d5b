//! Prints Mozilla's authorities for TLS servers as PEM: `ca-certificates.crt` of the image.
//!
//! The certificates are those of the crate `webpki-root-certs` in the version that Cargo.lock pins.

use std::io::{self, Write};

use base64::prelude::{BASE64_STANDARD, Engine};
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

fn main() -> io::Result<()> {
    let mut out = io::stdout().lock();
    for certificate in TLS_SERVER_ROOT_CERTS {
        writeln!(out, "-----BEGIN CERTIFICATE-----")?;
        for line in BASE64_STANDARD.encode(certificate).as_bytes().chunks(64) {
            out.write_all(line)?;
            writeln!(out)?;
        }
        writeln!(out, "-----END CERTIFICATE-----")?;
    }
    out.flush()
}
