//! The tables of the reference are those of the code; `KEYFERRY_BLESS=1` writes them anew.

use std::path::Path;

use keyferry::backends::azure::{cloud, fields};
use keyferry::entry::Field;

fn table(fields: &[Field]) -> String {
    let row = |field: &Field| {
        let Field { name, accepts, default, says, own } = field;
        let own = if *own { " *ours*" } else { "" };
        format!("| `{name}`{own} | {accepts} | {default} | {says} |\n")
    };
    let head = "| name | accepts | default | what |\n|---|---|---|---|\n";
    head.chars().chain(fields.iter().map(row).collect::<String>().chars()).collect()
}

fn clouds() -> String {
    let mut text = "| `cloudName` | vaults | login | Managed HSMs |\n|---|---|---|---|\n".to_owned();
    for (names, suffix, authority, hsm) in cloud::CLOUDS {
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        let hsm = hsm.map_or("-".to_owned(), |hsm| format!("`{hsm}`"));
        text.push_str(&format!("| {} | `{suffix}` | `{authority}` | {hsm} |\n", names.join(", ")));
    }
    text.push_str("| `AzureStackCloud` | from the file | from the file | from the file |\n");
    text
}

#[test]
fn the_azure_reference_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/azure.md");
    let found = std::fs::read_to_string(&path).unwrap();
    let mut wanted = found.clone();
    for (name, table) in
        [("parameters", table(&fields::PARAMETERS)), ("entries", table(&fields::ENTRY)), ("clouds", clouds())]
    {
        let begin = format!("<!-- generated: {name} -->\n");
        let (before, rest) = wanted.split_once(&begin).unwrap_or_else(|| panic!("no place for {name}"));
        let (_, after) = rest.split_once("<!-- end -->").expect("an end");
        wanted = format!("{before}{begin}{table}<!-- end -->{after}");
    }
    if std::env::var_os("KEYFERRY_BLESS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(
        found == wanted,
        "docs/reference/azure.md is old: KEYFERRY_BLESS=1 cargo test --test it azure_reference"
    );
}
