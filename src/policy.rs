//! The cluster's policy: which namespaces may use which stores, addresses and identities.
//!
//! Decided on the plan, before anything is sent or looked up. Every address and the identity of a plan
//! must be allowed by one and the same rule. A file that cannot be read leaves the rules as they were:
//! a policy is never loosened by a mistake. What the driver hands over does not tell whether a parameter
//! stood in the class or in the pod (driver.md 3.3), so both are judged alike.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::entry::{Entry, nearest};
use crate::error::{Kind, Problem};
use crate::yaml::{self, Content, Node, Within};

/// Greatest file that is read.
const MOST_BYTES: u64 = 1 << 20;
const FIELDS: &[&str] = &["name", "namespaces", "backends", "addresses", "identities"];
const SAMPLE: &str =
    "write\nrules:\n- name: shop\n  namespaces: [shop]\n  addresses: [shopkv.vault.azure.net]";

/// Where a plan goes, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Hosts of stores, or paths below the root of the local store.
    pub addresses: Vec<String>,
    /// Whom the store will see: a client id, `system-assigned`, `node`.
    pub identity: String,
    /// Whether these are names of hosts and ids, which know no case.
    pub caseless: bool,
}

/// One rule: who may use what.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    name: String,
    namespaces: Vec<String>,
    /// Empty for all.
    backends: Vec<String>,
    addresses: Vec<String>,
    identities: Vec<String>,
}

/// The rules of one file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Reads the text of a policy file; `backends` are the names that a rule may give.
    ///
    /// # Errors
    ///
    /// Every problem at once, with its line.
    pub fn parse(text: &str, backends: &[&str]) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut rules = Vec::new();
        for (index, node) in list(text, &mut problems).iter().enumerate() {
            rules.extend(rule(node, index, backends, &mut problems));
        }
        for (index, rule) in rules.iter().enumerate() {
            if !rule.name.is_empty() && rules[..index].iter().any(|earlier| earlier.name == rule.name) {
                problems.push(
                    Problem::config(format!("two rules are named {:?}", rule.name))
                        .hint("give each rule a name of its own"),
                );
            }
        }
        if problems.is_empty() { Ok(Self(rules)) } else { Err(problems) }
    }

    /// How many rules there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether a pod of `namespace` may reach what its plan wants from `backend`.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`], naming the rules that are for this namespace and backend and what did not fit.
    pub fn allow(&self, namespace: &str, backend: &str, reach: &Reach) -> Result<(), Problem> {
        let about: Vec<_> =
            self.0.iter().filter(|rule| !namespace.is_empty() && rule.is_for(namespace, backend)).collect();
        if about.iter().any(|rule| rule.misfits(reach).is_empty()) {
            return Ok(());
        }
        let mut what = "refused by the policy of this cluster: ".to_owned();
        if namespace.is_empty() {
            what.push_str("the call names no namespace");
        } else if about.is_empty() {
            // Writing into a String cannot fail.
            let _ = write!(what, "no rule is for namespace {namespace:?} and backend {backend}");
        }
        let misfits: Vec<_> = about
            .iter()
            .map(|rule| format!("rule {:?}: {}", rule.name, rule.misfits(reach).join(", ")))
            .collect();
        what.push_str(&misfits.join("; "));
        let hint = if namespace.is_empty() {
            "the CSIDriver object needs podInfoOnMount: true".to_owned()
        } else {
            format!(
                "add a rule to the file of --policy, or change the class: it wants {} as identity {:?}",
                quoted(&reach.addresses),
                reach.identity
            )
        };
        Err(Problem::new(Kind::Refused, what).hint(hint))
    }
}

impl Rule {
    fn is_for(&self, namespace: &str, backend: &str) -> bool {
        let backend = self.backends.is_empty() || self.backends.iter().any(|name| name == backend);
        backend && self.namespaces.iter().any(|pattern| fits(pattern, namespace))
    }

