//! Every parameter of a class and every field of an entry (azure.md 4, 6, 16): the one list behind what
//! is known, what is warned of, the tables of docs/reference/azure.md, and the schemas for editors.

use crate::entry::{Field, names};

/// Names of [`PARAMETERS`].
pub(super) static PARAMETER_NAMES: [&str; PARAMETERS.len()] = names(&PARAMETERS);
/// Names of [`ENTRY`].
pub(super) static ENTRY_NAMES: [&str; ENTRY.len()] = names(&ENTRY);

/// Parameters of a class. All are texts; white space around a value does not count.
pub const PARAMETERS: [Field; 19] = [
    Field::new("keyvaultName", "3 to 24 letters, digits, hyphens", "required", "Name of the vault."),
    Field::own(
        "vaultURI",
        "`https://NAME.SUFFIX`",
        "-",
        "Address of the vault or the Managed HSM, instead of `keyvaultName`. The suffix must be the cloud's.",
    ),
    Field::new("tenantID", "letters, digits, `-`, `.`", "required", "Entra tenant that gives the token."),
    Field::new("tenantId", "as `tenantID`", "-", "Older spelling; counts where `tenantID` is empty."),
    Field::new(
        "cloudName",
        "see [Clouds](#clouds), any case",
        "`--azure-cloud-name`",
        "Cloud of vault and login service.",
    ),
    Field::new(
        "cloudEnvFileName",
        "path on the provider's side",
        "`--azure-environment-file`",
        "Description of an `AzureStackCloud`; read anew for each request.",
    ),
    Field::new(
        "clientID",
        "client id",
        "-",
        "Application or managed identity that the pod's token stands for: workload identity, or identity binding.",
    ),
    Field::own(
        "clientId",
        "as `clientID`",
        "-",
        "Counts where `clientID` is empty; the vendor's provider ignores it.",
    ),
    Field::new(
        "useVMManagedIdentity",
        "boolean",
        "`false`",
        "Read as the machine, through its metadata service.",
    ),
    Field::new(
        "userAssignedIdentityID",
        "client id",
        "system-assigned",
        "Which of the machine's identities, with `useVMManagedIdentity`.",
    ),
    Field::own("userAssignedIdentityObjectID", "object id", "-", "The same by its object (principal) id."),
    Field::own("userAssignedIdentityResourceID", "`/subscriptions/…`", "-", "The same by its resource id."),
    Field::new(
        "useAzureTokenProxy",
        "boolean",
        "`false`",
        "Identity binding of AKS: the token is exchanged by the cluster's proxy; needs `clientID`.",
    ),
    Field::new("usePodIdentity", "boolean", "`false`", "AAD Pod Identity, which its vendor has retired."),
    Field::new("objects", "YAML", "required", "The [entries](#entries)."),
    Field::own(
        "maxAge",
        "`30s`, `5m`, `1h`, `0` and the like",
        "`--repeat-max-age`",
        "Age that a value may have in a later mount of the same volume.",
    ),
    Field::own(
        "lastGoodMaxAge",
        "`5m`, `30m`, `1h`, `0` and the like",
        "`--last-good-default`",
        "Age that a value may have while the store is down; at most `--last-good-max-age`.",
    ),
    Field::new("resourceGroup", "anything", "-", "From old manifests; without effect."),
    Field::new("subscriptionId", "anything", "-", "From old manifests; without effect."),
];

/// Fields of an entry.
pub const ENTRY: [Field; 14] = [
    Field::new(
        "objectName",
        "1 to 127 letters, digits, hyphens",
        "required",
        "Name of the object in the vault.",
    ),
    Field::new("objectType", "`secret`, `key`, `cert`", "required", "Kind of the object."),
    Field::new("objectVersion", "version id", "the latest", "Version to read, or to start a history from."),
    Field::new(
        "objectVersionHistory",
        "whole number",
        "`1`",
        "Above 1: so many enabled versions, newest first, as files `0`, `1`, … of a folder; and one more, as the vendor's provider does.",
    ),
    Field::own(
        "objectVersionHistoryExact",
        "boolean",
        "`false`",
        "Not one version more than `objectVersionHistory`.",
    ),
    Field::new(
        "objectAlias",
        "clean relative path",
        "`objectName`",
        "File in the volume; may lie in folders.",
    ),
    Field::new(
        "objectFormat",
        "`pem`, `pfx`, any case",
        "`pem`",
        "Of a certificate's secret: PEM, or the PFX as the store gives it (base64).",
    ),
    Field::new(
        "objectEncoding",
        "`utf-8`, `base64`, `hex`, any case",
        "`utf-8`",
        "Of a secret: how the value is decoded before it is written.",
    ),
    Field::own(
        "objectPart",
        "`key`, `leaf`, `chain`, `ca`, `pfx`",
        "all of it",
        "Of a certificate's secret: what to write. With `objectType: cert` it is the secret of that name that is read. See [certificates](../guides/certificates.md).",
    ),
    Field::own(
        "orderChain",
        "boolean",
        "`--azure-construct-pem-chain` for PFX, `false` for PEM",
        "Order the certificates leaf, intermediates, root.",
    ),
    Field::own(
        "splitFiles",
        "boolean",
        "`--azure-write-cert-and-key-in-separate-files`",
        "Of a certificate's secret: also write `.crt` and `.key` beside the file.",
    ),
    Field::new(
        "filePermission",
        "octal digits",
        "the caller's, mostly `0644`",
        "Mode of the file; quote it.",
    ),
    Field::own(
        "optional",
        "boolean",
        "`false`",
        "The object may be missing: no file then, and the version `absent`. A refusal is still an error.",
    ),
    Field::own("default", "text", "-", "What the file holds where an optional object is missing."),
];
