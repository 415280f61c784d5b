//! What can be typed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args as Group, Parser, Subcommand, ValueEnum};

use crate::backends;
use crate::call::MOST_AGE;
use crate::telemetry::logs::Format;

/// One provider for the Secrets Store CSI driver that answers as all of the vendors'.
#[derive(Debug, Parser)]
#[command(name = "keyferry", version, about, after_help = EXIT_CODES)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  something outside failed: a store, a server, the disk
  2  what was typed or written is wrong";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Answer the CSI driver on the node's sockets
    Serve(Serve),
    /// Mount one class by hand, as the driver would
    Mount(Mount),
    /// Check classes with the real parser, without any request
    Check(Check),
    /// Print a JSON schema for editors: secretproviderclass, azure-objects, local-objects
    Schema {
        /// Its name
        name: String,
    },
    /// Print the version
    Version,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Settings of the stores.
#[derive(Debug, Clone, Group)]
#[command(next_help_heading = "Stores")]
pub(super) struct Stores {
    /// Root of the local store; without it that store is off
    #[arg(long, value_name = "DIR", env = "KEYFERRY_LOCAL_ROOT")]
    pub(super) local_root: Option<PathBuf>,
    /// Cloud of Azure classes that name none
    #[arg(long, value_name = "NAME", default_value = "AzurePublicCloud")]
    pub(super) azure_cloud_name: String,
    /// Address of the token proxy for classes with useAzureTokenProxy
    #[arg(long, value_name = "URL", default_value = "https://kubernetes.default.svc.cluster.local", value_parser = crate::backends::azure::binding::address)]
    pub(super) azure_token_proxy_url: http::Uri,
    /// Name that the token proxy has in TLS; else it is worked out of the API server's certificate
    #[arg(long, value_name = "NAME")]
    pub(super) azure_sni_name: Option<String>,
    /// Take client and tenant of Azure classes that name no identity from the annotations of the pod's service
    /// account; needs get on serviceaccounts in the cluster
    #[arg(long)]
    pub(super) azure_service_account_identity: bool,
    /// File of the AzureStackCloud for classes that name none
    #[arg(long, value_name = "FILE", env = "AZURE_ENVIRONMENT_FILEPATH")]
    pub(super) azure_environment_file: Option<PathBuf>,
    /// Order the certificates of a PFX leaf first
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(super) azure_construct_pem_chain: bool,
    /// Write certificate and key of a certificate's secret into files of their own as well
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub(super) azure_write_cert_and_key_in_separate_files: bool,
    /// Connect to ADDRESS whenever HOST (or HOST:PORT) is asked; TLS still checks HOST
    #[arg(long, value_name = "HOST=ADDRESS:PORT", value_parser = connect_to)]
    pub(super) connect_to: Vec<(String, SocketAddr)>,
    /// Time to establish a connection
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub(super) connect_timeout: Duration,
    /// Time for one try of one request
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(super) try_timeout: Duration,
    /// Greatest answer of a store, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    pub(super) max_response_bytes: usize,
    /// HTTP/1.1 connections to one store
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub(super) max_connections: usize,
}

/// Bounds of the engine.
#[derive(Debug, Clone, Group)]
#[command(next_help_heading = "Ages, tries and limits")]
pub(super) struct Engine {
    /// Age a value may have in a first mount; 0 switches caching off for them
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = age)]
    pub(super) start_max_age: Duration,
    /// Age a value may have in a later mount of the same volume; 0 switches caching off for them
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = age)]
    pub(super) repeat_max_age: Duration,
    /// Age a value of a pinned version may have
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = age)]
    pub(super) pinned_max_age: Duration,
    /// Age a last good value may have while its store is down, at most; 0 allows none, whatever a class says
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = class_age)]
    pub(super) last_good_max_age: Duration,
    /// The same for classes that set no lastGoodMaxAge
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = class_age)]
    pub(super) last_good_default: Duration,
    /// Time that a mount gives the store before it takes last good values, where they are allowed
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = age)]
    pub(super) last_good_after: Duration,
    /// Bytes of values kept in memory, per store kind
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    pub(super) cache_bytes: usize,
    /// Sessions kept, per store kind
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(super) max_sessions: usize,
    /// Reads at once for one mount
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(super) reads_per_mount: usize,
    /// Reads at once from one store
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(super) reads_per_store: usize,
    /// Tries of one read
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10))]
    pub(super) tries: u32,
    /// Longest time for one mount; the kubelet gives up after 2 minutes
    #[arg(long, value_name = "TIME", default_value = "110s", value_parser = budget)]
    pub(super) mount_budget: Duration,
    /// File that says which namespaces may use which stores, addresses and identities; without it all may
    #[arg(long, value_name = "FILE", env = "KEYFERRY_POLICY")]
    pub(super) policy: Option<PathBuf>,
}

#[derive(Debug, Group)]
#[command(after_help = "Example:
  keyferry serve --local-root /etc/keyferry/secrets
  keyferry serve --socket-dir /var/run/secrets-store-csi-providers --socket-dir /etc/kubernetes/secrets-store-csi-providers