    /// What of `reach` the rule does not allow.
    fn misfits(&self, reach: &Reach) -> Vec<String> {
        let any = |patterns: &[String], text: &str| {
            let lower = |text: &str| text.to_ascii_lowercase();
            let fit = |pattern: &String| {
                fits(pattern, text) || (reach.caseless && fits(&lower(pattern), &lower(text)))
            };
            patterns.iter().any(fit)
        };
        let mut all = Vec::new();
        for address in reach.addresses.iter().filter(|address| !any(&self.addresses, address)) {
            all.push(format!("address {address:?} is none of {}", quoted(&self.addresses)));
        }
        if !any(&self.identities, &reach.identity) {
            all.push(format!("identity {:?} is none of {}", reach.identity, quoted(&self.identities)));
        }
        all
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for any run of characters, also an empty one.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    // Each part in between at its first place leaves the most for those that follow.
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn quoted(texts: &[String]) -> String {
    texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ")
}

/// The nodes of the rules.
fn list(text: &str, problems: &mut Vec<Problem>) -> Vec<Node> {
    let root = match yaml::parse(text) {
        Ok(Some(root)) => root,
        Ok(None) => {
            problems.push(Problem::config("the file is empty").hint(SAMPLE));
            return Vec::new();
        }
        Err(error) => {
            problems.push(Problem::config(format!("cannot be read: {error}")).hint(SAMPLE));
            return Vec::new();
        }
    };
    let file = Entry::new(&root, "policy".to_owned(), Within::whole(), &["rules"]);
    unknown(&file, &root, &["rules"], problems);
    match root.get("rules").map(|rules| &rules.content) {
        Some(Content::List(rules)) => rules.clone(),
        Some(_) => {
            problems.push(Problem::config("rules is not a list").at(file.spot_of("rules")).hint(SAMPLE));
            Vec::new()
        }
        None => {
            problems.push(Problem::config("rules is missing").at(file.spot()).hint(SAMPLE));
            Vec::new()
        }
    }
}

/// A field that nobody reads would be a restriction that nobody enforces, so it is an error here.
fn unknown(entry: &Entry, node: &Node, known: &[&str], problems: &mut Vec<Problem>) {
    let Content::Map(fields) = &node.content else { return };
    for (key, _) in fields.iter().filter(|(key, _)| !known.contains(&key.name.as_str())) {
        problems.push(
            Problem::config(format!("field {:?} is unknown{}", key.name, nearest(&key.name, known)))
                .at(entry.spot_of(&key.name))
                .hint(format!("allowed are {}", known.join(", "))),
        );
    }
}

fn rule(node: &Node, index: usize, known: &[&str], problems: &mut Vec<Problem>) -> Option<Rule> {
    let entry = Entry::new(node, format!("rules[{index}]"), Within::whole(), FIELDS);
    if !matches!(node.content, Content::Map(_)) {
        problems.push(
            Problem::config(format!("rule is a {}, not a mapping", node.kind()))
                .at(entry.spot())
                .hint(SAMPLE),
        );
        return None;
    }
    unknown(&entry, node, FIELDS, problems);
    let name = entry.text("name", problems);
    if name.is_empty() {
        problems.push(
            Problem::config("name is missing").at(entry.spot_of("name")).hint("refusals name the rule by it"),
        );
    }
    let backends = texts(&entry, node, "backends", problems);
    for backend in backends.iter().flatten().filter(|backend| !known.contains(&backend.as_str())) {
        problems.push(
            Problem::config(format!("backend {backend:?} is unknown{}", nearest(backend, known)))
                .at(entry.spot_of("backends"))
                .hint(format!("allowed are {}", known.join(", "))),
        );
    }
    let namespaces = texts(&entry, node, "namespaces", problems);
    if namespaces.is_none() {
        problems.push(
            Problem::config("namespaces is missing")
                .at(entry.spot_of("namespaces"))
                .hint("list the namespaces that the rule is for; \"*\" is every one"),
        );
    }
    let all = || vec!["*".to_owned()];
    Some(Rule {
        name,
        namespaces: namespaces.unwrap_or_default(),
        backends: backends.unwrap_or_default(),
        addresses: texts(&entry, node, "addresses", problems).unwrap_or_else(all),
        identities: texts(&entry, node, "identities", problems).unwrap_or_else(all),
    })
}

/// A field that lists texts, one at least; nothing where it is absent.
fn texts(entry: &Entry, node: &Node, field: &str, problems: &mut Vec<Problem>) -> Option<Vec<String>> {
    let value = node.get(field)?;
    let mut wrong = |what: String| {
        let hint = format!("give {field} as a list of texts, such as [\"a\", \"b-*\"], or leave it out");
        problems.push(Problem::config(what).at(entry.spot_of(field)).hint(hint));
    };
    let Content::List(items) = &value.content else {
        wrong(format!("{field} is a {}, not a list", value.kind()));
        return Some(Vec::new());
    };
    if items.is_empty() {
        wrong(format!("{field} lists nothing, so the rule would allow nothing"));
    }
    let mut texts = Vec::new();
    for item in items {
        match item.text().map(str::trim).filter(|text| !text.is_empty()) {
            Some(text) => texts.push(text.to_owned()),
            None => wrong(format!("{field} holds a {} where a text belongs", item.kind())),
        }
    }
    Some(texts)
}

/// A policy file and the rules that were last read from it.
#[derive(Debug)]
pub struct Policy {
    path: PathBuf,
    backends: &'static [&'static str],
    rules: Mutex<Arc<Rules>>,
    /// What the file held when it was last looked at, right or wrong.
    seen: Mutex<String>,
    good: AtomicBool,
}

impl Policy {
    /// Reads the file; `backends` are the names that a rule may give.
    ///
    /// # Errors
    ///
    /// One text with every problem of the file.
    pub fn open(path: &Path, backends: &'static [&'static str]) -> Result<Self, String> {
        let text = read(path)?;
        let rules = Rules::parse(&text, backends).map_err(|problems| told(path, &problems))?;
        Ok(Self {
            path: path.to_owned(),
            backends,
            rules: Mutex::new(Arc::new(rules)),
            seen: Mutex::new(text),
            good: AtomicBool::new(true),
        })
    }

