//! `keyferry check`: places in files, exit codes, forms. The broken classes are `tests/cases/check`, each
//! with the report that is wanted; `KEYFERRY_BLESS=1` writes the reports anew, to be read before they count.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/check")
}

fn check(directory: &Path, arguments: &[&str]) -> Output {
    let mut check = Command::new(env!("CARGO_BIN_EXE_keyferry"));
    check.arg("check").args(arguments).current_dir(directory).output().unwrap()
}

/// Checks one text as a file of a folder of its own.
fn text(text: &str, flags: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("class.yaml"), text).unwrap();
    check(dir.path(), &[&["class.yaml"], flags].concat())
}

fn stdin(text: &str, flags: &[&str]) -> Output {
    let mut check = Command::new(env!("CARGO_BIN_EXE_keyferry"))
        .args(["check", "-"])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    check.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn broken() -> Vec<PathBuf> {
    let all = std::fs::read_dir(cases()).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = all.filter(|path| path.extension().is_some_and(|e| e != "txt")).collect();
    all.sort();
    all
}

#[test]
fn t44_forty_broken_classes_have_every_finding_at_its_place() {
    let bless = std::env::var_os("KEYFERRY_BLESS").is_some();
    let mut wrong = Vec::new();
    let files = broken();
    assert_eq!(files.len(), 40);
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let report = said(&check(&cases(), &[name]));
        let want = path.with_extension("txt");
        if bless {
            std::fs::write(&want, &report).unwrap();
        } else if std::fs::read_to_string(&want).unwrap_or_default() != report {
            wrong.push(format!("{name}:\n{report}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn t43_secret_objects_must_name_files_that_the_class_makes() {
    let class = std::fs::read_to_string(cases().join("21-t43-alias.yaml")).unwrap();
    let output = text(&class, &[]);
    assert_eq!(output.status.code(), Some(2));
    let heard = said(&output);
    let words = "class.yaml:22:23: error: shop/21-t43-alias: no file is named \"DOCKER-CONFIG\"; the class gives \"config.json\"";
    assert!(heard.starts_with(words) && heard.contains("use \"config.json\""), "{heard}");
    let right = text(&class.replace("- objectName: DOCKER-CONFIG\n", "- objectName: config.json\n"), &[]);
    assert_eq!((right.status.code(), said(&right).as_str()), (Some(0), "1 class, 0 errors, 0 warnings\n"));
}

#[test]
fn t35_modes_that_shut_out_containers_are_told() {
    let class = std::fs::read_to_string(cases().join("04-bad-modes.yaml")).unwrap();
    let document = json(&text(&class, &["--output", "json"]));
    let told = |index: usize, key: &str| document["findings"][index][key].clone();
    assert_eq!((told(0, "level"), told(0, "field")), ("error".into(), "objects[0].filePermission".into()));
    assert_eq!((told(1, "level"), told(1, "rule")), ("warning".into(), "class/unreadable-file".into()));
    assert!(told(1, "text").as_str().unwrap().contains("a container of another user needs 0444"));
}

#[test]
fn t06_a_class_without_an_identity_is_noted() {
    let class = "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\nmetadata: {name: c, namespace: n}\nspec:\n  provider: azure\n  parameters:\n    keyvaultName: shopkv\n    tenantId: t\n    objects: |\n      - {objectName: a, objectType: secret}\n";
    let output = text(class, &["--output", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let document = json(&output);
    let finding = &document["findings"][0];
    assert_eq!((&finding["level"], &finding["rule"]), (&"note".into(), &"class/identity".into()));
    for way in ["clientID", "useVMManagedIdentity", "useAzureTokenProxy", "nodePublishSecretRef"] {
        assert!(finding["text"].as_str().unwrap().contains(way), "{finding}");
    }
    let named = class.replace("    tenantId", "    clientID: x\n    tenantId");
    assert_eq!(json(&text(&named, &["--output", "json"]))["findings"].as_array().unwrap().len(), 0);
}

#[test]
fn every_mark_stands_below_something() {
    let document = json(&check(&cases(), &[".", "--output", "json"]));
    let findings = document["findings"].as_array().unwrap();
    assert!(findings.len() > 100);
    for finding in findings {
        let file = std::fs::read_to_string(cases().join(finding["file"].as_str().unwrap())).unwrap();
        let file = file.trim_start_matches('\u{feff}');
        let (line, column) = (finding["line"].as_u64().unwrap(), finding["column"].as_u64().unwrap());
        let line = file.split('\n').nth(usize::try_from(line).unwrap() - 1).unwrap();
        let found = line.chars().nth(usize::try_from(column).unwrap() - 1);
        assert!(found.is_some_and(|c| !c.is_whitespace()), "{finding}");
    }
}

#[test]
fn a_right_class_is_silent_but_for_the_summary() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let output = check(&examples, &["."]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(said(&output), "2 classes, 0 errors, 0 warnings; 1 file without a class\n");
}

#[test]
fn exit_codes_tell_errors_warnings_and_what_cannot_be_read_apart() {
    let warning = "apiVersion: secrets-store.csi.x-k8s.io/v1alpha1\nkind: SecretProviderClass\nmetadata: {name: a}\n\
                   spec: {provider: local, parameters: {objects: '- name: a'}}\n";
    assert_eq!(text(warning, &[]).status.code(), Some(0));
    assert_eq!(text(warning, &["--deny-warnings"]).status.code(), Some(2));
    assert_eq!(text(&warning.replace("- name", "- nam"), &[]).status.code(), Some(2));
    let output = text(warning, &["missing.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("missing.yaml: error: No such file"), "{}", said(&output));
    for nothing in ["kind: Pod\n", "a: [\n", ""] {
        assert_eq!(text(nothing, &[]).status.code(), Some(2));
        assert_eq!(text(nothing, &["--allow-empty"]).status.code(), Some(0));
    }
}

#[test]
fn the_same_words_come_at_a_mount() {
    for path in broken() {
        let document = json(&check(&cases(), &[path.to_str().unwrap(), "--output", "json"]));
        let findings = document["findings"].as_array().unwrap();
        let rule = |f: &&Value| f["rule"].as_str().unwrap().to_owned();
        let foreign =
            |f: &Value| matches!(&rule(&f)[..5], "class" | "secre" | "file/") && f["level"] == "error";
        if document["classes"] != 1 || findings.iter().any(foreign) {
            continue;
        }
        let mut mount = Command::new(env!("CARGO_BIN_EXE_keyferry"));
        mount.args(["mount", "--local-root", "/nowhere", "-f"]).arg(&path);
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "x").unwrap();
        mount.arg("--token").arg(format!("api://AzureADTokenExchange={}", token.path().display()));
        let heard = String::from_utf8(mount.output().unwrap().stderr).unwrap();
        for finding in findings.iter().filter(|finding| finding["level"] == "error") {
            let words = finding["text"].as_str().unwrap();
            if words.ends_with("; the later one is kept") {
                continue; // A mount forgives it.
            }
            assert!(heard.contains(words), "{}: {words:?} is not in: {heard}", path.display());
        }
    }
}

#[test]
fn the_json_form_is_one_document() {
    let output = check(&cases(), &["40-many-faults.yaml", "--output", "json"]);
    let document = json(&output);
    assert_eq!((&document["classes"], &document["errors"]), (&1.into(), &11.into()));
    let finding = &document["findings"][0];
    assert_eq!(finding["file"], "40-many-faults.yaml");
    assert_eq!(
        (&finding["document"], &finding["line"], &finding["column"]),
        (&1.into(), &17.into(), &25.into())
    );
    assert_eq!(
        (&finding["rule"], &finding["level"]),
        (&"azure/objects.objectFormat".into(), &"error".into())
    );
    assert_eq!(
        (&finding["class"], &finding["field"]),
        (&"shop/40-many-faults".into(), &"objects[0].objectFormat".into())
    );
}

#[test]
fn the_sarif_form_points_at_rules_and_places() {
    let document = json(&check(&cases(), &[".", "--output", "sarif"]));
    let run = &document["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    for result in run["results"].as_array().unwrap() {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert!(result["locations"][0]["physicalLocation"]["region"]["startColumn"].is_u64(), "{result}");
    }
}

#[test]
fn standard_input_is_read_and_named() {
    let output = stdin("kind: SecretProviderClass\n", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).starts_with("-:1:1: error: "), "{}", said(&output));
}

#[test]
fn explain_tells_requests_identity_rights_and_files() {
    let class = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/azure/class.yaml");
    let output = check(&cases(), &[class.to_str().unwrap(), "--explain", "--output", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let plan = &json(&output)["plans"][0];
    assert_eq!(
        plan["requests"][0],
        "GET https://shopkv.vault.azure.net/secrets/db-password/ (latest version)"
    );
    assert!(plan["identity"].as_str().unwrap().contains("11111111-1111-1111-1111-111111111111"));
    assert!(plan["permissions"][0].as_str().unwrap().contains("Key Vault Secrets User"));
    assert_eq!(plan["files"][1]["path"], "api-key");
    assert_eq!(
        (&plan["files"][1]["mode"], &plan["files"][1]["object"]),
        (&"0644".into(), &"secret/api-key".into())
    );
    let text = said(&check(&cases(), &[class.to_str().unwrap(), "--explain"]));
    assert!(text.contains("  needs on shopkv.vault.azure.net: role Key Vault Secrets User"), "{text}");
}

#[test]
fn azure_11_explain_tells_every_identity_and_right() {
    let entries = "array:\n      - 'objectName: s\n\n          objectType: secret'\n      - '{objectName: k, objectType: key}'\n      \
                   - '{objectName: c, objectType: cert, objectVersion: abc}'\n";
    let explained = |identity: &str| {
        let class = format!(
            "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\nmetadata: {{name: a}}\nspec:\n  \
             provider: azure\n  parameters:\n    keyvaultName: shopkv\n    tenantID: t\n{identity}    objects: |\n      {entries}"
        );
        let output = text(&class, &["--explain", "--output", "json"]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        json(&output)["plans"][0].clone()
    };
    let plan = explained("    clientID: app\n");
    assert!(
        plan["identity"].as_str().unwrap().starts_with("application or managed identity app of tenant t")
    );
    assert_eq!(
        plan["logins"][0],
        "POST https://login.microsoftonline.com/t/oauth2/v2.0/token for https://vault.azure.net/.default"
    );
    assert_eq!(plan["requests"][1], "GET https://shopkv.vault.azure.net/keys/k/ (latest version)");
    assert_eq!(plan["requests"][2], "GET https://shopkv.vault.azure.net/certificates/c/abc");
    let rights = plan["permissions"].to_string();
    for role in ["Key Vault Secrets User", "Key Vault Crypto User", "Key Vault Certificate User"] {
        assert!(rights.contains(role), "{rights}");
    }
    let identity = |text: &str| explained(text)["identity"].as_str().unwrap().to_owned();
    assert!(identity("").starts_with("the service principal in the Secret that"));
    assert_eq!(identity("    useVMManagedIdentity: 'true'\n"), "the node's system-assigned managed identity");
}

#[test]
fn azure_8_numbered_files_of_a_history_can_be_named() {
    let class = |file: &str| {
        format!(
            "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\nmetadata: {{name: a}}\nspec:\n  \
             provider: azure\n  parameters:\n    keyvaultName: shopkv\n    tenantID: t\n    clientID: c\n    objects: |\n      \
             - {{objectName: s, objectType: secret, objectAlias: rot, objectVersionHistory: 2}}\n  secretObjects:\n  \
             - {{secretName: a, type: Opaque, data: [{{objectName: {file}, key: k}}]}}\n"
        )
    };
    for there in ["rot/0", "rot/2"] {
        assert_eq!(text(&class(there), &[]).status.code(), Some(0), "{there}");
    }
    for missing in ["rot", "rot/3", "rot/x", "rot/01"] {
        assert_eq!(text(&class(missing), &[]).status.code(), Some(2), "{missing}");
    }
    let plan = json(&text(&class("rot/0"), &["--explain", "--output", "json"]))["plans"][0].clone();
    assert_eq!(plan["files"][0]["path"], "rot/0 to rot/2");
    assert_eq!(
        plan["requests"][0],
        "GET https://shopkv.vault.azure.net/secrets/s/versions, and each version"
    );
    assert!(
        plan["permissions"][0].as_str().unwrap().contains("access policy get and list on secrets"),
        "{plan}"
    );
}

#[test]
fn what_a_terminal_takes_for_a_command_is_not_printed() {
    let class = "kind: SecretProviderClass\nmetadata: {name: \"a\\e[31m\\nb\"}\nspec: {provider: \"x\\e\"}\n";
    let heard = said(&text(class, &[]));
    assert!(heard.contains("metadata.name") && !heard.contains('\u{1b}'), "{heard:?}");
}

#[test]
fn a_cloud_that_a_file_of_the_node_describes_is_taken_for_granted() {
    let class =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/azure/class.yaml"))
            .unwrap();
    let file =
        "cloudName: AzureStackCloud\n    cloudEnvFileName: /etc/kubernetes/cloud.json\n    keyvaultName:";
    let output = text(&class.replace("keyvaultName:", file), &["--explain"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        said(&output).contains("shopkv.<keyVaultDNSSuffix of /etc/kubernetes/cloud.json>"),
        "{}",
        said(&output)
    );
}

#[test]
fn every_rule_is_in_the_reference() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let reference = std::fs::read_to_string(root.join("docs/reference/errors.md")).unwrap();
    let document = json(&check(&cases(), &[".", "--output", "sarif"]));
    let rules = document["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap();
    let own = |id: &&str| ["file/", "class/", "secret/"].iter().any(|group| id.starts_with(group));
    for id in rules.iter().map(|rule| rule["id"].as_str().unwrap()).filter(own) {
        assert!(reference.contains(&format!("| `{id}` |")), "{id} is not in docs/reference/errors.md");
    }
}

#[test]
fn the_pre_commit_hook_is_a_command_that_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join(".pre-commit-hooks.yaml")).unwrap();
    let entry = text.lines().find_map(|line| line.trim().strip_prefix("entry: keyferry ")).unwrap();
    let run = |file: &str| {
        let mut keyferry = Command::new(env!("CARGO_BIN_EXE_keyferry"));
        keyferry.args(entry.split(' ')).arg(file).current_dir(root).output().unwrap().status.code()
    };
    assert_eq!(run("examples/azure/class.yaml"), Some(0));
    assert_eq!(run("deny.toml"), Some(0));
    assert_eq!(run("tests/cases/check/01-type-in-capitals.yaml"), Some(2));
}

/// Runs the plugin by its name, with a kubectl that takes exactly `wanted` and prints `answer`.
fn plugin(arguments: &[&str], wanted: &str, answer: &str, code: u8) -> Output {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = tempfile::tempdir().unwrap();
    let tool = dir.path().join("kubectl");
    std::fs::write(dir.path().join("answer"), format!("{answer}\n")).unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$*\" = \"{wanted}\" ] || {{ echo \"unexpected: $*\" >&2; exit 64; }}\n\
         while IFS= read -r line; do printf '%s\\n' \"$line\"; done < '{}'\nexit {code}\n",
        dir.path().join("answer").display()
    );
    std::fs::write(&tool, script).unwrap();
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    let link = dir.path().join("kubectl-keyferry");
    symlink(env!("CARGO_BIN_EXE_keyferry"), &link).unwrap();
    Command::new(link).args(arguments).env("PATH", dir.path()).output().unwrap()
}

const GET: &str = "get secretproviderclasses.secrets-store.csi.x-k8s.io";

fn item(name: &str, mode: &str) -> Value {
    serde_json::json!({
        "apiVersion": "secrets-store.csi.x-k8s.io/v1",
        "kind": "SecretProviderClass",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"provider": "local", "parameters": {"objects": format!("- name: a\n  mode: '{mode}'\n")}},
    })
}

#[test]
fn the_plugin_checks_what_kubectl_gives() {
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [item("good", "0444"), item("bad", "9")]});
    let output = plugin(
        &["check", "-n", "shop"],
        &format!("{GET} --output json --namespace=shop"),
        &list.to_string(),
        0,
    );
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let want = "shop/bad:2:9: error: mode \"9\" is not an octal mode above 0 [objects[0].mode] (local/objects.mode)\n  \
                2 |   mode: '9'\n    |         ^\n  help: write four octal digits in quotes, such as \"0444\"\n\
                2 classes, 1 error, 0 warnings\n";
    assert_eq!(said(&output), want);
}

#[test]
fn the_plugin_passes_on_where_to_look() {
    let one = item("good", "0444").to_string();
    let explained = plugin(
        &["explain", "good", "--context", "prod", "--kubeconfig", "/k"],
        &format!("{GET} good --output json --context=prod --kubeconfig=/k"),
        &one,
        0,
    );
    assert_eq!(explained.status.code(), Some(0), "{explained:?}");
    assert!(
        said(&explained).starts_with("class shop/good (local)\n  as    the node"),
        "{}",
        said(&explained)
    );
    let all =
        plugin(&["check", "-A", "-o", "json"], &format!("{GET} --output json --all-namespaces"), &one, 0);
    assert_eq!((all.status.code(), &json(&all)["classes"]), (Some(0), &1.into()));
}

#[test]
fn the_plugin_tells_when_kubectl_fails() {
    let failed = plugin(&["check"], &format!("{GET} --output json"), "", 1);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let none = plugin(&["check"], &format!("{GET} --output json"), r#"{"kind": "List", "items": []}"#, 0);
    assert_eq!(none.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&none.stderr).contains("there is no SecretProviderClass"), "{none:?}");
    let unknown = plugin(&["check", "-n", "other"], "nothing of this kind", "", 0);
    assert_eq!(unknown.status.code(), Some(1));
}