Signals: SIGTERM stops; SIGHUP forgets all values and sessions, so that the next calls ask the stores, and reads the policy again.")]
pub(super) struct Serve {
    /// Directory for the sockets; may be given several times
    #[arg(long, value_name = "DIR", default_value = "/var/run/secrets-store-csi-providers")]
    pub(super) socket_dir: Vec<PathBuf>,
    /// Backends to serve, a comma list; without it all that are switched on
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = PossibleValuesParser::new(backends::NAMES))]
    pub(super) backends: Vec<String>,
    /// Time to wait for another provider to leave a socket; a running keyferry is relieved at once
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = age)]
    pub(super) wait_for_socket: Duration,
    /// Listener for the node's operator, on loopback: a page, /status.json, /forget and what --metrics-addr has
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8990", overrides_with = "admin_addr")]
    pub(super) admin_addr: SocketAddr,
    /// Listener for kubelet and Prometheus: /healthz, /readyz and /metrics, nothing else
    #[arg(long, value_name = "ADDRESS")]
    pub(super) metrics_addr: Option<SocketAddr>,
    /// Time that running mounts get at a stop
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = humantime::parse_duration)]
    pub(super) grace: Duration,
    /// Greatest answer, in bytes; the driver accepts 4 MiB by default
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    pub(super) max_answer_bytes: usize,
    /// Volumes remembered, to tell a repeat from a first mount
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(super) max_volumes: usize,
    /// Form of the log
    #[arg(long, value_name = "FORM", default_value_t = Format::Text)]
    pub(super) log_format: Format,
    /// Level of the log: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(super) log_level: tracing_subscriber::filter::LevelFilter,
    #[command(flatten)]
    pub(super) stores: Stores,
    #[command(flatten)]
    pub(super) engine: Engine,
}

#[derive(Debug, Group)]
#[command(after_help = "Examples:
  keyferry mount -f class.yaml --local-root ./secrets --to ./out
  keyferry mount -f class.yaml -f pod.yaml --socket /var/run/secrets-store-csi-providers/azure.sock
  keyferry mount -f class.yaml --pod shop/web-0 --token api://AzureADTokenExchange=token.jwt")]
pub(super) struct Mount {
    /// Manifests of classes and pods; - is standard input
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    pub(super) files: Vec<PathBuf>,
    /// The class, where the files hold several
    #[arg(long, value_name = "NAME")]
    pub(super) class: Option<String>,
    /// Write the files into this directory
    #[arg(long, value_name = "DIR")]
    pub(super) to: Option<PathBuf>,
    /// The pod to speak for
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(super) pod: Option<String>,
    /// Its service account
    #[arg(long, value_name = "NAME")]
    pub(super) service_account: Option<String>,
    /// A service-account token, by audience
    #[arg(long, value_name = "AUDIENCE=FILE", value_parser = pair)]
    pub(super) token: Vec<(String, String)>,
    /// Data of the Secret behind nodePublishSecretRef: a JSON object of texts
    #[arg(long, value_name = "FILE")]
    pub(super) secrets: Option<PathBuf>,
    /// Set a parameter of the class
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(super) set: Vec<(String, String)>,
    /// Ask the server at this socket instead of the stores
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Form of the report
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub(super) output: Output,
    /// Print the values as well
    #[arg(long)]
    pub(super) show: bool,
    #[command(flatten)]
    pub(super) stores: Stores,
    #[command(flatten)]
    pub(super) engine: Engine,
}

#[derive(Debug, Group)]
#[command(after_help = "Examples:
  keyferry check deploy/
  helm template chart | keyferry check -
  keyferry check --explain class.yaml

Exit codes: 0 no errors, 1 something could not be read, 2 errors (or warnings, with --deny-warnings)")]
pub(super) struct Check {
    /// Manifests, or folders of *.yaml, *.yml and *.json; - is standard input
    #[arg(value_name = "PATH", required = true)]
    pub(super) files: Vec<PathBuf>,
    /// Form of the report
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub(super) output: Form,
    /// Say what each class would do: requests, as whom, with which permissions, files
    #[arg(long)]
    pub(super) explain: bool,
    /// Fail on warnings as well
    #[arg(long)]
    pub(super) deny_warnings: bool,
    /// Take it for right that there is no class at all
    #[arg(long)]
    pub(super) allow_empty: bool,
    #[command(flatten)]
    pub(super) stores: Stores,
}

/// Form of a report of `check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// For people.
    Human,
    /// One JSON document.
    Json,
    /// SARIF 2.1.0, for code hosts and editors.
    Sarif,
}

/// Form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// One JSON document.
    Json,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn connect_to(text: &str) -> Result<(String, SocketAddr), String> {
    let (host, address) = pair(text)?;
    Ok((host, address.parse().map_err(|_| format!("{address:?} is not an address with a port"))?))
}

/// A time; a bare 0 is one as well.
fn age(text: &str) -> Result<Duration, humantime::DurationError> {
    if text == "0" { Ok(Duration::ZERO) } else { humantime::parse_duration(text) }
}

/// A time that a class may ask for as well.
fn class_age(text: &str) -> Result<Duration, String> {
    let age = age(text).map_err(|error| error.to_string())?;
    if age <= MOST_AGE { Ok(age) } else { Err("at most 24h".into()) }
}

fn budget(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time <= Duration::from_secs(110) {
        Ok(time)
    } else {
        Err("at most 110s: the kubelet gives up after 2 minutes".into())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