    /// Looks whether the file has changed. A good one gives the rules from now on, a broken one is logged
    /// once and changes nothing.
    pub fn refresh(&self) {
        // A file that cannot be read is told apart from any text by the zero, which no YAML holds.
        let found = read(&self.path);
        let text = found.as_deref().map_or_else(|error| format!("\0{error}"), ToOwned::to_owned);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == text {
            return;
        }
        *seen = text;
        let parsed = found.and_then(|text| {
            Rules::parse(&text, self.backends).map_err(|problems| told(&self.path, &problems))
        });
        self.good.store(parsed.is_ok(), Ordering::Relaxed);
        match parsed {
            Ok(rules) => {
                tracing::info!(policy = %self.path.display(), rules = rules.count(), "the policy has changed");
                *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
            }
            Err(error) => tracing::error!("{error}\nthe rules read before stay in force"),
        }
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the file, as last seen, is what the rules in force come from.
    pub fn good(&self) -> bool {
        self.good.load(Ordering::Relaxed)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn read(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let failed = |error: std::io::Error| format!("policy {}: {error}", path.display());
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(format!(
            "policy {}: larger than {MOST_BYTES} bytes; join rules by patterns",
            path.display()
        ));
    }
    Ok(text)
}

/// The problems of a file, each with its place; the reader is the cluster's administrator.
fn told(path: &Path, problems: &[Problem]) -> String {
    let lines: Vec<_> = problems
        .iter()
        .map(|problem| {
            let line = problem
                .spot
                .as_ref()
                .and_then(|spot| spot.place)
                .map_or(String::new(), |at| format!(":{}", at.line));
            let field = problem.spot.as_ref().map_or(String::new(), |spot| format!("{}: ", spot.field));
            let hint = problem.hint.as_ref().map_or(String::new(), |hint| format!("; {hint}"));
            format!("policy {}{line}: {field}{}{hint}", path.display(), problem.what)
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KNOWN: &[&str] = &["azure", "local"];
    const SHOP: &str = "rules:\n- name: shop-vaults\n  namespaces: [shop, \"shop-*\"]\n  backends: [azure]\n  \
                        addresses: [\"shopkv.vault.azure.net\"]\n  identities: [\"1111\"]\n";

    fn reach(address: &str, identity: &str) -> Reach {
        Reach { addresses: vec![address.into()], identity: identity.into(), caseless: true }
    }

    fn rules(text: &str) -> Rules {
        Rules::parse(text, KNOWN).unwrap()
    }

    #[test]
    fn one_rule_must_allow_all_of_a_plan() {
        let rules = rules(&format!(
            "{SHOP}- {{name: other, namespaces: [shop], addresses: [o.vault.azure.net], identities: [\"2222\"]}}\n"
        ));
        let allow = |namespace, address, identity| rules.allow(namespace, "azure", &reach(address, identity));
        assert!(allow("shop", "shopkv.vault.azure.net", "1111").is_ok());
        assert!(allow("shop-a", "shopkv.vault.azure.net", "1111").is_ok());
        assert!(allow("shop", "o.vault.azure.net", "2222").is_ok());
        let text = allow("shop", "o.vault.azure.net", "1111").unwrap_err().to_string();
        for part in ["\"shop-vaults\"", "\"other\"", "address \"o.vault.azure.net\"", "identity \"1111\""] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let two = Reach {
            addresses: vec!["shopkv.vault.azure.net".into(), "o.vault.azure.net".into()],
            identity: "1111".into(),
            caseless: true,
        };
        assert!(rules.allow("shop", "azure", &two).is_err());
    }

    #[test]
    fn without_a_rule_for_it_a_namespace_gets_nothing_and_learns_of_no_other() {
        let rules = rules(SHOP);
        for (namespace, backend) in [("shops", "azure"), ("shop", "local"), ("web", "azure")] {
            let problem =
                rules.allow(namespace, backend, &reach("shopkv.vault.azure.net", "1111")).unwrap_err();
            let text = problem.to_string();
            assert_eq!(problem.kind, Kind::Refused);
            assert!(text.contains(&format!("no rule is for namespace {namespace:?} and backend {backend}")));
            assert!(
                !text.contains("shop-vaults") && text.contains("the administrator of the cluster"),
                "{text}"
            );
        }
        let open = "rules: [{name: all, namespaces: [\"*\"]}]";
        let nobody = super::Rules::parse(open, KNOWN).unwrap().allow("", "azure", &reach("a", "b"));
        assert!(nobody.unwrap_err().to_string().contains("names no namespace"));
    }

    #[test]
    fn every_mistake_of_a_file_is_told_at_once_with_its_line() {
        let text = "rule: 1\nrules:\n- name: a\n  namespace: [x]\n  backends: [azur]\n- namespaces: x\n- name: a\n  \
                    namespaces: [x]\n  addresses: []\n- text\n";
        let told = told(Path::new("p.yaml"), &Rules::parse(text, KNOWN).unwrap_err());
        for part in [
            "p.yaml:1: policy.rule: field \"rule\" is unknown, did you mean \"rules\"?",
            "rules[0].namespace: field \"namespace\" is unknown, did you mean \"namespaces\"?",
            "p.yaml:5: rules[0].backends: backend \"azur\" is unknown, did you mean \"azure\"?",
            "rules[0].namespaces: namespaces is missing",
            "rules[1].name: name is missing",
            "p.yaml:6: rules[1].namespaces: namespaces is a !!str, not a list",
            "rules[2].addresses: addresses lists nothing",
            "p.yaml:10: rules[3]: rule is a !!str",
            "two rules are named \"a\"",
        ] {
            assert!(told.contains(part), "{part}\n--\n{told}");
        }
        for text in ["", "rules: x", "[]", "a: b: c"] {
            assert!(Rules::parse(text, KNOWN).is_err(), "{text}");
        }
    }

    #[test]
    fn a_broken_file_keeps_the_rules_and_a_good_one_replaces_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.yaml");
        assert!(Policy::open(&path, KNOWN).is_err());
        std::fs::write(&path, SHOP).unwrap();
        let policy = Policy::open(&path, KNOWN).unwrap();
        let allowed = || policy.rules().allow("web", "local", &reach("a", "node")).is_ok();
        for broken in [Some("rules: x"), Some(""), None] {
            match broken {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            policy.refresh();
            assert!(!policy.good() && policy.rules().count() == 1 && !allowed());
        }
        std::fs::write(&path, "rules: [{name: all, namespaces: [\"*\"]}]").unwrap();
        policy.refresh();
        assert!(policy.good() && allowed());
        std::fs::write(&path, " ".repeat(1 << 20 | 1)).unwrap();
        policy.refresh();
        assert!(!policy.good() && allowed());
    }

    #[test]
    fn hosts_know_no_case_and_files_do() {
        let rules = rules("rules: [{name: a, namespaces: [n], addresses: [Db.net]}]");
        for (address, caseless, want) in
            [("db.NET", true, true), ("db.net", false, false), ("Db.net", false, true)]
        {
            let reach = Reach { caseless, ..reach(address, "node") };
            assert_eq!(rules.allow("n", "local", &reach).is_ok(), want);
        }
    }

    #[test]
    fn a_star_is_any_run_of_characters_and_nothing_else_is_special() {
        for (pattern, text, want) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "a", true),
            ("*.vault.azure.net", "x.vault.azure.net", true),
            ("*.vault.azure.net", "x.vault.azure.net.evil", false),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("a.c", "abc", false),
            ("a?[b]", "a?[b]", true),
            ("**", "x", true),
        ] {
            assert_eq!(fits(pattern, text), want, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_fits_what_was_made_from_it(parts in prop::collection::vec("[ab]{0,3}", 1..5), fill in "[ab]{0,4}") {
            prop_assert!(fits(&parts.join("*"), &parts.join(&fill)));
        }
    }
}
