//! `keyferry check`: places in files, exit codes, forms.

use std::process::{Command, Output};

const BAD: &str = "kind: SecretProviderClass
metadata: {name: bad, namespace: shop}
spec:
  provider: azure
  parameters:
    usePodIdentity: \"yes\"
    keyvaultName: kv
    clientId: x
    objects: |
      array:
        - |
          objectName: a
          objectType: Secret
        - |
          objectName: b
          objectType: key
          objectEncoding: hex
          filePermission: \"0900\"
        - |
          objectname: c
          objectType: secret
";

fn check(text: &str, flags: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("class.yaml"), text).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_keyferry"));
    check.arg("check").arg("class.yaml").args(flags).current_dir(dir.path()).output().unwrap()
}

#[test]
fn t44_all_mistakes_come_at_once_with_file_and_line() {
    let output = check(BAD, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2));
    let lines: Vec<_> =
        text.lines().filter_map(|line| line.split_once(": error: ")?.0.split_once(':')).collect();
    let want = ["6", "7", "1", "13", "17", "18", "20"].map(|line| ("class.yaml", line));
    assert_eq!(lines, want, "{text}");
    assert!(text.contains("did you mean \"objectName\"?"), "{text}");
    assert!(text.ends_with("1 classes, 7 errors, 0 warnings\n"), "{text}");
}

#[test]
fn a_right_class_is_silent_but_for_the_summary() {
    let good = include_str!("../../examples/azure/class.yaml");
    let output = check(good, &[]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "1 classes, 0 errors, 0 warnings\n");
}

#[test]
fn the_json_form_is_one_document() {
    let document: serde_json::Value =
        serde_json::from_slice(&check(BAD, &["--output", "json"]).stdout).unwrap();
    assert_eq!((&document["errors"], &document["findings"][0]["line"]), (&7.into(), &6.into()));
}

#[test]
fn what_is_no_class_is_said() {
    for text in
        ["kind: Pod\n", "a: [\n", "kind: SecretProviderClass\nspec: {provider: azure, parameters: {a: 1}}\n"]
    {
        let output = check(text, &[]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(!output.stderr.is_empty());
    }
}
