//! The committed Rust code is what the committed contract gives. `KEYFERRY_BLESS=1` rewrites it.

use std::path::Path;

#[test]
fn generated_code_is_unchanged() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let fds =
        protox::compile([root.join("proto/v1alpha1/service.proto")], [root.join("proto/v1alpha1")]).unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .build_transport(false)
        // Values go into an answer without a copy.
        .bytes(".v1alpha1.File")
        .skip_debug(["v1alpha1.MountRequest", "v1alpha1.MountResponse", "v1alpha1.File"])
        .compile_fds(fds)
        .unwrap();
    let made = std::fs::read_to_string(out.path().join("v1alpha1.rs")).unwrap();
    let committed = root.join("src/proto/v1alpha1.rs");
    if std::env::var_os("KEYFERRY_BLESS").is_some() {
        std::fs::write(&committed, &made).unwrap();
    }
    assert_eq!(made, std::fs::read_to_string(committed).unwrap_or_default(), "run with KEYFERRY_BLESS=1");
}
